"""Quantize column by column and let the columns not yet quantized absorb each column's output error.

    min over codes of tr((W - Ŵ) H (W - Ŵ)ᵀ),  H = XᵀX + damping * mean(diag) * I  [in, in],  H⁻¹ = UᵀU
    for j = 1 .. in:  q = round_to_grid(w_j),  e = (w_j - q) / U_jj,  w_k -= e U_jk for k > j

Needs the Gram matrix of the layer's inputs. A group's grid is fitted on its columns as updated so far; with
`act_order` all grids are fitted beforehand on the weight as it came, so that no order has to be stored.
Stores what quantize.rtn stores. Pruned weights are fixed to zero when their column is reached and stay zero.
Gains little at 4 bits and more; at 2 bits the result is usable only with small groups.
Frantar et al., GPTQ, arXiv 2210.17323.
"""

import torch
from torch import Tensor

from backend.parameters import GROUPED_ROW, ActOrder, Bits, Damping, GroupSize, Symmetric
from backend.parts import Grid, Part, groups_of
from backend.registry import Claim, method
from backend.solvers.columns import activation_order, inverse_root, solve_columns
from backend.solvers.grids import fit_grid
from backend.views import Layer


@method(
    paper="arXiv:2210.17323",
    needs="gram",
    claim=Claim(
        "GPTQ loses less than rounding to nearest at the same bytes",
        better=({"method": "quantize.gptq", "params": {"bits": 3, "group_size": 64}},),
        worse=({"method": "quantize.rtn", "params": {"bits": 3, "group_size": 64}},),
    ),
)
def gptq(
    layer: Layer,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    symmetric: Symmetric = False,
    act_order: ActOrder = False,
    damping: Damping = 0.01,
) -> tuple[Part, ...]:
    """Grid part of the weight so far, quantized with error feedback."""
    weight, kept = layer.now, layer.kept
    rows, inputs = weight.shape
    groups = groups_of(inputs, group_size)
    width = inputs // groups
    scales, zeros = fit_grid(weight.view(rows, groups, width), bits, symmetric)
    order = activation_order(layer.statistics) if act_order else torch.arange(inputs, device=weight.device)
    upper = inverse_root(layer.statistics, damping, order if act_order else None)
    fixed_grids = act_order or group_size == GROUPED_ROW
    scale_rows = scales.float().T.contiguous()
    middle = torch.full_like(scale_rows, float(2 ** (bits - 1)))
    zero_rows = middle if zeros is None else zeros.T.contiguous()
    kept_rows = None if kept is None else kept.T[order].contiguous()
    groups_of_columns = (order // width).tolist()
    scales_by_group, zeros_by_group = scale_rows.unbind(), zero_rows.unbind()

    def refit(start: int, columns: Tensor) -> None:
        group = start // width
        scale, zero = fit_grid(columns[:, None, :], bits, symmetric)
        scale_rows[group] = scale[:, 0].float()
        if zero is not None:
            zero_rows[group] = zero[:, 0]

    def assign(j: int, column: Tensor) -> Tensor:
        group = groups_of_columns[j]
        scale, zero = scales_by_group[group], zeros_by_group[group]
        codes = (column / scale).round_().add_(zero).clamp_(0, 2**bits - 1)
        value = codes.sub_(zero).mul_(scale)
        return value if kept_rows is None else value * kept_rows[j]

    solved, _ = (
        solve_columns(weight[:, order], upper, assign)
        if fixed_grids
        else solve_columns(weight, upper, assign, refit, every=width)
    )
    restored = torch.empty_like(solved)
    restored[:, order] = solved
    final = scale_rows.T.contiguous()
    # Each refitted scale was rounded to a stored type already; float16 serves when all of them fit it.
    stored = final.half() if bool((final.half().float() == final).all()) else final
    return (
        Grid.encode(
            restored, stored, None if zeros is None else zero_rows.T.contiguous(), bits, group_size, kept
        ),
    )
