"""What the runs before teach about the time of the next one."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from backend.effort import rate_of, work_units
from backend.errors import UserError
from backend.facts import ModelFacts, facts
from backend.host import Host
from backend.recipe import Recipe, parse_recipe
from backend.shrink import shrunk


@dataclass(frozen=True)
class PastRun:
    """A finished run: what it was, seconds of each phase, and peak memory in bytes where it is known."""

    recipe: Recipe
    layout: ModelFacts
    seconds: Mapping[str, float]
    peak: float | None

    @cached_property
    def units(self) -> list[tuple[str, str, float]]:
        """As of `work_units`."""
        return work_units(self.recipe, self.layout)

    @cached_property
    def total(self) -> float:
        return sum(self.seconds.values())

    @cached_property
    def rates(self) -> list[tuple[str, float]]:
        """(unit, seconds per unit) of each phase that does one kind of work alone."""
        alone: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for phase, unit, amount in self.units:
            alone[phase].append((unit, amount))
        return [
            (work[0][0], self.seconds[phase] / work[0][1])
            for phase, work in alone.items()
            if phase in self.seconds and len(work) == 1 and work[0][0] != "fixed" and work[0][1] > 0
        ]


def past_runs(history: pd.DataFrame | None, host: Host) -> list[PastRun]:
    """The runs of a history with one row per run and phase: run_id, recipe (JSON), phase, seconds, and
    peak_bytes where it was kept."""
    if history is None or history.empty:
        return []
    layouts: dict[str, ModelFacts | None] = {}
    found = []
    for _, phases in history.groupby("run_id"):
        # A model that has gone, or a recipe of another version: it teaches nothing.
        try:
            recipe = parse_recipe(str(phases["recipe"].iloc[0]))
            if recipe.model not in layouts:
                layouts[recipe.model] = _facts(recipe.model, host)
            whole = layouts[recipe.model]
            layout = whole and shrunk(whole, recipe.stages)
        except (UserError, KeyError):
            continue
        if layout is None:
            continue
        taken = {
            str(phase).removeprefix("compress."): float(value)
            for phase, value in zip(phases["phase"], phases["seconds"], strict=True)
        }
        peak = phases["peak_bytes"].iloc[0] if "peak_bytes" in phases else None
        found.append(PastRun(recipe, layout, taken, float(peak) if peak and peak == peak else None))
    return found


def _facts(model: str, host: Host) -> ModelFacts | None:
    # Asked once for all its runs: one that is gone from here costs a question to the hub.
    try:
        return facts(model, host)
    except UserError:
        return None


def learned_rates(past: Sequence[PastRun], first: Mapping[str, float]) -> dict[str, float]:
    """Seconds per unit of work (see `rate_of`): the median of the runs that did such work, each method apart.

    What no run did is scaled from its `first` rate by as much as work of its kind was off, or else all work:
    that is the machine's own pace.
    """
    seen: dict[str, list[float]] = defaultdict(list)
    for run in past:
        for unit, rate in run.rates:
            seen[unit].append(rate)
    own = {unit: statistics.median(rates) for unit, rates in seen.items()}
    paces: dict[str, list[float]] = defaultdict(list)
    for unit, rate in own.items():
        paces[unit.split(" ")[0]].append(rate / rate_of(first, unit))
    common = [pace for kind in paces.values() for pace in kind] or [1.0]
    rates = {
        unit: rate if unit == "fixed" else rate * statistics.median(paces.get(unit, common))
        for unit, rate in first.items()
    } | own
    left = [run.total - seconds_of_work(run.units, {**rates, "fixed": 0.0}) for run in past]
    if left:
        amount = sum(amount for _, unit, amount in past[0].units if unit == "fixed")
        rates["fixed"] = max(0.5, statistics.median(left) / amount)
    return rates


def seconds_of_work(units: Sequence[tuple[str, str, float]], rates: Mapping[str, float]) -> float:
    """What so much work takes at these rates."""
    return sum(rate_of(rates, unit) * amount for _, unit, amount in units)


def seconds_off(past: Sequence[PastRun], first: Mapping[str, float]) -> list[float]:
    """How far off the prediction of each past run would have been, relative, learned from all the others."""
    found = []
    for at, run in enumerate(past):
        if run.total > 0:
            rates = learned_rates([*past[:at], *past[at + 1 :]], first)
            found.append(abs(seconds_of_work(run.units, rates) / run.total - 1))
    return found
