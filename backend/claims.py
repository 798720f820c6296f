"""A method's claim on one model: the two recipes that test it, and the verdict on what they measured.

    d_i = loss of the better recipe - loss of the worse one on window i  [windows], in nats per token
    mean d ± t sd(d) / sqrt(windows),  t of Student's 95 % interval: 2.36 for 8 windows, 2.07 for 24

Both runs score the same windows, so what makes a window hard for every model cancels in the difference.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from backend.recipe import Calibration, Evaluation, Recipe, parse_recipe
from backend.registry import Claim
from backend.solvers.student import reach as beyond

Word = Literal["holds", "does not hold", "within noise", "broken", "baseline broken", "not tested"]


@dataclass(frozen=True)
class Outcome:
    """What a finished run measured: the mean of a metric on each window, packed bytes, why it is broken."""

    windows: tuple[float, ...]
    packed: int
    broken: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The word; where both runs work, the mean difference (below zero: as claimed) and its error."""

    word: Word
    difference: float | None = None
    stderr: float | None = None


def series_name(metric: str) -> str:
    """The series that holds a metric's mean on each window."""
    return f"{metric}.windows"


def recipes(
    claim: Claim, model: str, calibration: Calibration, evaluation: Evaluation, seed: int = 0
) -> tuple[Recipe, Recipe]:
    """(better, worse): the two runs that test a claim on a model; its metric is measured in any case."""
    metrics = dict.fromkeys([*evaluation.metrics, claim.metric.split(".")[0]])
    shared = {
        "model": model,
        "calibration": calibration.model_dump(mode="json"),
        "evaluation": {**evaluation.model_dump(mode="json"), "metrics": list(metrics)},
        "seed": seed,
    }
    return (
        parse_recipe({**shared, "stages": list(claim.better)}),
        parse_recipe({**shared, "stages": list(claim.worse)}),
    )


def verdict(better: Outcome | None, worse: Outcome | None, more_bytes: bool = False) -> Verdict:
    """Whether `better` loses less beyond the 95 % interval, with no more bytes unless `more_bytes`.

    One window has no standard error, so nothing is beyond it. A run that is broken shows nothing but itself:
    it cannot be the better one, and doing better than it is no merit. ValueError for different numbers of
    windows.
    """
    if better is None or worse is None:
        return Verdict("not tested")
    if better.broken:
        return Verdict("broken")
    if worse.broken:
        return Verdict("baseline broken")
    dear = better.packed > worse.packed and not more_bytes
    apart = [mine - theirs for mine, theirs in zip(better.windows, worse.windows, strict=True)]
    mean = statistics.fmean(apart)
    stderr = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else None
    reach = math.inf if stderr is None else beyond(len(apart)) * stderr
    if dear or mean > reach:
        return Verdict("does not hold", mean, stderr)
    return Verdict("holds" if mean < -reach else "within noise", mean, stderr)
