"""Let a group run along a row or along a column of the weight, whichever loses less, linear by linear.

    row groups, per output channel:    W  [out, in / g, g],  a grid for g inputs of one output
    column groups, per input channel:  Wᵀ [in, out / g, g],  a grid for g outputs of one input
    loss = tr((W - Ŵ) C (W - Ŵ)ᵀ),  C = XᵀX [in, in];  the smaller one is kept, rows when they are equal

Outliers of the activations sit in input channels, so a sensitive column gets grids that no other column
shares. Both candidates are made by the `base` itself, rounding or GPTQ; with column groups GPTQ fits a
column's grids when it reaches it, which makes `act_order` free. Needs the Gram matrix. A group holds the same
number of weights either way, so both take the bytes of quantize.gptq. Where that number does not divide the
outputs, rows are kept. The loss is that of each linear; for the linears inside attention or MLP the paper
takes that of the whole module. Little is left to choose at 4 bits and more.
Heo et al., Rethinking Channel Dimensions to Isolate Outliers, arXiv 2309.15531.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from backend.coded import Grid, groups_of
from backend.costs import Cost
from backend.parameters import ActOrder, Bits, Damping, GroupSize, Symmetric
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import grid_bytes
from backend.solvers.feedback import quantize_columns, quantize_whole_columns
from backend.solvers.grids import fit_grid
from backend.views import Layer

Base = Annotated[Literal["rtn", "gptq"], Field(description="How a candidate is quantized")]
Groups = Annotated[
    Literal["best", "row", "column"],
    Field(description="What groups run along; best: whichever loses less on the linear's output"),
]


@method(
    paper="arXiv:2309.15531",
    cost=Cost("solve", 2.6),
    needs="gram",
    stored=grid_bytes,
    claim=Claim(
        "At 3 bits, groups along rows or columns by choice lose less than GPTQ's along rows",
        whose="paper",
        better=({"method": "quantize.adadim", "params": {"bits": 3, "group_size": 64}},),
        worse=({"method": "quantize.gptq", "params": {"bits": 3, "group_size": 64}},),
    ),
)
def adadim(
    layer: Layer,
    *,
    bits: Bits = 3,
    group_size: GroupSize = 64,
    symmetric: Symmetric = False,
    base: Base = "gptq",
    groups: Groups = "best",
    act_order: ActOrder = False,
    damping: Damping = 0.01,
) -> tuple[Part, ...]:
    """Grid part of the weight so far, transposed where columns were the better choice."""
    weight, kept = layer.now, layer.kept
    rows, inputs = weight.shape
    length = inputs // groups_of(inputs, group_size)

    def quantized(transposed: bool) -> Grid:
        # Of a column a whole row's worth of weights is one group of several.
        size = length if transposed else group_size
        if base == "rtn":
            turned = weight.T if transposed else weight
            scales, zeros = fit_grid(turned.reshape(len(turned), -1, length), bits, symmetric)
            return Grid.encode(weight, scales, zeros, bits, size, kept, transposed)
        solve = quantize_whole_columns if transposed else quantize_columns
        return solve(
            weight, layer.statistics, bits=bits, group_size=size, symmetric=symmetric, damping=damping,
            act_order=act_order, kept=kept,
        )  # fmt: skip

    if rows % length or groups == "row":
        return (quantized(False),)
    if groups == "column":
        return (quantized(True),)
    assert layer.statistics.gram is not None
    gram = layer.statistics.gram
    candidates = [quantized(False), quantized(True)]
    losses = [_lost(weight - part.dense(), gram) for part in candidates]
    return (candidates[losses[1] < losses[0]],)


def _lost(error: Tensor, gram: Tensor) -> float:
    return float((error.double() @ gram * error).sum())
