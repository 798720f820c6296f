"""What a model's levels cost, as a finished task told it: shared by the Budget and by Layers."""

import json
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import pandas as pd

from backend.budget import Budget, Trust, trust
from backend.errors import UserError
from backend.jobs import Jobs
from backend.levels import choice_of
from backend.recipe import Calibration, parse_recipe
from backend.solvers.budget import Ladder
from store import results
from store.database import Database
from ui.panel import banner, button, card, top
from ui.quantities import duration

SAMPLES, LENGTH = 16, 512


@dataclass(frozen=True)
class Measured:
    """A run that gave each linear one of the levels: packed bytes, predicted and measured KL."""

    run: str
    chain: str
    protocol: str
    packed: float
    predicted: float
    kl: float
    stderr: float


def asked(text: str) -> dict[str, Any]:
    """The arguments of the task that learns levels on a text."""
    return {"calibration": Calibration(text=text, samples=SAMPLES, length=LENGTH, order="dense").model_dump()}


def task_of(jobs: Jobs, model: str, text: str) -> dict[str, Any] | None:
    """The task that learns a model's levels, if anybody asked for it; UserError for an unusable model."""
    return results.task(jobs.database, jobs.task_id("levels", model, asked(text)))


def budget_of(jobs: Jobs, model: str, text: str) -> Budget | None:
    """What was learned; None until it is."""
    task = task_of(jobs, model, text)
    if task is None or task["status"] != "done":
        return None
    return _kept(jobs.database, task["id"], task["finished"])[0]


def ladder_of(jobs: Jobs, model: str, text: str) -> Ladder | None:
    """The plans of every size; None until levels are learned."""
    task = task_of(jobs, model, text)
    if task is None or task["status"] != "done":
        return None
    return _kept(jobs.database, task["id"], task["finished"])[1]


@lru_cache(maxsize=16)
def _kept(database: Database, task_id: str, finished: float) -> tuple[Budget, Ladder]:
    task = results.task(database, task_id)
    assert task is not None
    found = Budget.of(task["result"])
    return found, found.ladder()


def measured(database: Database, found: Budget) -> list[Measured]:
    """Finished runs made of these levels, measured under the protocol that most of them share."""
    points = results.points(database)
    if "divergence.kl" not in points:
        return []
    usable = points[(points["status"] == "done") & points["divergence.kl"].gt(0) & points["broken"].isna()]
    usable = usable[usable["recipe"].str.contains('"order":"dense"', regex=False)]
    told = []
    for row in usable.to_dict("records"):
        choice = _choice(row["recipe"], found)
        if choice is not None and row["model"] == found.model:
            told.append(
                Measured(
                    row["id"], row["chain"], row["protocol"], row["size.packed"], found.predicted(choice),
                    row["divergence.kl"], row["divergence.kl.stderr"],
                )
            )  # fmt: skip
    if not told:
        return []
    most = pd.Series([one.protocol for one in told]).mode().iloc[0]
    return [one for one in told if one.protocol == most and one.predicted > 0]


@lru_cache(maxsize=5000)
def _choice(recipe: str, found: Budget) -> dict[str, int] | None:
    read = json.loads(recipe)
    if {**found.calibration.model_dump(mode="json")} != read["calibration"]:
        return None
    try:
        return choice_of(parse_recipe(read), found.levels, found.layers)
    except UserError:
        # A recipe of another version of the methods is none of these levels.
        return None


def trusted(points: list[Measured]) -> Trust:
    """What these measured plans say of predictions."""
    return trust([one.predicted for one in points], [one.kl for one in points])


def building(task: dict[str, Any] | None, alive: bool) -> str:
    """How far the levels of a model are, and what can be done; empty once they are there."""
    if task is not None and task["status"] == "done":
        return ""
    if task is None:
        return card(
            "<h3>Levels are not known yet</h3><p>Every linear is compressed once in each of a dozen ways, "
            "from 8 bits to 2 and half sparse, and one backward pass predicts what each would cost the "
            "model. On the embedded model that takes some ten minutes; it is done once and kept.</p>"
            f"<p>{button('Learn the levels', 'learn')}</p>",
            "levels-card",
        )
    if task["status"] in ("queued", "running"):
        done = (task["done"] or 0) / max(task["total"] or 1, 1)
        # Levels are most of the work, gradients and their products the rest.
        width = 100 * {"levels": 0.85 * done, "gradients": 0.85, "sensitivity": 0.87 + 0.13 * done}.get(
            task["stage"] or "", 0.0
        )
        waits = "" if task["status"] == "running" else "waits for its turn"
        waits = waits if alive else "waits for a worker"
        spent = max(0.0, (task["heartbeat"] or 0) - (task["started"] or 0))
        since = f", for {duration(spent)}" if task["started"] else ""
        told = waits or f"{task['stage'] or 'begins'}: {task['detail'] or ''}{since}"
        return card(
            f"{top('<h3>Learning the levels</h3>', button('Cancel', 'cancel', danger=True))}"
            f"<p>{escape(told)}</p><div class='bar' role='progressbar' aria-label='Learning the levels' "
            f"aria-valuemin='0' aria-valuemax='100' aria-valuenow='{width:.0f}'>"
            f"<i style='width:{width:.1f}%'></i></div>",
            "levels-card",
        )
    why = str(task["error"] or "It was cancelled.").strip().splitlines()[-1]
    return banner(
        f"Learning the levels {escape(task['status'])}: {escape(why)} {button('Try again', 'learn')}", "bad"
    )
