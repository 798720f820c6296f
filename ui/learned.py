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
from backend.text import check_text
from store import results
from store.database import Database
from ui.panel import STATES, banner, button, card, top
from ui.quantities import duration
from ui.texts import say

SAMPLES, LENGTH = 16, 512


@dataclass(frozen=True)
class Measured:
    """A run that gave each linear one of the levels: packed bytes, predicted and measured KL.

    `planned` where linears got different ones: such plans were chosen for what was predicted of them.
    """

    run: str
    chain: str
    protocol: str
    packed: float
    predicted: float
    kl: float
    stderr: float
    planned: bool


def asked(text: str) -> dict[str, Any]:
    """The arguments of the task that learns levels on a text."""
    return {"calibration": Calibration(text=text, samples=SAMPLES, length=LENGTH, order="dense").model_dump()}


def learn(jobs: Jobs, model: str, text: str, user: str) -> None:
    """Have the levels of a model learned; UserError for a model or text that cannot be used."""
    check_text(text, jobs.host)
    jobs.ask("levels", model, asked(text), user)


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
                    row["divergence.kl"], row["divergence.kl.stderr"], len(set(choice.values())) > 1,
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
    """What the measured plans among these say of predictions."""
    plans = [one for one in points if one.planned]
    return trust([one.predicted for one in plans], [one.kl for one in plans])


def building(task: dict[str, Any] | None, alive: bool) -> str:
    """How far the levels of a model are, and what can be done; empty once they are there."""
    if task is not None and task["status"] == "done":
        return ""
    if task is None:
        return card(
            f"<h3>{say('budget.no_levels')}</h3><p>{say('budget.what_levels_are')}</p>"
            f"<p>{button(say('budget.learn_the_levels'), 'learn')}</p>",
            "levels-card",
        )
    if task["status"] in ("queued", "running"):
        done = (task["done"] or 0) / max(task["total"] or 1, 1)
        # Levels are most of the work, gradients and their products the rest.
        width = 100 * {"levels": 0.85 * done, "gradients": 0.85, "sensitivity": 0.87 + 0.13 * done}.get(
            task["stage"] or "", 0.0
        )
        waits = "" if task["status"] == "running" else say("budget.waits_for_its_turn")
        waits = waits if alive else say("budget.waits_for_a_worker")
        spent = max(0.0, (task["heartbeat"] or 0) - (task["started"] or 0))
        since = say("budget.for_so_long", time=duration(spent)) if task["started"] else ""
        told = waits or f"{task['stage'] or say('budget.begins')}: {task['detail'] or ''}{since}"
        title = escape(say("budget.learning"))
        cancel = button(say("common.cancel"), "cancel", danger=True)
        return card(
            f"{top(f'<h3>{title}</h3>', cancel)}"
            f"<p>{escape(told)}</p><div class='bar' role='progressbar' aria-label='{title}' "
            f"aria-valuemin='0' aria-valuemax='100' aria-valuenow='{width:.0f}'>"
            f"<i style='width:{width:.1f}%'></i></div>",
            "levels-card",
        )
    why = str(task["error"] or say("budget.was_cancelled")).strip().splitlines()[-1]
    return banner(
        say(
            "budget.not_learned",
            status=STATES[task["status"]],
            why=escape(why),
            button=button(say("budget.try_again"), "learn"),
        ),
        "bad",
    )
