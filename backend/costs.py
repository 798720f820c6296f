"""How methods say what a linear costs them: in the time that a well-known way takes for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Like = Literal["round", "solve", "svd"]
# What one step of a loop over columns costs beside its products, in products.
_STEP = 1e6


@dataclass(frozen=True)
class Cost:
    """`times` as long as a known way takes for the same linear [out, in].

    like    round: rounding to nearest, out in; solve: GPTQ, which factors the Gram matrix and goes through
            the columns, in² (out + in) and the steps of a loop; svd: singular values, out in min(out, in)
    by      {parameter: its value where `times` holds}: the time grows in proportion to each of them
    """

    like: Like
    times: float = 1.0
    by: Mapping[str, float] = field(default_factory=dict)

    def amount(self, rows: int, inputs: int, params: Mapping[str, Any]) -> float:
        """The work on one linear, in units of what it is like."""
        whole = {
            "round": rows * inputs,
            "solve": inputs**2 * (rows + inputs) + _STEP * inputs,
            "svd": rows * inputs * min(rows, inputs),
        }[self.like]
        return self.times * math.prod(params[name] / value for name, value in self.by.items()) * whole
