"""Explore: what each run costs and what it keeps, the front between them, and everything about one run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from backend.jobs import Jobs
from backend.registry import discover
from store import results
from ui import charts
from ui.pages.queue import pause_notice
from ui.panel import address, banner, download, link, panel
from ui.plot import plot
from ui.quantities import duration
from ui.run_card import GUIDE, card
from ui.run_table import as_csv, as_json, ordered, rows
from ui.view import View, scope_choices, scopes, visible


def method_kinds() -> dict[str, str]:
    """{name: kind} of every method, as chains name them."""
    return {method.name: method.kind for method in discover().methods.values()}


def figure(shown: pd.DataFrame, view: View, kinds: Mapping[str, str]) -> str:
    """The plot of what is shown, as JSON."""
    drawn = charts.scatter(
        shown, charts.COSTS[view.x], charts.QUALITIES[view.y], kinds,
        log_x=view.log_x, log_y=view.log_y, show_broken=view.broken, revision=view.scope,
    )  # fmt: skip
    return json.dumps(drawn, separators=(",", ":"))


def activity(jobs: Jobs) -> str:
    """What the worker does now, in one line, and who paused the queue; empty when nothing waits."""
    waiting, paused = results.queue(jobs.database), pause_notice(jobs)
    if paused or not waiting:
        return paused
    way = '<a href="queue">See the queue</a>'
    if not results.workers(jobs.database, jobs.host.stale_after)["alive"].any():
        count = f"{len(waiting)} run{' waits' if len(waiting) == 1 else 's wait'}"
        return banner(
            f"{count}, and no worker is alive: start one with <code>python app.py worker</code>. {way}"
        )
    running = [run for run in waiting if run.status == "running"]
    queued = len(waiting) - len(running)
    told = []
    for run in running[:1]:
        done = f", {100 * run.fraction:.0f} %" if run.fraction is not None else ""
        left = f", about {duration(run.eta_seconds)} left" if run.eta_seconds else ""
        told.append(f"Now running: <b>{escape(run.chain)}</b>{done}{left}.")
    if queued:
        told.append(f"{queued} queued.")
    return banner(f"{' '.join(told)} {way}", "quiet")


def nothing_yet(jobs: Jobs) -> str:
    """What stands in the plot's place until there is a point."""
    starter = [run for run in results.queue(jobs.database) if run.source == "starter"]
    if starter:
        count = "1 run is" if len(starter) == 1 else f"{len(starter)} runs are"
        why = (
            "This is a first start, so a small sweep was queued by itself: the dense model and a few ways to "
            f"compress it. {count} to come; each point appears as soon as it is measured."
        )
    elif results.counts(jobs.database):
        why = "No run has finished yet. Points appear here as soon as they are measured."
    else:
        why = "Nothing has been run yet. Build a first chain of methods and queue it."
    ways = f"{link('Compress a model', 'compress')} {link('See the queue', 'queue')}"
    return f'<div class="panel empty"><h3>No points yet</h3><p>{why}</p><p>{ways}</p></div>'


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    database, kinds = jobs.database, method_kinds()

    strip = panel("activity")
    with gr.Row(equal_height=False, elem_id="axes"):
        scope = gr.Dropdown([], label="Model and text", elem_id="scope", scale=4, min_width=300)
        costs = [(axis.title, axis.metric) for axis in charts.COSTS.values()]
        x = gr.Dropdown(costs, value=View.x, label="Cost", elem_id="axis-x", scale=2, min_width=190)
        qualities = [(axis.title, axis.metric) for axis in charts.QUALITIES.values()]
        y = gr.Dropdown(qualities, value=View.y, label="Quality", elem_id="axis-y", scale=2, min_width=190)
        words = gr.Textbox(label="Filter", placeholder="gptq 3-bit", elem_id="filter", scale=2, min_width=150)
    with gr.Row(elem_id="switches"):
        log_x = gr.Checkbox(label="Logarithmic cost", elem_id="log-x", container=False, min_width=60)
        log_y = gr.Checkbox(True, label="Logarithmic quality", elem_id="log-y", container=False, min_width=60)
        broken = gr.Checkbox(
            True, label="Show broken runs", elem_id="show-broken", container=False, min_width=60
        )
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            scatter = plot("pareto", "Runs by cost and quality, with their Pareto front")
            empty = panel("empty", visible=False)
        with gr.Column(scale=3, min_width=320):
            chosen = panel("card", GUIDE)
    listing = panel("runs")
    with gr.Row(elem_id="downloads"):
        csv = gr.Button("Download CSV", size="sm", elem_id="download-csv")
        as_json_button = gr.Button("Download JSON", size="sm", elem_id="download-json")
    here, saved = address("address"), download("download")
    run, order = gr.State(""), gr.State("")
    seen = gr.State((-1, -1))
    timer = gr.Timer(3)

    controls: Sequence[Any] = (scope, x, y, log_x, log_y, broken, words, run, order)
    drawn: Sequence[Any] = (scope, scatter, empty, listing, here)

    def draw(view: View, points: pd.DataFrame | None = None) -> list[Any]:
        points = results.points(database) if points is None else points
        choices = scope_choices(database, points)
        keys = [key for _, key in choices]
        if view.scope not in keys:
            view = replace(view, scope=keys[0] if keys else "")
        shown = visible(points, view)
        return [
            gr.update(choices=choices, value=view.scope or None),
            gr.update(
                value=figure(shown, view, kinds) if keys else None, selected=view.run, visible=bool(keys)
            ),
            gr.update(value="" if keys else nothing_yet(jobs), visible=not keys),
            rows(shown, view),
            view.query(keys[0] if keys else ""),
        ]

    def opened(request: gr.Request) -> list[Any]:
        view = View.of_query(dict(request.query_params))
        versions = (results.data_version(database), results.results_version(database))
        points = results.points(database)
        settled = [view.x, view.y, view.log_x, view.log_y, view.broken, view.words, view.run, view.order]
        return [
            *draw(view, points), card(database, view.run, points), activity(jobs), versions, *settled,
        ]  # fmt: skip

    def changed(*values: Any) -> list[Any]:
        return draw(View.of_controls(values))

    def picked(event: gr.EventData, *values: Any) -> list[Any]:
        view = View.of_controls(values)
        action = getattr(event, "action", "open")
        if action == "sort":
            view = replace(view, order=str(event.order)[:40])
        else:
            view = replace(view, run="" if action == "close" else str(event.run)[:12])
        points = results.points(database)
        shown = visible(points, view)
        known = scopes(points)
        return [
            view.run, view.order, gr.update(selected=view.run), rows(shown, view),
            card(database, view.run, points) if action != "sort" else gr.skip(),
            view.query(known[0] if known else ""),
        ]  # fmt: skip

    def tick(before: Sequence[int], *values: Any) -> Any:
        versions = (results.data_version(database), results.results_version(database))
        if tuple(before) == versions:
            return gr.skip()
        if before[1] == versions[1]:
            return [versions, activity(jobs), gr.skip(), *(gr.skip() for _ in drawn)]
        view = View.of_controls(values)
        points = results.points(database)
        return [versions, activity(jobs), card(database, view.run, points), *draw(view, points)]

    def saved_as(kind: str, *values: Any) -> dict[str, str]:
        shown = ordered(visible(results.points(database), View.of_controls(values)), values[-1])
        if kind == "csv":
            return {"name": "paretoscope.csv", "type": "text/csv", "text": as_csv(shown)}
        return {"name": "paretoscope.json", "type": "application/json", "text": as_json(shown)}

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    settled_controls = [x, y, log_x, log_y, broken, words, run, order]
    page.load(opened, None, [*drawn, chosen, strip, seen, *settled_controls], **quiet)
    for control in (scope, log_x, log_y, broken):
        control.input(changed, list(controls), list(drawn), **quiet)
    # Not `input`: Gradio's text boxes do not send it for a paste or a deletion.
    words.change(changed, list(controls), list(drawn), trigger_mode="always_last", **quiet)
    for axis, log, axes in ((x, log_x, charts.COSTS), (y, log_y, charts.QUALITIES)):
        # A new axis starts on the scale that usually reads best.
        usual = axis.input(lambda metric, axes=axes: axes[metric].log, axis, log, queue=False, **quiet)
        usual.then(changed, list(controls), list(drawn), **quiet)
    for source in (scatter, listing, chosen):
        source.select(picked, list(controls), [run, order, scatter, listing, chosen, here], **quiet)
    timer.tick(tick, [seen, *controls], [seen, strip, chosen, *drawn], concurrency_limit=None, **quiet)
    csv.click(lambda *values: saved_as("csv", *values), list(controls), saved, **quiet)
    as_json_button.click(lambda *values: saved_as("json", *values), list(controls), saved, **quiet)
