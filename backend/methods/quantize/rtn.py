"""Round each weight to the nearest point of its group's uniform grid.

    W [out, in] in groups of `group_size` inputs:  s = (max - min) / (2**bits - 1),  z = round(-min / s)
    c = clamp(round(w / s) + z, 0, 2**bits - 1),   ŵ = s (c - z)

With `zero` = float the range is the group's own, without zero, and z = -min / s is stored as float16.
Needs no data. Stores bits + (16 + bits) / group_size bits per weight: no `+ bits` on a symmetric grid, and 16
in its place with a float zero.
Weights that pruning removed stay exactly zero and only kept codes are stored.
Stops working near 3 bits per weight, and at 2 bits leaves most models broken.
The baseline of the quantization literature; grid as in Frantar et al., GPTQ, arXiv 2210.17323.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from backend.coded import Grid, groups_of
from backend.costs import Cost
from backend.parameters import Bits, GroupSize, Symmetric
from backend.parts import Part
from backend.registry import method
from backend.sizes import Matrix, float_zero_bytes, grid_bytes
from backend.solvers.grids import fit_float_grid, fit_grid
from backend.views import Layer

Zero = Annotated[
    Literal["integer", "float"],
    Field(description="integer: a code is the zero point; float: any number (not on a symmetric grid)"),
]


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    free = params["zero"] == "float" and not params["symmetric"]
    return float_zero_bytes(matrix, params) if free else grid_bytes(matrix, params)


@method(paper="arXiv:2210.17323", cost=Cost("round"), stored=_stored, pads=True)
def rtn(
    layer: Layer,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    symmetric: Symmetric = False,
    zero: Zero = "integer",
) -> tuple[Part, ...]:
    """Grid part of the weight so far."""
    weight, kept = layer.now, layer.kept
    grouped = weight.view(weight.shape[0], groups_of(weight.shape[1], group_size), -1)
    free = zero == "float" and not symmetric
    scales, zeros = fit_float_grid(grouped, bits) if free else fit_grid(grouped, bits, symmetric)
    return (Grid.encode(weight, scales, zeros, bits, group_size, kept),)
