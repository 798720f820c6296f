"""Give each input column as many levels as its share of the error asks for, the mean number of bits as asked.

    first pass, GPTQ by rows with 2**bits levels:  L_j = sum_i (w_ij - q_ij)² / (2 U_jj²)   [in]
    a column of K_j levels loses about c_j K_j**-theta; the least sum at the given mean has equal losses:
    K_j = round((a L_j)**(1 / theta)), 1 .. 256, with the largest a whose codes fit into bits * out * in
    second pass, GPTQ again:  s_ij = range_i / (K_j - 1),  z_ij = round(-min_i / s_ij),  q = s (c - z)

Needs the Gram matrix. Columns with equally many levels are packed together, close to log2 K_j bits a code; a
row stores its range and zero point (32 bits) and a column its number of levels (8 bits). Rows are not split
into groups, so at 2 bits GPTQ with small groups, which cost more, can lose less. Where all columns lose alike
it is GPTQ. The first pass is kept where the second loses more, as on pruned weights, whose columns cannot
absorb what the losses count on. Bits move within a linear, not between linears; both passes see the same
inputs. BAQ, Bit Allocation Quantization, arXiv 2506.05664.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from backend.costs import Cost
from backend.mixed import MOST_LEVELS, Mixed, Ranges, code_bits
from backend.parameters import ActOrder, Damping
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import SCALE_BITS, Matrix, whole_bytes
from backend.solvers.columns import activation_order, inverse_root, solve_columns
from backend.views import Layer

MeanBits = Annotated[float, Field(ge=1.5, le=8.0, description="Bits of a stored code on average, any number")]
Exponent = Annotated[
    float, Field(ge=1.0, le=4.0, description="A column of K levels is taken to lose as K to the minus this")
]


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    return _budget(matrix.kept, params["bits"]) + 2 * matrix.rows * SCALE_BITS // 8 + matrix.inputs


@method(
    paper="arXiv:2506.05664",
    cost=Cost("solve", 3.2),
    needs="gram",
    stored=_stored,
    claim=Claim(
        "Levels for each column by its share of the error lose less than GPTQ with 3 bits for all, by rows",
        whose="paper",
        better=({"method": "quantize.baq", "params": {"bits": 2.95}},),
        worse=({"method": "quantize.gptq", "params": {"bits": 3, "group_size": -1}},),
    ),
)
def baq(
    layer: Layer,
    *,
    bits: MeanBits = 2.0,
    theta: Exponent = 1.95,
    act_order: ActOrder = False,
    damping: Damping = 0.01,
) -> tuple[Part, ...]:
    """Part with a number of levels of its own for each column of the weight so far."""
    weight, kept = layer.now, layer.kept
    inputs = weight.shape[1]
    middle = int(2**bits)
    ranges = Ranges.of(weight, middle - 1)
    order = activation_order(layer.statistics) if act_order else torch.arange(inputs, device=weight.device)
    upper = inverse_root(layer.statistics, damping, order if act_order else None)
    columns = order.tolist()
    counts = torch.full((inputs,), weight.shape[0]) if kept is None else kept.sum(dim=0).cpu()

    def solve(levels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Ŵ [out, in] with `levels` [in], the loss of each column's kept weights [in], and that of all."""
        sums = torch.zeros(inputs, dtype=torch.float64, device=weight.device)

        def assign(j: int, column: Tensor) -> Tensor:
            place = columns[j]
            value = ranges.rounded(column[:, None], levels[place : place + 1])[1][:, 0]
            error = column - value
            if kept is not None:
                value, error = value * kept[:, place], error * kept[:, place]
            sums[j] = error.square().sum()
            return value

        solved, losses = torch.empty_like(weight), torch.empty_like(sums)
        solved[:, order], whole = solve_columns(weight[:, order], upper, assign)
        losses[order] = sums / (2 * upper.diagonal().double().square())
        return solved, losses.cpu(), whole

    alike = torch.full((inputs,), middle, device=weight.device)
    first, losses, before = solve(alike)
    size = _budget(int(counts.sum()), bits)
    levels = allocate(losses, counts, 8 * size, theta).to(weight.device)
    second, _, after = solve(levels)
    if after >= before and code_bits(alike, counts) <= 8 * size:
        second, levels = first, alike
    return (Mixed.encode(second, ranges, levels, size, kept),)


def allocate(losses: Tensor, counts: Tensor, budget: int, theta: float) -> Tensor:
    """Levels [in] of columns that lost `losses` [in] with `counts` [in] codes each, in `budget` bits."""
    each = losses.double() / counts.clamp(min=1)
    # Columns that lose nothing keep one level.
    scaled = each / each.mean().clamp(min=1e-300)
    shares = torch.where(scaled > 1e-8, scaled, 0.0) ** (1 / theta)

    def levels(factor: float) -> Tensor:
        return (factor * shares).round().clamp(1, MOST_LEVELS).long()

    low, high = 0.0, float(2 * MOST_LEVELS / shares[shares > 0].amin()) if bool(shares.any()) else 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if code_bits(levels(middle), counts) <= budget else (low, middle)
    found, next_ = levels(low), levels(high)
    # Columns that would all take their next level at once take it one after the other while bits are left.
    rising = (next_ > found).nonzero()[:, 0].tolist()
    for column in rising:
        tried = found.clone()
        tried[column] = next_[column]
        if code_bits(tried, counts) > budget:
            break
        found = tried
    return found


def _budget(kept: int, bits: float) -> int:
    return whole_bytes(int(kept * bits))
