"""Quantize by cyclic coordinate descent: each column in turn takes its best code, the others fixed.

    min over codes of tr((W - Ŵ - H) C (W - Ŵ - H)ᵀ),  C = XᵀX [in, in],  H [out, in] with s entries
    column j:  β = the real minimiser given the rest,  ŵ_j = nearest code to β;  `sweeps` times over all
    H: the s largest |W| at first, then after each sweep  H <- largest s entries of H + η 2 (W - Ŵ - H) C,
    η = 1 / (2 λ_max(C))

Started from the weight itself, every third sweep leaves the columns unrounded (not the last, not after 25);
started from GPTQ, none does, and the output error never rises above GPTQ's. Grids are fixed before the first
sweep. Needs the Gram matrix, no inverse and no damping. Stores what quantize.gptq stores; outliers add their
values in the model's type, 16 bits for each column and 32 bits a row. At small groups outliers have little
left to repair. Behdin et al., QuantEase, arXiv 2309.01885, algorithms 2 and 3.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.coded import Grid, groups_of
from backend.costs import Cost
from backend.parameters import Bits, GroupSize, Symmetric
from backend.parts import Outliers, Part
from backend.registry import Claim, method
from backend.sizes import Matrix, grid_bytes
from backend.solvers.descent import sweep_columns
from backend.solvers.feedback import quantize_columns
from backend.solvers.grids import fit_grid
from backend.views import Layer

_LAST_RELAXED = 25
# GPTQ's own default, for the start from it.
_DAMPING = 0.01

Start = Annotated[Literal["weight", "gptq"], Field(description="Where the descent begins")]
Sweeps = Annotated[int, Field(ge=1, le=200, description="How often all columns are gone over")]
Share = Annotated[
    float, Field(ge=0.0, le=0.2, description="Share of the weights kept beside the grid as they are")
]


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    count = int(matrix.rows * matrix.inputs * params["outliers"])
    column = 2 if matrix.inputs < 2**15 else 4
    beside = count * (matrix.value_bits // 8 + column) + 4 * (matrix.rows + 1) if count else 0
    return grid_bytes(matrix, params) + beside


@method(
    paper="arXiv:2309.01885",
    cost=Cost("solve", 20, {"sweeps": 30}),
    needs="gram",
    stored=_stored,
    pads=True,
    claim=Claim(
        "Coordinate descent after GPTQ loses less than GPTQ at the same bytes",
        whose="ours",
        paper_says="QuantEase loses less than GPTQ when it starts from the weights, without groups.",
        better=({"method": "quantize.quantease", "params": {"bits": 3, "group_size": 64, "start": "gptq"}},),
        worse=({"method": "quantize.gptq", "params": {"bits": 3, "group_size": 64}},),
    ),
)
def quantease(
    layer: Layer,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    symmetric: Symmetric = False,
    sweeps: Sweeps = 30,
    start: Start = "weight",
    outliers: Share = 0.0,
) -> tuple[Part, ...]:
    """Grid part of the weight so far, and an outlier part when some are kept beside it."""
    assert layer.statistics.gram is not None
    weight, kept = layer.now, layer.kept
    gram = layer.statistics.gram
    rows, inputs = weight.shape
    count = int(weight.numel() * outliers)
    groups = groups_of(inputs, group_size)
    # As they will be stored: the grid makes up for their rounding too.
    beside = _largest(weight, count).to(layer.dtype).float()
    if start == "gptq":
        begun = quantize_columns(
            weight - beside, layer.statistics, bits=bits, group_size=group_size, symmetric=symmetric,
            damping=_DAMPING, kept=kept,
        )  # fmt: skip
        scales, zeros, first = begun.scales, begun.zero_points(), begun.dense()
    else:
        inner = _without_extremes(weight - beside, inputs // groups, outliers)
        scales, zeros = fit_grid(inner.view(rows, groups, -1), bits, symmetric)
        first = weight - beside
    scale_rows = scales.float().T.contiguous()
    middle = torch.full_like(scale_rows, float(2 ** (bits - 1)))
    zero_rows = middle if zeros is None else zeros.float().T.contiguous()
    kept_rows = None if kept is None else kept.T.contiguous()
    width = inputs // groups

    def assign(j: int, column: Tensor) -> Tensor:
        scale, zero = scale_rows[j // width], zero_rows[j // width]
        value = ((column / scale).round_() + zero).clamp_(0, 2**bits - 1).sub_(zero).mul_(scale)
        return value if kept_rows is None else value * kept_rows[j]

    def free(j: int, column: Tensor) -> Tensor:
        return column if kept_rows is None else column * kept_rows[j]

    def relaxed(sweep: int) -> bool:
        return start == "weight" and sweep % 3 == 1 and sweep <= _LAST_RELAXED and sweep < sweeps - 1

    quantized = first
    if count:
        step = gram.double() / torch.linalg.eigvalsh(gram.double())[-1].clamp(min=1e-300)
    for sweep in range(sweeps):
        quantized = sweep_columns(weight - beside, quantized, gram, free if relaxed(sweep) else assign)
        # The last sweep is for the outliers as they stand.
        if count and sweep < sweeps - 1:
            moved = beside + ((weight - quantized - beside).double() @ step).float()
            beside = _largest(moved if kept is None else moved * kept, count).to(layer.dtype).float()
    part = Grid.encode(quantized, scales, zeros, bits, group_size, kept)
    return (part, Outliers.at(beside, beside != 0, layer.dtype)) if count else (part,)


def _largest(values: Tensor, count: int) -> Tensor:
    """`values` with all but the `count` largest magnitudes set to zero."""
    if not count:
        return torch.zeros_like(values)
    flat = values.reshape(-1)
    chosen = flat.abs().argsort(descending=True, stable=True)[:count]
    return torch.zeros_like(flat).scatter_(0, chosen, flat[chosen]).view_as(values)


def _without_extremes(weight: Tensor, width: int, share: float) -> Tensor:
    """`weight` with the outermost share / 2 of each group pulled in on either side, to fit grids to."""
    drop = round(width * share / 2)
    if not drop:
        return weight
    grouped = weight.view(weight.shape[0], -1, width)
    ordered = grouped.sort(dim=-1).values
    return grouped.clamp(ordered[..., drop, None], ordered[..., -1 - drop, None]).view_as(weight)
