"""Where the claims stand on one model, as the store knows it: which runs there are, what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from backend.claims import Outcome, Verdict, recipes, series_name, verdict
from backend.host import Host
from backend.identity import run_digest, with_absolute_paths
from backend.recipe import Calibration, Evaluation, Recipe, parse_recipe
from backend.registry import Claim, Method, discover
from backend.starter import starter_sweep
from store import results
from store.database import Database

Run = dict[str, Any]

_STARTER = starter_sweep()
# The quick one is that of the starter sweep, whose runs answer some claims before anybody asks.
EFFORTS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "quick": (_STARTER["calibration"], _STARTER["evaluation"]),
    "full": (Calibration().model_dump(mode="json"), Evaluation().model_dump(mode="json")),
}


@dataclass(frozen=True)
class Side:
    """One of a claim's two runs: its recipe, its row in the store if there is one, what it measured."""

    recipe: Recipe
    run_id: str
    run: Run | None = None
    outcome: Outcome | None = None
    value: float | None = None
    stderr: float | None = None
    comparable: str = ""

    @property
    def status(self) -> str:
        """The run's status; `missing` when it was never asked for, or was cancelled."""
        status = str(self.run["status"]) if self.run else "missing"
        return "missing" if status == "cancelled" else status


@dataclass(frozen=True)
class Standing:
    """A claim with both its runs and the verdict."""

    method: Method
    claim: Claim
    better: Side
    worse: Side
    verdict: Verdict

    @property
    def sides(self) -> tuple[Side, Side]:
        """Better, then worse."""
        return self.better, self.worse

    @property
    def apart(self) -> bool:
        """Whether both ran but not under one protocol: on different devices, say."""
        # One that broke before its windows were scored was measured under none.
        return len({side.comparable for side in self.sides if side.comparable}) > 1

    @property
    def wanted(self) -> list[Recipe]:
        """The recipes that have to be queued before there can be a verdict."""
        return [side.recipe for side in self.sides if side.status in ("missing", "failed")]


def claiming() -> list[tuple[Method, Claim]]:
    """The methods that make a claim."""
    return [(method, method.claim) for method in discover().methods.values() if method.claim]


def standings(database: Database, host: Host, model: str, text: str, effort: str) -> list[Standing]:
    """Every claim on this model; UserError when the model or the text cannot be found."""
    first, second = ({**section, "text": text} for section in EFFORTS[effort])
    shared = parse_recipe({"model": model, "calibration": first, "evaluation": second})
    digests: dict[str, str] = {}
    pairs = []
    for method, claim in claiming():
        pair = []
        for recipe in map(with_absolute_paths, recipes(claim, model, shared.calibration, shared.evaluation)):
            key = recipe.to_json()
            # Claims share runs, and a digest reads files.
            if key not in digests:
                digests[key] = run_digest(recipe, host)[:12]
            pair.append(Side(recipe, digests[key]))
        pairs.append((method, claim, pair))
    ids = sorted(set(digests.values()))
    runs = {row["id"]: row for row in _records(results.runs(database, ids=ids))}
    numbers = results.measurements(database, ids)
    metrics = sorted({claim.metric for _, claim, _ in pairs})
    series = {metric: results.series(database, ids, series_name(metric)) for metric in metrics}
    found = []
    for method, claim, pair in pairs:
        better, worse = (_measured(side, claim.metric, runs, numbers, series[claim.metric]) for side in pair)
        standing = Standing(method, claim, better, worse, Verdict("not tested"))
        if not standing.apart:
            said = verdict(better.outcome, worse.outcome, claim.more_bytes)
            standing = replace(standing, verdict=said)
        found.append(standing)
    return found


def _measured(
    side: Side, metric: str, runs: Mapping[str, Run], numbers: pd.DataFrame, series: pd.DataFrame
) -> Side:
    run = runs.get(side.run_id)
    if run is None:
        return side
    own = numbers[numbers["run_id"] == side.run_id].drop_duplicates("metric", keep="last").set_index("metric")
    windows = series[series["run_id"] == side.run_id]
    outcome = None
    if run["status"] == "done" and "size.packed" in own.index:
        measured = tuple(windows["values"].iloc[-1].tolist()) if len(windows) else ()
        if measured or run["broken"]:
            outcome = Outcome(measured, int(own.loc["size.packed", "value"]), run["broken"])
    value, stderr = own.loc[metric, ["value", "stderr"]] if metric in own.index else (None, None)
    comparable = str(windows["comparable"].iloc[-1]) if len(windows) else ""
    return Side(side.recipe, side.run_id, run, outcome, value, stderr, comparable)


def _records(frame: pd.DataFrame) -> Sequence[Run]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")
