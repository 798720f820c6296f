"""Choose a level for each linear: the least predicted loss at a number of bytes.

Predicted losses add up over linears, so the best plan for a price per byte takes each linear's best level by
itself; walking the lower convex hulls from the smallest levels up, steepest gain first, visits the plans for
all prices (Lagrangian relaxation: Everett 1963).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.parameters import MOST_RANK, aim_of

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Ladder:
    """Every step of the walk, from all linears at their smallest level.

    start  level of each linear [linears] before the first step
    steps  (linear, its level after the step) in order
    bytes, losses  [steps + 1] totals before the first step and after each
    """

    start: NDArray[np.int64]
    steps: tuple[tuple[int, int], ...]
    bytes: Numbers
    losses: Numbers
    _level_bytes: Numbers
    _level_losses: Numbers

    def plan(self, budget: float) -> list[int]:
        """The level of each linear, of at most `budget` bytes in all; the smallest plan if none fits.

        What the last step that does not fit leaves over goes to later steps that do.
        """
        taken = self.start.copy()
        left = budget - self.bytes[0]
        blocked: set[int] = set()
        for linear, level in self.steps:
            price = self._level_bytes[linear, level] - self._level_bytes[linear, taken[linear]]
            if linear in blocked or price > left:
                # A later step of a linear stands on the earlier ones.
                blocked.add(linear)
                continue
            taken[linear] = level
            left -= price
        return [int(level) for level in taken]

    def totals(self, plan: Sequence[int]) -> tuple[float, float]:
        """(bytes, loss) of a plan."""
        rows = np.arange(len(plan))
        chosen = np.asarray(plan)
        return float(self._level_bytes[rows, chosen].sum()), float(self._level_losses[rows, chosen].sum())


def ladder(level_bytes: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> Ladder:
    """The walk for [linears, levels] bytes and predicted losses."""
    sizes, costs = np.asarray(level_bytes, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    steps: list[tuple[float, int, int, int]] = []
    start = np.zeros(len(sizes), dtype=np.int64)
    for linear, (prices, values) in enumerate(zip(sizes, costs, strict=True)):
        hull = lower_hull(prices, values)
        start[linear] = hull[0]
        for place, (before, after) in enumerate(pairwise(hull)):
            gain = (values[before] - values[after]) / (prices[after] - prices[before])
            steps.append((-gain, place, linear, after))
    steps.sort()
    order = tuple((linear, level) for _, _, linear, level in steps)
    rows = np.arange(len(sizes))
    totals, losses_ = [sizes[rows, start].sum()], [costs[rows, start].sum()]
    at = start.copy()
    for linear, level in order:
        totals.append(totals[-1] + sizes[linear, level] - sizes[linear, at[linear]])
        losses_.append(losses_[-1] + costs[linear, level] - costs[linear, at[linear]])
        at[linear] = level
    return Ladder(start, order, np.array(totals), np.array(losses_), sizes, costs)


def lower_hull(prices: Numbers, values: Numbers) -> list[int]:
    """Positions on the lower convex hull of (price, value), by price, falling in value."""
    hull: list[int] = []
    for position in np.lexsort((values, prices)):
        at = int(position)
        if hull and values[at] >= values[hull[-1]]:
            continue
        while len(hull) > 1 and _turns_up(prices, values, hull[-2], hull[-1], at):
            hull.pop()
        # At one price only the best value stays, and it comes first.
        if hull and prices[at] == prices[hull[-1]]:
            continue
        hull.append(at)
    return hull


def _turns_up(prices: Numbers, values: Numbers, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return bool(
        (values[b] - values[a]) * (prices[c] - prices[a]) >= (values[c] - values[a]) * (prices[b] - prices[a])
    )


def mean_of(params: Mapping[str, Any]) -> float:
    """The mean that parameters ask for, of what they differ `over`."""
    return float(params[aim_of(params["over"])])


def around(params: Mapping[str, Any]) -> tuple[float, ...]:
    """Whole numbers of bits at most `reach` above and below a mean of `bits`; or `over` sparsity, that many
    tenths above and below the mean, which is one of them; or over rank, that many halves of it likewise."""
    steps = range(-params["reach"], params["reach"] + 1)
    if params["over"] == "sparsity":
        values = [round(params["sparsity"] + tenth / 10, 6) for tenth in steps]
        return tuple(value for value in values if 0 < value < 1)
    if params["over"] == "rank":
        ranks = {round(params["rank"] * (1 + half / 2)) for half in steps}
        return tuple(sorted(rank for rank in ranks if 0 <= rank <= MOST_RANK))
    low, high = math.floor(params["bits"]) - params["reach"], math.ceil(params["bits"]) + params["reach"]
    return tuple(range(max(low, 2), min(high, 8) + 1))


def budget_of_mean(level_bytes: Sequence[Sequence[float]], values: Sequence[float], mean: float) -> float:
    """Bytes when every linear has the mean value; between two values the bytes are those on the line.

    The first levels are those of the values; others may come after them.
    """
    sizes = np.asarray(level_bytes, dtype=np.float64)[:, : len(values)]
    return float(sum(np.interp(mean, values, row) for row in sizes))


def nearly_uniform(
    level_bytes: Sequence[Sequence[int]], values: Sequence[float], mean: float, order: Sequence[int]
) -> list[int]:
    """The level of each linear when all have the value below the mean, and the first of `order` that the
    bytes of the mean still pay for have the next one; all have the mean where that is a value."""
    if mean in values:
        return [list(values).index(mean)] * len(level_bytes)
    left = budget_of_mean(level_bytes, values, mean)
    low = max(at for at, value in enumerate(values) if value <= mean)
    plan = [low] * len(level_bytes)
    left -= sum(sizes[low] for sizes in level_bytes)
    for linear in order if low + 1 < len(values) else ():
        price = level_bytes[linear][low + 1] - level_bytes[linear][low]
        if price <= left:
            plan[linear] = low + 1
            left -= price
    return plan


def by_gain(linears: Sequence[tuple[Sequence[float], Callable[[int], int]]], budget: int) -> list[int]:
    """How many units each linear gets, of (gain of each further unit, units -> bytes), within the budget.

    Gains of a linear fall, so taking the largest a byte is the best that so many bytes can do; a linear whose
    next unit does not fit gets no more, and what is left over goes to others.
    """
    steps = [
        (-gain / (price(len(gains)) / len(gains)), number, linear)
        for linear, (gains, price) in enumerate(linears)
        for number, gain in enumerate(gains)
        if gain > 0
    ]
    units = [0] * len(linears)
    left = budget - sum(price(0) for _, price in linears)
    for _, number, linear in sorted(steps):
        price = linears[linear][1]
        more = price(number + 1) - price(number)
        if units[linear] == number and more <= left:
            units[linear] += 1
            left -= more
    return units


def exact(
    level_bytes: Sequence[Sequence[int]],
    losses: Sequence[Sequence[float]],
    budget: float,
    most: int = 20_000,
) -> list[int]:
    """The level of each linear with the least sum of [linears, levels] losses within a budget of bytes.

    Dynamic programming over what is left above the smallest levels, in units of the prices' greatest common
    divisor. Where that makes more than `most` units, prices are rounded up to `most` of them: then the plan
    is within the budget still, and the best but for the rounding. The smallest plan if none fits.
    """
    sizes, costs = np.asarray(level_bytes, dtype=np.int64), np.asarray(losses, dtype=np.float64)
    prices = sizes - sizes.min(axis=1, keepdims=True)
    left = math.floor(budget) - int(sizes.min(axis=1).sum())
    unit = max(int(np.gcd.reduce(prices, axis=None)), -(-left // most), 1)
    prices, units = -(-prices // unit), max(left // unit, 0)
    best = np.zeros(units + 1)
    taken = np.zeros((len(sizes), units + 1), dtype=np.int16)
    for linear, (own, values) in enumerate(zip(prices, costs, strict=True)):
        found = np.full((len(own), units + 1), np.inf)
        for level, price in enumerate(own):
            if price <= units:
                found[level, price:] = best[: units + 1 - price] + values[level]
        taken[linear] = found.argmin(axis=0)
        best = found.min(axis=0)
    plan, at = [], units
    for linear in reversed(range(len(sizes))):
        plan.append(int(taken[linear, at]))
        at -= int(prices[linear, plan[-1]])
    return plan[::-1]
