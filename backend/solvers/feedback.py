"""Uniform quantization with error feedback: columns go onto grids in turn, later ones absorb the error."""

import torch
from torch import Tensor

from backend.coded import Grid, groups_of
from backend.parameters import GROUPED_ROW
from backend.solvers.columns import activation_order, inverse_root, solve_columns
from backend.solvers.grids import fit_grid, fit_values
from backend.views import Statistics


def quantize_columns(
    weight: Tensor,
    statistics: Statistics,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    damping: float,
    act_order: bool = False,
    kept: Tensor | None = None,
) -> Grid:
    """Grid part of `weight` [out, in] float32; entries outside `kept` are fixed to zero in their turn.

    A group's grid is fitted on its columns as updated so far; with `act_order` all are fitted beforehand.
    """
    rows, inputs = weight.shape
    groups = groups_of(inputs, group_size)
    width = inputs // groups
    scales, zeros = fit_grid(weight.view(rows, groups, width), bits, symmetric)
    order = activation_order(statistics) if act_order else torch.arange(inputs, device=weight.device)
    upper = inverse_root(statistics, damping, order if act_order else None)
    fixed_grids = act_order or group_size == GROUPED_ROW
    scale_rows = scales.float().T.contiguous()
    middle = torch.full_like(scale_rows, float(2 ** (bits - 1)))
    zero_rows = middle if zeros is None else zeros.T.contiguous()
    kept_rows = None if kept is None else kept.T[order].contiguous()
    groups_of_columns = (order // width).tolist()
    scales_by_group, zeros_by_group = scale_rows.unbind(), zero_rows.unbind()

    def refit(start: int, columns: Tensor) -> None:
        group = start // width
        scale, zero = fit_values(columns[:, None, :], bits, symmetric)
        scale_rows[group] = scale[:, 0]
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
    return Grid.encode(
        restored,
        _shortest(scale_rows.T.contiguous()),
        None if zeros is None else zero_rows.T.contiguous(),
        bits,
        group_size,
        kept,
    )


def quantize_whole_columns(
    weight: Tensor,
    statistics: Statistics,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    damping: float,
    act_order: bool = False,
    kept: Tensor | None = None,
) -> Grid:
    """The same with groups of `group_size` outputs in each column, fitted on the column when it is reached.

    No grid outlives its column, so any order of columns may use grids fitted on what is quantized.
    """
    rows, inputs = weight.shape
    order = activation_order(statistics) if act_order else torch.arange(inputs, device=weight.device)
    upper = inverse_root(statistics, damping, order if act_order else None)
    kept_rows = None if kept is None else kept.T[order].contiguous()
    scales = torch.empty(inputs, rows // group_size, device=weight.device)
    zeros = torch.empty_like(scales)
    places = order.tolist()

    def assign(j: int, column: Tensor) -> Tensor:
        grouped = column.view(-1, group_size)
        if kept_rows is not None:
            grouped = grouped * kept_rows[j].view(-1, group_size)
        scale, zero = fit_values(grouped, bits, symmetric)
        shift = torch.full_like(scale, float(2 ** (bits - 1))) if zero is None else zero
        scales[places[j]], zeros[places[j]] = scale, shift
        codes = (grouped / scale[:, None]).round_().add_(shift[:, None]).clamp_(0, 2**bits - 1)
        value = codes.sub_(shift[:, None]).mul_(scale[:, None]).view(-1)
        return value if kept_rows is None else value * kept_rows[j]

    solved, _ = solve_columns(weight[:, order], upper, assign)
    restored = torch.empty_like(solved)
    restored[:, order] = solved
    return Grid.encode(
        restored, _shortest(scales), None if symmetric else zeros, bits, group_size, kept, transposed=True
    )


def _shortest(scales: Tensor) -> Tensor:
    # Each was rounded to a stored type already; float16 serves when all of them fit it.
    half = scales.half()
    return half if bool((half.float() == scales).all()) else scales
