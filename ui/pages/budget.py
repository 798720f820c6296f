"""Budget: choose a size, see the plan that is predicted to cost least at it, and verify it by a real run."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import numpy as np

from backend.budget import Budget
from backend.errors import UserError
from backend.jobs import Jobs
from backend.recipe import Recipe
from backend.solvers.budget import Ladder
from store import results
from ui import learned
from ui.live import live
from ui.panel import address, banner, button, card, code, link, panel
from ui.plan_view import front_figure, plan_figure, told
from ui.plot import plot
from ui.subject import subject, subject_of
from ui.texts import say
from ui.visitor import user_of

# Along the line, evenly in predicted KL: what the interval of predictions is learned from.
_SPREAD = 8
# Below it nobody tells a plan from the dense model.
_LEAST_KL = 0.01
_EVALUATION = {"length": 1024, "windows": 8, "metrics": ["perplexity", "divergence"]}


def recipe_at(found: Budget, plan: Sequence[int]) -> Recipe:
    """The run that verifies a plan."""
    choice = dict(zip(found.layers, plan, strict=True))
    return found.recipe(choice, evaluation={"text": found.calibration.text, **_EVALUATION})


def spread(found: Budget, walk: Ladder, count: int = _SPREAD) -> list[list[int]]:
    """Plans along the line, evenly in the logarithm of their predicted KL, as far down as it matters."""
    usable = np.flatnonzero(walk.losses > min(_LEAST_KL, float(walk.losses[0]) / 2))
    logs = np.log(walk.losses[usable])
    # The smallest plan is all at the least bits, which nobody wants.
    wanted = np.linspace(logs.max(), logs.min(), count + 1)[1:]
    budgets = [walk.bytes[usable[np.abs(logs - target).argmin()]] for target in wanted]
    plans = [walk.plan(float(budget)) for budget in budgets]
    return [list(plan) for plan in dict.fromkeys(map(tuple, plans))]


def queued(jobs: Jobs, recipes: Sequence[Recipe], user: str) -> str:
    """Queue what verifies plans, and say so."""
    made = [jobs.submit(recipe, user=user, source="page") for recipe in recipes]
    fresh = sum(one.created for one in made)
    told_ = say("budget.queued", fresh=fresh) if fresh else ""
    if len(made) > fresh:
        told_ += f" {say('budget.known', count=len(made) - fresh)}"
    query = urlencode({"run": made[0].run_id})
    ways = link(say("common.watch_the_queue"), f"queue?{query}") + " "
    ways += link(say("common.explore"), f"./?{query}")
    body = f"<p>{say('budget.points_appear')}</p><div class='acts'>{ways}</div>"
    return card(f"<h3>{told_.strip()}</h3>{body}", "verify-card")


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    host, database = jobs.host, jobs.database
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Row(equal_height=False):
        model, text = subject(host, "budget", say("budget.calibration_text"))
        size = gr.Slider(
            0, 1e6, 0, step=0.1, label=say("axis.packed"), elem_id="budget-size", scale=5, min_width=300,
            visible=False,
        )  # fmt: skip
    problem = panel("budget-problem")
    levels = panel("budget-levels")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            line = plot("budget-plot", say("budget.plot"))
            plan_map = plot("plan-map", say("budget.map"))
        with gr.Column(scale=3, min_width=320):
            numbers = panel("budget-plan")
            outcome = panel("budget-outcome")
    here = address("address")
    # The size that is shown. Not read off the slider: before anybody moved it, its page may send text.
    chosen = gr.State(0.0)
    seen = gr.State(-1)
    pulse = live("budget-pulse", 2, minds=("results", "questions"))

    def known(model_: str, text_: str) -> tuple[Budget, Ladder] | None:
        found, walk = learned.budget_of(jobs, model_, text_), learned.ladder_of(jobs, model_, text_)
        return None if found is None or walk is None else (found, walk)

    def drawn(model_: str, text_: str, megabytes: float | None, points_too: bool = True) -> list[Any]:
        """Slider, problem, levels, both plots, numbers, address, size shown."""
        hidden = gr.update(visible=False)
        try:
            both = known(model_, text_)
            task = learned.task_of(jobs, model_, text_)
        except UserError as error:
            return [hidden, banner(escape(str(error)), "bad"), "", hidden, hidden, "", gr.skip(), 0.0]
        if both is None:
            alive = bool(results.workers(database, host.stale_after)["alive"].any())
            return [hidden, "", learned.building(task, alive), hidden, hidden, "", gr.skip(), 0.0]
        found, walk = both
        low, high = (found.rest_bytes + end for end in (walk.bytes[0], walk.bytes[-1]))
        start = low + 0.15 * (high - low) if megabytes is None else megabytes * 1e6
        start = min(max(start, low), high)
        plan = walk.plan(start - found.rest_bytes)
        choice = dict(zip(found.layers, plan, strict=True))
        measured = learned.measured(database, found)
        trust = learned.trusted(measured)
        front = front_figure(found, walk, trust, measured, found.packed(choice), found.predicted(choice))
        recipe = json.dumps(json.loads(recipe_at(found, plan).to_json()), separators=(",", ":"))
        acts = button(say("budget.verify_this_plan"), "verify") + button(
            say("budget.verify_several", count=_SPREAD), "spread"
        )
        body = (
            f"{told(found, plan, trust, measured)}<div class='acts' style='margin-top:8px'>{acts}</div>"
            "<details id='plan-recipe'><summary class='note'>recipe.json</summary>"
            f"{code(recipe, 'plan-json')}</details>"
        )
        where = urlencode({"model": model_, "text": text_, "mb": f"{start / 1e6:.6g}"})
        # The least stays zero: Gradio holds what the page still sends against a new least.
        digits = 1 if high > 20e6 else 4
        ends = {"maximum": round(high / 1e6, digits), "value": round(start / 1e6, digits)}
        ends |= {"step": 10.0**-digits, "visible": True}
        slider = gr.update(**ends) if points_too else gr.skip()
        return [
            slider, "", "", gr.update(value=json.dumps(front), visible=True),
            gr.update(value=json.dumps(plan_figure(found, plan)), visible=True),
            card(body, "plan-card"), f"?{where}", start / 1e6,
        ]  # fmt: skip

    def opened(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        model_, text_ = subject_of(host, query)
        version = results.results_version(database)
        return [model_, text_, version, *drawn(model_, text_, _number(query.get("mb")))]

    def changed(model_: str, text_: str) -> list[Any]:
        return drawn(model_, text_, None)

    def moved(model_: str, text_: str, megabytes: float) -> list[Any]:
        return drawn(model_, text_, megabytes, points_too=False)

    def renewed(before: int, model_: str, text_: str, megabytes: float) -> Any:
        version = results.results_version(database)
        try:
            both = known(model_, text_)
        except UserError:
            return gr.skip()
        if both is not None and before == version and megabytes > 0:
            return gr.skip()
        return [version, *drawn(model_, text_, megabytes if megabytes > 0 else None)]

    def pressed(
        event: gr.EventData, request: gr.Request, model_: str, text_: str, megabytes: float
    ) -> list[Any]:
        try:
            user = user_of(request, host)
            if event.action == "learn":
                learned.learn(jobs, model_, text_, user)
                return ["", *drawn(model_, text_, None)]
            if event.action == "cancel":
                task = learned.task_of(jobs, model_, text_)
                if task is not None:
                    if host.auth and task["user"] != user:
                        raise UserError(say("budget.not_yours", user=task["user"]))
                    jobs.cancel_task(task["id"])
                return ["", *drawn(model_, text_, None)]
            both = known(model_, text_)
            if both is None:
                raise UserError(say("budget.levels_not_known"))
            found, walk = both
            plans = (
                spread(found, walk)
                if event.action == "spread"
                else [walk.plan(megabytes * 1e6 - found.rest_bytes)]
            )
            return [
                queued(jobs, [recipe_at(found, plan) for plan in plans], user),
                *(gr.skip() for _ in shown),
            ]
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in shown)]

    shown = [size, problem, levels, line, plan_map, numbers, here, chosen]
    page.load(opened, None, [model, text, seen, *shown], **quiet)
    for control in (model, text):
        control.input(changed, [model, text], shown, **quiet)
    size.input(moved, [model, text, size], shown, trigger_mode="always_last", **quiet)
    for source in (levels, numbers):
        source.select(pressed, [model, text, chosen], [outcome, *shown], **quiet)
    pulse.select(renewed, [seen, model, text, chosen], [seen, *shown], concurrency_limit=None, **quiet)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
