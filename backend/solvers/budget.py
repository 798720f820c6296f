"""Choose a level for each linear: the least predicted loss at a number of bytes.

Predicted losses add up over linears, so the best plan for a price per byte takes each linear's best level by
itself; walking the lower convex hulls from the smallest levels up, steepest gain first, visits the plans for
all prices (Lagrangian relaxation: Everett 1963).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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
