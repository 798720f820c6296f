"""Write weights as a few sign matrices times powers of two, so that products are shifts and additions.

    ŵ = sum over k of a_k b_k,  b_k in {-1, +1};  a_k = sum of `terms` numbers ±2**e
    start: r = w;  b_k = sign(r), a_k = mean |r|, r <- r - a_k b_k
    in turn: a = argmin |w - B a|², each a_k to its nearest sum of powers, each w to its nearest level

`scales` says which weights share them: column = `group_size` outputs of one input; block = 8 inputs by
group_size / 8 outputs, for fewer memory accesses; row = `group_size` inputs of one output. The objective
`output` goes over the columns as GPTQ does, the most active first, and fits each block as updated so far;
`weight` fits the weights alone. `incoherent` quantizes U W D Vᵀ with orthogonal U, V and a diagonal D, so
that no weight or input stands out, and multiplies them out again when the weight is decoded (a real kernel
would apply them to the inputs); with column scales it is the paper's most accurate form, slow to compute.
D shrinks what softly heard inputs are multiplied with, and decoding blows its errors up as much, 256 times at
most. An input that calibration rarely shows counts as seen once more than it was, as strongly as others are
when they are active: one that was never seen is shrunk by about tokens**(1/4) against an ordinary one, no
more, and the run's card tells how many there were.
Needs the Gram matrix (not for `weight` alone). Stores bits + 6 bits terms / group_size bits per weight: a
power is a sign and 5 bits of exponent; `incoherent` adds 17 bits a column and 1 a row, the signs that make
U and V. There is no offset: a group of weights on one side of zero is served badly. Other linears get other
bits by an allocate stage before it.
You et al., ShiftAddLLM, arXiv 2406.05981.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from backend.costs import Cost
from backend.parameters import GROUPED_ROW, Damping
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import Matrix, plane_bytes, whole_bytes
from backend.solvers.columns import inverse_root
from backend.solvers.planes import (
    POWER_BITS,
    Turn,
    block_order,
    blocks_of,
    fit_planes,
    once_more,
    patterns,
    quantize_planes,
    row_block,
)
from backend.views import Layer

# Inputs of a block that shares scales, as in the paper.
_WIDE = 8
# Powers so far below the first one would not change it in float32.
_NEGLIGIBLE = 2.0**-20
_NEVER_SEEN = "share of inputs that calibration never showed active, in linears with such inputs"


def _fits_blocks(size: int) -> int:
    if size != GROUPED_ROW and size < _WIDE:
        raise ValueError(f"-1 (the whole column or row) or {_WIDE} weights and more")
    return size


Planes = Annotated[int, Field(ge=1, le=8, description="Sign matrices, each with a scale of its own")]
Group = Annotated[
    int,
    Field(ge=-1, le=8192, description="Weights that share scales; -1 is the whole column or row"),
    AfterValidator(_fits_blocks),
]
Scales = Annotated[
    Literal["column", "block", "row"],
    Field(description="Which weights share scales: of one input, of 8 inputs, or of one output"),
]
Objective = Annotated[
    Literal["output", "weight"], Field(description="Whose error is small: the layer's output, or the weights")
]
Terms = Annotated[int, Field(ge=1, le=6, description="Powers of two that add up to a scale")]
Incoherent = Annotated[
    bool, Field(description="Spread each weight over all rows and columns first (not in a pruned layer)")
]
Rounds = Annotated[int, Field(ge=0, le=100, description="Rounds of the fit; 0 keeps the greedy start")]


def _block(rows: int, inputs: int, group_size: int, scales: str) -> tuple[int, int]:
    """Rows and inputs of a block that shares scales."""
    if scales == "row":
        return row_block(inputs, group_size)
    wide = 1 if scales == "column" else _WIDE
    tall = -(-rows // wide) if group_size == GROUPED_ROW else group_size // wide
    return min(tall, rows), min(wide, inputs)


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    shape = (matrix.rows, matrix.inputs)
    blocks = blocks_of(shape, _block(*shape, params["group_size"], params["scales"]))
    planes = plane_bytes(matrix, params["bits"], blocks, params["bits"] * params["terms"] * POWER_BITS)
    turned = params["incoherent"] and matrix.kept == matrix.rows * matrix.inputs
    return planes + turned * (whole_bytes(matrix.rows) + whole_bytes(matrix.inputs) + 2 * matrix.inputs)


@method(
    paper="arXiv:2406.05981",
    cost=Cost("solve", 6.4, {"bits": 2}),
    needs="gram",
    stored=_stored,
    claim=Claim(
        "At 3 bits, shift-and-add without groups loses less than BAQ at the same bytes",
        whose="ours",
        paper_says="ShiftAddLLM beats the best of other methods at 3 bits, and by more at 2.",
        better=({"method": "quantize.shiftadd", "params": {"bits": 3, "group_size": -1}},),
        worse=({"method": "quantize.baq", "params": {"bits": 3.04}},),
    ),
)
def shiftadd(
    layer: Layer,
    *,
    bits: Planes = 2,
    group_size: Group = -1,
    scales: Scales = "block",
    objective: Objective = "output",
    incoherent: Incoherent = False,
    terms: Terms = 3,
    rounds: Rounds = 15,
    damping: Damping = 0.01,
) -> tuple[Part, ...]:
    """Sign planes of the weight so far."""
    rows, inputs = layer.weight.shape
    known = patterns(bits, signed=True, offset=False, device=layer.weight.device)
    block = _block(rows, inputs, group_size, scales)

    def fit(values: Tensor, counted: Tensor | None) -> Tensor:
        return fit_planes(
            values,
            counted,
            _greedy(values, counted, bits),
            known,
            rounds,
            lambda found: _powers(found, terms),
        )

    weight, statistics, turn = layer.now, layer.statistics, None
    if incoherent and layer.kept is None:
        assert statistics.gram is not None
        if dead := int((statistics.gram.diagonal() == 0).sum()):
            layer.curves[_NEVER_SEEN] = [dead / inputs]
        statistics = statistics.once("once more", partial(once_more, statistics))
        assert statistics.gram is not None
        turn = Turn.of(weight, statistics.gram, layer.rng)
        weight, statistics = turn.weight(weight), turn.statistics(statistics)
    order = upper = None
    if objective == "output":
        order = block_order(statistics, block[1])
        upper = inverse_root(statistics, damping, order, f"in blocks of {block[1]}")
    planes = quantize_planes(
        weight, upper, fit, known, block, signed=True, offset=False, kept=layer.kept, terms=terms, order=order
    )
    return (turn.part(planes) if turn else planes,)


def _greedy(values: Tensor, counted: Tensor | None, bits: int) -> Tensor:
    """Scales [blocks, bits] for values [blocks, weights], each the best for what the ones before left."""
    rest = values if counted is None else values * counted
    amount = float(values.shape[1]) if counted is None else counted.sum(dim=1).clamp(min=1)
    found = []
    for _ in range(bits):
        scale = rest.abs().sum(dim=1) / amount
        found.append(scale)
        rest = rest - torch.where(rest < 0, -1.0, 1.0) * scale[:, None]
        rest = rest if counted is None else rest * counted
    return torch.stack(found, dim=1)


def _powers(scales: Tensor, terms: int) -> Tensor:
    """The same levels with each scale [blocks, bits] a sum of `terms` signed powers, largest first."""
    wanted = scales.double().abs().sort(dim=1, descending=True).values
    total = wanted.new_zeros(wanted.shape)
    for _ in range(terms):
        rest = wanted - total
        size = rest.abs()
        power = size.log2().round_().exp2_().copysign_(rest)
        total = total + power.masked_fill_(size <= wanted * _NEGLIGIBLE, 0.0)
    return total.float()
