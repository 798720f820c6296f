"""Give each bit of a code a scale of its own, so that a group's levels need not be evenly spaced.

    ŵ = z + sum over k of s_k b_k,  b_k in {0, 1}, for each row and group of inputs: 2**bits levels
    start: z = min, s_k = 2**k (max - min) / (2**bits - 1): the uniform grid with a float zero
    in turn: each weight takes the nearest level; (s, z) = argmin |w - z - B s|²,  B [group_size, bits]

With `feedback` columns are quantized in turn as GPTQ does: a group's levels are fitted on its columns as
updated so far. `refresh` then chooses each column's codes when its turn comes, not once for the group.
Needs the Gram matrix (only for the feedback). Stores bits + 16 (bits + 1) / group_size bits per weight, one
bit plane after the other: a product with the inputs is z Σx + Σ s_k (b_k x). Groups of few weights spend
more on scales than the levels gain, and with 4 bits and more a uniform grid is about as good.
ELUTQ, arXiv 2510.19482.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from backend.costs import Cost
from backend.parameters import Damping, GroupSize
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import SCALE_BITS, Matrix, plane_bytes
from backend.solvers.columns import inverse_root
from backend.solvers.planes import fit_planes, in_float16, patterns, quantize_planes, row_block
from backend.views import Layer

Planes = Annotated[int, Field(ge=1, le=8, description="Bit planes, each with a scale of its own")]
Rounds = Annotated[int, Field(ge=0, le=100, description="Rounds of the fit; 0 is float-zero rounding")]
Feedback = Annotated[bool, Field(description="Later columns absorb the output error of earlier ones")]
Refresh = Annotated[bool, Field(description="Choose a column's codes after it absorbed what came before")]


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    blocks = matrix.groups(params["group_size"])
    return plane_bytes(matrix, params["bits"], blocks, (params["bits"] + 1) * SCALE_BITS)


@method(
    paper="arXiv:2510.19482",
    cost=Cost("solve", 4.9, {"bits": 2}),
    needs="gram",
    stored=_stored,
    claim=Claim(
        "At 3 bits by rows, a scale for each bit loses less than BAQ's even grids at the same bytes",
        whose="ours",
        paper_says="ELUTQ beats uniform grids at equal bits and groups, for more bytes of scales.",
        better=({"method": "quantize.hlq", "params": {"bits": 3, "group_size": -1}},),
        worse=({"method": "quantize.baq", "params": {"bits": 3.04}},),
    ),
)
def hlq(
    layer: Layer,
    *,
    bits: Planes = 2,
    group_size: GroupSize = 64,
    rounds: Rounds = 10,
    feedback: Feedback = True,
    refresh: Refresh = True,
    damping: Damping = 0.01,
) -> tuple[Part, ...]:
    """Bit planes of the weight so far."""
    known = patterns(bits, signed=False, offset=True, device=layer.weight.device)

    def fit(values: Tensor, counted: Tensor | None) -> Tensor:
        return fit_planes(values, counted, _even(values, counted, bits), known, rounds, in_float16)

    upper = inverse_root(layer.statistics, damping) if feedback else None
    block = row_block(layer.weight.shape[1], group_size)
    return (
        quantize_planes(
            layer.now,
            upper,
            fit,
            known,
            block,
            signed=False,
            offset=True,
            kept=layer.kept,
            frozen=not refresh,
        ),
    )


def _even(values: Tensor, counted: Tensor | None, bits: int) -> Tensor:
    """Scales and offset [groups, bits + 1] of the even grid over the range of values [groups, group]."""
    if counted is None:
        low, high = values.amin(dim=1), values.amax(dim=1)
    else:
        low = torch.where(counted > 0, values, torch.inf).amin(dim=1)
        high = torch.where(counted > 0, values, -torch.inf).amax(dim=1)
        none = counted.sum(dim=1) == 0
        low, high = low.masked_fill(none, 0.0), high.masked_fill(none, 0.0)
    step = (high - low) / (2**bits - 1)
    return torch.stack([*(2**k * step for k in range(bits)), low], dim=1)
