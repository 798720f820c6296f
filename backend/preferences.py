"""Strengths of models from people's votes on pairs of answers (Bradley and Terry, Biometrika 39, 1952).

    P(i is preferred to j) = 1 / (1 + exp(s_j - s_i))

A tie is half a win for each side; a vote that both answers are bad says nothing about which is better and is
counted apart. Each model also plays one imaginary tie against a model of strength 0: without it, one that won
or lost every pair would be infinitely strong or weak.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHOICES = ("left", "right", "tie", "bad", "same")
# From so many voters on people are resampled, whose votes belong together; below it single votes are.
FEW_VOTERS = 8
_RESAMPLES = 1000
_STEPS = 60
_NORMAL_95 = 1.959964
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Ballot:
    """One vote: models by number, and one of CHOICES (`same`: the answers are equal, nobody was asked)."""

    voter: str
    left: int
    right: int
    choice: str


@dataclass(frozen=True)
class Standing:
    """A model's strength against the reference (log odds) with its 95 % interval, and its pairs."""

    strength: float
    low: float
    high: float
    won: int
    lost: int
    tied: int
    bad: int


def standings(ballots: Sequence[Ballot], models: int, reference: int = 0, seed: int = 0) -> list[Standing]:
    """How the models stand, in their order.

    The interval is the wider of two: the bootstrap's, which knows how much people differ, and that of the
    likelihood's curvature, which knows how little a few votes that all agree can tell.
    """
    ballots = [ballot for ballot in ballots if ballot.choice in CHOICES]
    total = wins(ballots, models)
    found = strengths(total)
    against = found - found[reference]
    drawn = strengths(_resampled(ballots, models, seed))
    drawn = drawn - drawn[:, [reference]]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    wide = _NORMAL_95 * _errors(total, found, reference)
    low, high = np.minimum(low, against - wide), np.maximum(high, against + wide)
    return [
        Standing(float(against[n]), float(low[n]), float(high[n]), *_counted(ballots, n))
        for n in range(models)
    ]


def wins(ballots: Sequence[Ballot], models: int) -> Numbers:
    """[models, models]: how often the row was preferred to the column."""
    table = np.zeros((models, models))
    for ballot in ballots:
        if ballot.choice == "bad":
            continue
        share = {"left": 1.0, "right": 0.0}.get(ballot.choice, 0.5)
        table[ballot.left, ballot.right] += share
        table[ballot.right, ballot.left] += 1 - share
    return table


def strengths(table: Numbers) -> Numbers:
    """The most likely strengths [..., models] for wins [..., models, models], by Newton's method."""
    found = np.zeros(table.shape[:-1])
    played = table + table.swapaxes(-1, -2)
    for _ in range(_STEPS):
        chance = _chance(found)
        slope = table.sum(-1) - (played * chance).sum(-1) + 0.5 - _logistic(found)
        step = np.linalg.solve(_curvature(played, chance, found), slope[..., None])[..., 0]
        # A whole step from far away can overshoot; the likelihood has one top, so shorter ones arrive too.
        found = found + np.clip(step, -1, 1)
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return found


def _chance(found: Numbers) -> Numbers:
    return _logistic(found[..., :, None] - found[..., None, :])


def _logistic(odds: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-odds))


def _curvature(played: Numbers, chance: Numbers, found: Numbers) -> Numbers:
    """Minus the second derivatives of the log likelihood [..., models, models]."""
    spread = played * chance * (1 - chance)
    own = _logistic(found)
    diagonal = spread.sum(-1) + own * (1 - own)
    return diagonal[..., :, None] * np.eye(played.shape[-1]) - spread


def _errors(table: Numbers, found: Numbers, reference: int) -> Numbers:
    """Standard errors of the strengths against the reference."""
    covariance = np.linalg.inv(_curvature(table + table.T, _chance(found), found))
    own = np.diag(covariance)
    return np.sqrt(np.maximum(own + own[reference] - 2 * covariance[reference], 0))


def _resampled(ballots: Sequence[Ballot], models: int, seed: int) -> Numbers:
    """Tables of wins [resamples, models, models] that other people, or other votes, might have given."""
    voters = sorted({ballot.voter for ballot in ballots})
    if len(voters) >= FEW_VOTERS:
        units = [wins([ballot for ballot in ballots if ballot.voter == voter], models) for voter in voters]
    else:
        units = [wins([ballot], models) for ballot in ballots]
    if not units:
        return np.zeros((1, models, models))
    generator = np.random.default_rng(seed)
    times = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), size=_RESAMPLES)
    return np.tensordot(times.astype(float), np.stack(units), axes=1)


def _counted(ballots: Sequence[Ballot], model: int) -> tuple[int, int, int, int]:
    won = lost = tied = bad = 0
    for ballot in ballots:
        if model not in (ballot.left, ballot.right):
            continue
        mine = "left" if ballot.left == model else "right"
        won += ballot.choice == mine
        lost += ballot.choice in ("left", "right") and ballot.choice != mine
        tied += ballot.choice in ("tie", "same")
        bad += ballot.choice == "bad"
    return won, lost, tied, bad
