"""Search for a plan by switching levels between linears of one size, so that no child costs more bytes.

One parent, `offspring` children a generation. A flip takes a level from one linear and gives it to another
whose levels cost the same; where levels are ways to store and not steps of one number, it gives both linears
other ways that use up what bytes there are. Linears that go together, as those of an attention do, may be
left out, taken back or change places with others like them. A child has min(U{1..3}, U{1..3}) flips.
Children are compared on few windows, the best of them on more, and the last few together with the parent, who
is replaced by the best of those.
(Sieberling et al., EvoPress, arXiv 2410.14649, section 3.)
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backend.solvers.bars import bars
from backend.views import NOTHING_KEPT, Kept

# The loss of a plan on the windows of those numbers.
Loss = Callable[[Sequence[int], Sequence[int]], float]
# How often a child that is there already is drawn anew.
_ATTEMPTS = 20
_MOST_FLIPS = 3
# Of the flips where whole halves of blocks may be left out, so many are about these.
_DEPTH_SHARE = 0.25
# What a run's card calls the losses of a search.
BEST = "KL of each generation's best, nats a token"


@dataclass(frozen=True)
class Selection:
    """One round of a generation: how many windows tell the children apart, and how many of them survive."""

    windows: int
    survivors: int


@dataclass(frozen=True)
class Evolved:
    """The last parent, the position of a level for each linear; and the loss of each generation's best in the
    last round."""

    plan: list[int]
    losses: list[float]


def evolve(
    start: Sequence[int],
    level_bytes: Sequence[Sequence[int]],
    loss: Loss,
    *,
    windows: int,
    generations: int,
    offspring: int,
    rounds: Sequence[Selection],
    rng: torch.Generator,
    told: Callable[[int, Sequence[int], Sequence[float]], None] = lambda generation, plan, losses: None,
    kept: Kept = NOTHING_KEPT,
    halves: Sequence[Sequence[int]] = (),
    budget: float = 0,
) -> Evolved:
    """The last parent after so many generations; no plan on the way costs more than `start`, or than `budget`
    bytes where that is more.

    level_bytes  [linears][levels]; linears of equal ones may switch a level
    windows      how many there are; each round draws its own, the same ones for all children
    told         (generation, parent, losses so far)
    kept         where a search that was stopped goes on, as if it had not been
    halves       positions of linears that are left out together; each has a level without a byte
    """
    parent, losses = [int(level) for level in start], []
    groups: dict[tuple[int, ...], list[int]] = {}
    for linear, sizes in enumerate(level_bytes):
        if any(sizes):
            groups.setdefault(tuple(sizes), []).append(linear)
    most = max(_bytes(parent, level_bytes), int(budget))
    if (state := kept.load()) is not None:
        parent, losses = state["parent"].tolist(), state["losses"].tolist()
        rng.set_state(state["rng"].cpu())
        told(len(losses) - 1, parent, losses)
    for generation in range(len(losses), generations):
        spare = most - _bytes(parent, level_bytes)
        children = _children(parent, groups, halves, level_bytes, spare, offspring, rng)
        # Where levels are not evenly spaced, two linears may switch and cost more.
        children = [child for child in children if _bytes(child, level_bytes) <= most]
        if not children:
            break
        best = float("nan")
        for number, chosen in enumerate(rounds):
            last = number == len(rounds) - 1
            rivals = [*children, parent] if last else children
            drawn = torch.randperm(windows, generator=rng)[: chosen.windows].tolist()
            lost = [_finite(loss(plan, drawn)) for plan in rivals]
            sizes = [_bytes(plan, level_bytes) for plan in rivals]
            # At equal losses the smaller one goes on: what does nothing takes no bytes from others. At equal
            # bytes as well the parent goes last, so that what makes no difference may drift.
            order = sorted(range(len(rivals)), key=lambda at: (lost[at], sizes[at]))
            children = [rivals[at] for at in order[: 1 if last else chosen.survivors]]
            best = lost[order[0]]
        parent = children[0]
        losses.append(best)
        numbers = torch.tensor(losses, dtype=torch.float64)
        kept.save({"parent": torch.tensor(parent), "losses": numbers, "rng": rng.get_state()})
        told(generation, parent, losses)
    return Evolved(parent, losses)


def words(losses: Sequence[float], generations: int) -> str:
    """How far a search is, with its curve, for the line of a run under way."""
    return f"KL {losses[-1]:.4g} {bars(losses)} generation {len(losses)} of {generations}"


def flips(rng: torch.Generator) -> int:
    """How many flips a child has: 1, 2 or 3 with probabilities 5/9, 3/9, 1/9."""
    return int(torch.randint(1, _MOST_FLIPS + 1, (2,), generator=rng).min())


def _children(
    parent: list[int],
    groups: Mapping[tuple[int, ...], list[int]],
    halves: Sequence[Sequence[int]],
    level_bytes: Sequence[Sequence[int]],
    spare: int,
    offspring: int,
    rng: torch.Generator,
) -> list[list[int]]:
    """Up to `offspring` plans that differ from the parent and from each other."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(_ATTEMPTS * offspring):
        child = _child(parent, groups, halves, level_bytes, spare, rng)
        if child != parent:
            found[tuple(child)] = None
        if len(found) == offspring:
            break
    return [list(child) for child in found]


def _child(
    parent: list[int],
    groups: Mapping[tuple[int, ...], list[int]],
    halves: Sequence[Sequence[int]],
    level_bytes: Sequence[Sequence[int]],
    spare: int,
    rng: torch.Generator,
) -> list[int]:
    """The parent after some flips; `spare` bytes may be added."""
    child = list(parent)
    sizes = list(groups)
    shares = torch.tensor([len(groups[size]) for size in sizes], dtype=torch.float64)
    for _ in range(flips(rng)):
        if halves and float(torch.rand((), generator=rng)) < _DEPTH_SHARE:
            spare = _deepen(child, halves, level_bytes, spare, rng)
            continue
        size = sizes[int(torch.multinomial(shares, 1, generator=rng))]
        group, levels = groups[size], len(size)
        if list(size) != sorted(size):
            spare = _switch(child, group, size, spare, rng)
            continue
        lower = [linear for linear in group if child[linear] > 0]
        higher = [linear for linear in group if child[linear] < levels - 1]
        if not lower or not higher:
            continue
        down = lower[int(torch.randint(len(lower), (), generator=rng))]
        up = higher[int(torch.randint(len(higher), (), generator=rng))]
        if down != up:
            child[down] -= 1
            child[up] += 1
    return child


def _switch(
    child: list[int], group: Sequence[int], sizes: Sequence[int], spare: int, rng: torch.Generator
) -> int:
    """Give two linears of a group other levels that take the bytes of theirs and of `spare`, or the least
    step less; what is then to spare."""
    if len(group) < 2:
        return spare
    first, second = (group[at] for at in torch.randperm(len(group), generator=rng)[:2].tolist())
    now = child[first], child[second]
    limit = sizes[now[0]] + sizes[now[1]] + spare
    prices = sorted(set(sizes))
    least = min((b - a for a, b in itertools.pairwise(prices)), default=1)
    pairs = [
        pair
        for pair in itertools.product(range(len(sizes)), repeat=2)
        if pair != now and limit - least < sizes[pair[0]] + sizes[pair[1]] <= limit
    ]
    if not pairs:
        return spare
    child[first], child[second] = pairs[int(torch.randint(len(pairs), (), generator=rng))]
    return limit - sizes[child[first]] - sizes[child[second]]


def _deepen(
    child: list[int],
    halves: Sequence[Sequence[int]],
    level_bytes: Sequence[Sequence[int]],
    spare: int,
    rng: torch.Generator,
) -> int:
    """Leave out a half, take one back, or let one of either kind change places; what is then to spare.

    What leaving out frees goes to linears drawn one by one; what taking back costs comes from such.
    """

    def price(linear: int) -> int:
        return level_bytes[linear][child[linear]]

    def drawn(some: Sequence[Any]) -> Any:
        return some[int(torch.randint(len(some), (), generator=rng))]

    stay = [half for half in halves if any(price(linear) for linear in half)]
    out = [half for half in halves if half not in stay]
    moves = [*(["out"] if len(stay) > 1 else []), *(["back", "places"] if out and stay else [])]
    if not moves:
        return spare
    move = drawn(moves)
    if move == "places":
        first = drawn(out)
        alike = [half for half in stay if _shapes(half, level_bytes) == _shapes(first, level_bytes)]
        for one, other in zip(first, drawn(alike), strict=True) if alike else ():
            child[one], child[other] = child[other], child[one]
        return spare
    half = drawn(stay if move == "out" else out)
    for linear in half:
        spare += price(linear)
        sizes = level_bytes[linear]
        child[linear] = sizes.index(0 if move == "out" else min(size for size in sizes if size))
        spare -= price(linear)
    others = [linear for linear in range(len(child)) if linear not in half and price(linear)]
    while others:
        linear = drawn(others)
        sizes, now = level_bytes[linear], price(linear)
        if spare < 0:
            steps = sorted((size for size in sizes if 0 < size < now), reverse=True)
        else:
            steps = sorted(size for size in sizes if now < size <= now + spare)
        if not steps:
            others.remove(linear)
            continue
        spare += now - steps[0]
        child[linear] = sizes.index(steps[0])
    return spare


def _shapes(half: Sequence[int], level_bytes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(level_bytes[linear]) for linear in half]


def _bytes(plan: Sequence[int], level_bytes: Sequence[Sequence[int]]) -> int:
    return sum(sizes[level] for sizes, level in zip(level_bytes, plan, strict=True))


def _finite(loss: float) -> float:
    return loss if loss == loss else float("inf")
