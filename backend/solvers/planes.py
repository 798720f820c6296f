"""Scales of bit planes by alternating least squares, and planes with error feedback."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from backend.mixing import mixed
from backend.parameters import GROUPED_ROW
from backend.planes import (
    POWER_BITS,
    Planes,
    TurnedPlanes,
    blocked,
    blocks_of,
    coefficient_values,
    nearest,
    patterns,
)  # fmt: skip
from backend.solvers.columns import solve_columns
from backend.views import Statistics

__all__ = [
    "POWER_BITS",
    "Turn",
    "block_order",
    "blocks_of",
    "fit_planes",
    "in_float16",
    "once_more",
    "patterns",
    "quantize_planes",
    "reordered",
    "row_block",
]  # fmt: skip

# Weights that are fitted at a time, so that the working set stays small on large layers.
_AT_A_TIME = 2**21
_LEAST_STRETCH = 2.0**-8
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
    going = torch.ones((), dtype=torch.bool, device=values.device)
    for round_ in range(rounds + 1):
        table = now @ known.T
        codes = nearest(values, table)
        error = values - table.gather(1, codes)
        if counted is not None:
            error = error * counted
        lost = error.square().sum(dim=1)
        better = (lost < least) & going
        best, least = torch.where(better[:, None], now, best), torch.where(better, lost, least)
        going = better.any()
        # A GPU is not asked: an answer takes it longer than the rounds that it would spare.
        if round_ == rounds or (values.device.type == "cpu" and not bool(going)):
            break
        used = known[codes] if counted is None else known[codes] * counted[..., None]
        normal = (used.mT @ used).double() + ridge
        # The ridge makes every system solvable, and solve_ex does not stop to look.
        step, _ = torch.linalg.solve_ex(normal, (used.mT @ error[..., None]).double())
        now = rounding(now + step[..., 0].float())
    return best


def in_float16(coefficients: Tensor) -> Tensor:
    """Coefficients [blocks, n] float32 rounded to the type they will be stored in."""
    return coefficient_values(coefficients)


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


def once_more(statistics: Statistics) -> Statistics:
    """The Gram matrix as if each input alone had been active once more, as strongly as others are.

    How strongly an input that is active now and then is so at the time is (sum of squares / sum of sizes)**2;
    the median of those that were ever active is added to the diagonal. So no input counts for less than about
    one in so many tokens as there were, however rarely it was seen.
    """
    assert statistics.gram is not None
    squares = statistics.gram.diagonal()
    if statistics.absolutes is None:
        # Behind a rotation no input is rare.
        strengths = squares / max(statistics.tokens, 1)
    else:
        strengths = (squares / statistics.absolutes.clamp(min=1e-300)).square()
    seen = strengths[squares > 0]
    more = seen.median() if len(seen) else 1.0
    return Statistics(statistics.tokens, gram=statistics.gram + more * torch.eye(len(squares)).to(squares))


@dataclass(frozen=True)
class Turn:
    """U W D Vᵀ and back: D evens out the columns, U and V spread what is large in one place over all.

    D = (diag C / diag WᵀW)**(1/4) balances the size of a column with that of its input; signs [out], [in] of
    -1 and 1 make the orthogonal U and V. The output error is that of the turned weight under V D⁻¹ C D⁻¹ Vᵀ.
    """

    row_signs: Tensor
    input_signs: Tensor
    stretch: Tensor

    @classmethod
    def of(cls, weight: Tensor, gram: Tensor, rng: torch.Generator) -> Self:
        """For W [out, in] and the Gram matrix C [in, in] of its inputs."""
        signs = ((torch.randint(0, 2, (count,), generator=rng) * 2 - 1).to(weight) for count in weight.shape)
        sizes = weight.double().square().sum(dim=0).clamp(min=1e-300)
        stretch = (gram.diagonal().double().clamp(min=1e-300) / sizes) ** 0.25
        # Only ratios matter; columns beyond the bounds are dead in weight or input.
        ratio = (stretch / stretch.median()).clamp(_LEAST_STRETCH, 1 / _LEAST_STRETCH)
        return cls(next(signs), next(signs), ratio.half())

    def weight(self, weight: Tensor) -> Tensor:
        """U W D Vᵀ."""
        return mixed(mixed(weight * self.stretch.float(), self.input_signs).T, self.row_signs).T.contiguous()

    def statistics(self, statistics: Statistics) -> Statistics:
        """The Gram matrix V D⁻¹ C D⁻¹ Vᵀ [in, in] float64 of the turned inputs."""
        assert statistics.gram is not None
        stretch, signs = self.stretch.double(), self.input_signs.double()
        gram = statistics.gram.double() / stretch / stretch[:, None]
        turned = mixed(mixed(gram, signs).T, signs)
        return Statistics(statistics.tokens, gram=(turned + turned.T) / 2)

    def part(self, planes: Planes) -> TurnedPlanes:
        """The part that decodes `planes` of the turned weight to W."""
        return TurnedPlanes.around(planes, self.row_signs, self.input_signs, self.stretch)


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
