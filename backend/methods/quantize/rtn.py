"""Round each weight to the nearest point of its group's uniform grid.

    W [out, in] in groups of `group_size` inputs:  s = (max - min) / (2**bits - 1),  z = round(-min / s)
    c = clamp(round(w / s) + z, 0, 2**bits - 1),   ŵ = s (c - z)

Needs no data. Stores bits + (16 + bits) / group_size bits per weight (no `+ bits` on a symmetric grid).
Weights that pruning removed stay exactly zero and only kept codes are stored.
Stops working near 3 bits per weight, and at 2 bits leaves most models broken.
The baseline of the quantization literature; grid as in Frantar et al., GPTQ, arXiv 2210.17323.
"""

from backend.parameters import Bits, GroupSize, Symmetric
from backend.parts import Grid, Part, groups_of
from backend.registry import method
from backend.solvers.grids import fit_grid
from backend.views import Layer


@method(paper="arXiv:2210.17323")
def rtn(
    layer: Layer, *, bits: Bits = 4, group_size: GroupSize = 64, symmetric: Symmetric = False
) -> tuple[Part, ...]:
    """Grid part of the weight so far."""
    weight, kept = layer.now, layer.kept
    grouped = weight.view(weight.shape[0], groups_of(weight.shape[1], group_size), -1)
    scales, zeros = fit_grid(grouped, bits, symmetric)
    return (Grid.encode(weight, scales, zeros, bits, group_size, kept),)
