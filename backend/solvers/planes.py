"""Scales of bit planes by alternating least squares, and planes with error feedback."""

from collections.abc import Callable

import torch
from torch import Tensor

from backend.parameters import GROUPED_ROW
from backend.planes import (
    POWER_BITS,
    Planes,
    blocked,
    blocks_of,
    nearest,
    patterns,
    stored_coefficients,
)  # fmt: skip
from backend.solvers.columns import solve_columns
from backend.views import Statistics

__all__ = [
    "POWER_BITS", "block_order", "blocks_of", "fit_planes", "in_float16", "patterns", "quantize_planes",
    "reordered", "row_block",
]  # fmt: skip

# Weights that are fitted at a time, so that the working set stays small on large layers.
_AT_A_TIME = 2**21
# Of the number of weights: keeps a plane that no weight tells apart where it is.
_RIDGE = 1e-6

Fit = Callable[[Tensor, Tensor | None], Tensor]
Rounding = Callable[[Tensor], Tensor]


def fit_planes(
    values: Tensor,
    counted: Tensor | None,
    start: Tensor,
    known: Tensor,
    rounds: int,
    rounding: Rounding,
) -> Tensor:
    """Coefficients [blocks, n] for values [blocks, weights] from `start`, as `rounding` makes them stored.

    known    what each code adds up [codes, n]
    counted  which values matter, or None for all
    Each round gives every value its nearest level and then solves for the coefficients given the codes, as a
    step away from the ones before, so that a singular system leaves alone what it does not determine. The
    best coefficients of all rounds are returned, the start among them.
    """
    size = max(1, _AT_A_TIME // max(values.shape[1], 1))
    if len(values) > size:
        pieces = [
            fit_planes(
                values[at : at + size], None if counted is None else counted[at : at + size],
                start[at : at + size], known, rounds, rounding,
            )
            for at in range(0, len(values), size)
        ]  # fmt: skip
        return torch.cat(pieces)
    ridge = _RIDGE * values.shape[1] * torch.eye(known.shape[1], dtype=torch.float64, device=values.device)
    now = best = rounding(start)
    least = values.new_full((len(values),), torch.inf)
    for round_ in range(rounds + 1):
        table = now @ known.T
        codes = nearest(values, table)
        error = values - table.gather(1, codes)
        if counted is not None:
            error = error * counted
        lost = error.square().sum(dim=1)
        better = lost < least
        best, least = torch.where(better[:, None], now, best), torch.where(better, lost, least)
        if round_ == rounds or not bool(better.any()):
            break
        used = known[codes] if counted is None else known[codes] * counted[..., None]
        normal = (used.mT @ used).double() + ridge
        # The ridge makes every system solvable, and solve_ex does not stop to look.
        step, _ = torch.linalg.solve_ex(normal, (used.mT @ error[..., None]).double())
        now = rounding(now + step[..., 0].float())
    return best


def in_float16(coefficients: Tensor) -> Tensor:
    """Coefficients [blocks, n] float32 rounded to the type they will be stored in."""
    return stored_coefficients(coefficients).float()


def row_block(inputs: int, group_size: int) -> tuple[int, int]:
    """Rows and inputs of a block that is a group of inputs of one row."""
    return 1, inputs if group_size == GROUPED_ROW else group_size


def block_order(statistics: Statistics, wide: int) -> Tensor:
    """Inputs in blocks of `wide`, by falling sum of their Hessian diagonal; what fills no block is last."""
    assert statistics.gram is not None
    diagonal = statistics.gram.diagonal()
    full = len(diagonal) // wide * wide
    order = diagonal[:full].view(-1, wide).sum(dim=1).argsort(descending=True, stable=True)
    places = torch.arange(len(diagonal), device=diagonal.device)
    return torch.cat([places[:full].view(-1, wide)[order].reshape(-1), places[full:]])


def reordered(statistics: Statistics, wide: int) -> Statistics:
    """The Gram matrix alone in the order of `block_order`, once for all linears that share it."""

    def make() -> Statistics:
        assert statistics.gram is not None
        order = block_order(statistics, wide)
        return Statistics(statistics.tokens, gram=statistics.gram[order][:, order])

    return statistics.once(("reordered", wide), make)


def quantize_planes(
    weight: Tensor,
    upper: Tensor | None,
    fit: Fit,
    known: Tensor,
    block: tuple[int, int],
    *,
    signed: bool,
    offset: bool,
    kept: Tensor | None = None,
    terms: int = 0,
    order: Tensor | None = None,
    frozen: bool = False,
) -> Planes:
    """Planes part of `weight` [out, in] float32 with blocks (tall, wide); outside `kept` weights are zero.

    fit     coefficients [blocks, n] of values [blocks, weights] and the mask of those that count
    known   what each code adds up [codes, n]
    upper   root of the inverse Hessian in the order of columns, or None to do without error feedback
    order   in which columns are gone over; columns of a block stay together
    frozen  keeps the codes chosen when a block was fitted, although its columns move on
    A block is fitted on its columns as updated so far. Blocks as wide as the row are fitted beforehand.
    """
    rows, inputs = weight.shape
    tall, wide = block
    if upper is None:
        counted = None if kept is None else blocked(kept.float(), block)
        found = fit(blocked(weight, block), _inside(rows, inputs, block, counted, weight.device))
        return Planes.encode(weight, found, block, signed, offset, kept, terms)
    down = -(-rows // tall)
    places = torch.arange(inputs, device=weight.device) if order is None else order
    numbers = places.tolist()
    coefficients = weight.new_zeros((blocks_of((rows, inputs), block) // down, down, known.shape[1]))
    kept_rows = None if kept is None else kept.T[places].contiguous()
    tables: dict[int, Tensor] = {}
    held: dict[int, Tensor] = {}

    def prepare(start: int, columns: Tensor) -> None:
        width = columns.shape[1]
        mask = (
            None if kept_rows is None else blocked(kept_rows[start : start + width].T.float(), (tall, width))
        )
        values = blocked(columns, (tall, width))
        found = fit(values, _inside(rows, width, (tall, width), mask, weight.device))
        coefficients[numbers[start] // wide] = found
        tables[0] = found @ known.T
        if frozen:
            chosen = tables[0].gather(1, nearest(values, tables[0]))
            made = chosen.view(down * tall, width)[:rows].T
            held.update({start + k: made[k] for k in range(width)})

    def assign(j: int, column: Tensor) -> Tensor:
        if frozen:
            value = held.pop(j)
        else:
            values = blocked(column[:, None], (tall, 1))
            value = tables[0].gather(1, nearest(values, tables[0])).view(-1)[:rows]
        return value if kept_rows is None else value * kept_rows[j]

    whole = wide >= inputs
    if whole:
        prepare(0, weight[:, places])
    solved, _ = solve_columns(
        weight[:, places], upper, assign, None if whole else prepare, **({} if whole else {"every": wide})
    )
    restored = torch.empty_like(solved)
    restored[:, places] = solved
    found = coefficients.transpose(0, 1).reshape(-1, known.shape[1])
    return Planes.encode(restored, found, block, signed, offset, kept, terms)


def _inside(
    rows: int, width: int, block: tuple[int, int], counted: Tensor | None, device: torch.device
) -> Tensor | None:
    """The mask `counted` in blocks, or one that leaves out what fills up blocks at the edges, or None."""
    if counted is not None or not (rows % block[0] or width % block[1]):
        return counted
    return blocked(torch.ones(rows, width, device=device), block)
