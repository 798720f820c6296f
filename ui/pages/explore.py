"""Explore: what each run costs and what it keeps, the front between them, and everything about one run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.assets import EMBEDDED_MODEL
from backend.errors import UserError
from backend.jobs import Jobs
from backend.registry import discover
from store import results
from store.database import Database
from ui import charts, filters
from ui.downloads import ask
from ui.live import following, live
from ui.pages.queue import pause_notice
from ui.panel import address, banner, button, download, link, panel
from ui.plot import plot
from ui.quantities import duration
from ui.run_card import GUIDE, card
from ui.run_table import as_csv, as_json, ordered, rows
from ui.scatter import COLOURS
from ui.story import FRONT, shipped_front, shipped_points
from ui.texts import many, say
from ui.view import EVERYTHING, MOST_BASKET, View, figure, filtered, scope_choices, scopes, visible
from ui.visitor import user_of

# What the shipped front was measured on; it stands beside own runs while these are fewer.
_SHIPPED_SUBJECT, _FEW = (EMBEDDED_MODEL, "wikipedia-en"), 5
_NOWHERE: Mapping[str, str] = {}
CROSS = "\N{MULTIPLICATION X}"
# The plot as it stands, with the page's colours.
SAVE_PLOT = """() => Plotly.downloadImage(document.querySelector('#pareto .plot'),
  {format: '%s', filename: 'paretoscope', scale: 2, width: 1200, height: 700})"""

_COLOURS = {
    "method": say("explore.method"),
    "family": say("explore.family"),
    "model": say("common.model"),
    "user": say("explore.user"),
    "sweep": say("explore.sweep"),
}


@cache
def method_kinds() -> dict[str, str]:
    """{name: kind} of every method, as chains name them."""
    return {method.spoken: method.kind for method in discover().methods.values()}


def activity(jobs: Jobs, query: Mapping[str, str] = _NOWHERE) -> str:
    """What the worker does now, in one line, and who paused the queue; empty when nothing waits."""
    waiting, paused = results.queue(jobs.database), pause_notice(jobs)
    if paused or not waiting:
        return paused
    way = f'<a href="queue">{say("common.see_the_queue")}</a>'
    if not results.workers(jobs.database, jobs.host.stale_after)["alive"].any():
        count = many("explore.waiting_runs", len(waiting))
        return banner(say("explore.no_worker", waiting=count, way=way))
    running = [run for run in waiting if run.status == "running"]
    queued = len(waiting) - len(running)
    told = []
    for run in running[:1]:
        done = f", {100 * run.fraction:.0f} %" if run.fraction is not None else ""
        left = say("explore.about_left", time=duration(run.eta_seconds)) if run.eta_seconds else ""
        told.append(say("explore.now_running", chain=escape(run.chain), done=done, left=left))
    if queued:
        told.append(say("explore.queued", queued=queued))
    return banner(f"{' '.join(told)} {way}", "quiet")


def picture(jobs: Jobs, query: Mapping[str, str]) -> str:
    """The figure of an address as JSON; while there is no point, the one that comes with the app."""
    points, view = results.points(jobs.database), View.of_query(query)
    known = scopes(points)
    if not known:
        return shipped_front()[0]
    view = view if view.scope in (*known, EVERYTHING) else replace(view, scope=known[0])
    return drawing(jobs.database, visible(points, view), view)


def drawing(database: Database, shown: pd.DataFrame, view: View) -> str:
    """The figure of runs as JSON."""
    drawn = figure(database, shown, view, method_kinds())
    if few_beside_shipped(shown, view) and (beside := shipped_points(*view.axes)):
        drawn["data"].insert(0, beside)
    return json.dumps(drawn, separators=(",", ":"))


def few_beside_shipped(shown: pd.DataFrame, view: View) -> bool:
    """Whether what is shown are a few runs of the model and text that the shipped front is of."""
    subjects = set(zip(shown["model"], shown["text"], strict=True))
    few = (shown["chain"] != charts.DENSE).sum() < _FEW
    return bool(few and subjects == {_SHIPPED_SUBJECT} and not view.words.strip())


def listing(jobs: Jobs, query: Mapping[str, str]) -> str:
    """The table of an address."""
    view = View.of_query(query)
    return rows(visible(results.points(jobs.database), view), view)


def details(jobs: Jobs, query: Mapping[str, str]) -> str:
    """The card of the run that an address names."""
    return card(jobs, View.of_query(query).run, results.points(jobs.database))


def choices(jobs: Jobs) -> str:
    """What the dropdowns offer, in short: where it changes they must be filled anew."""
    points = results.points(jobs.database)
    return json.dumps([scopes(points), filters.parameter_names(points)])


def nothing_yet(jobs: Jobs) -> str:
    """What stands in the plot's place until there is a point."""
    starter = [run for run in results.queue(jobs.database) if run.source == "starter"]
    if starter:
        why = many("explore.first_start", len(starter))
    elif results.counts(jobs.database):
        why = say("explore.none_finished")
    else:
        why = say("explore.none_run")
    ways = f"{link(say('common.compress_a_model'), 'compress')} {link(say('common.see_the_queue'), 'queue')}"
    figure_, note = shipped_front()
    shown = say("explore.shipped_front", note=escape(note)) if figure_ else ""
    tour = link(say("explore.shipped_story"), f"stories?story=shipped-{FRONT}") if figure_ else ""
    return (
        f'<div class="panel empty"><h3>{say("explore.no_points_yet")}</h3><p>{why}</p><p>{ways} {tour}</p>'
        f'<p class="note">{shown}</p></div>'
    )


def basket_strip(database: Database, view: View) -> str:
    """The runs that are held for a comparison."""
    ids = [run for run in view.basket.split(",") if run]
    if not ids:
        return ""
    chains = results.runs(database, ids=ids).set_index("id")["chain"].to_dict()
    held = "".join(
        f'<span class="held">{escape(chains.get(run, run))}'
        f"{button(CROSS, 'drop', run, hint=say('explore.drop_hint'))}</span>"
        for run in ids
    )
    way = link(
        say("explore.compare_several", count=len(ids)),
        f"compare?{urlencode({'runs': ','.join(ids)}, safe=',')}",
    )
    return banner(f'<span class="chips">{held}{way}{button(say("explore.clear"), "clear")}</span>', "quiet")


def colour_choices(points: pd.DataFrame) -> list[tuple[str, str]]:
    """What may give points their colour: a fixed few, and every parameter that the runs differ in."""
    fixed = [(_COLOURS[name], name) for name in COLOURS]
    known = {value for _, value in fixed}
    return fixed + [(name, name) for name in filters.parameter_names(points) if name not in known]


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    database = jobs.database
    axes = [(axis.title, axis.metric) for axis in charts.AXES.values()]

    # Plot, card and table follow by themselves; an event is worth new choices alone.
    strip = live("activity", 5, "activity", minds=("choices",))
    with gr.Row(equal_height=False, elem_id="axes"):
        scope = gr.Dropdown([], label=say("explore.model_and_text"), elem_id="scope", scale=5, min_width=300)
        x = gr.Dropdown(
            axes, value=View.x, label=say("explore.across"), elem_id="axis-x", scale=3, min_width=170
        )
        y = gr.Dropdown(
            axes, value=View.y, label=say("explore.upwards"), elem_id="axis-y", scale=3, min_width=170
        )
        colour = gr.Dropdown(
            [(_COLOURS["method"], "method")], value=View.colour, label=say("explore.colour"),
            elem_id="colour", scale=2, min_width=120,
        )  # fmt: skip
    with gr.Row(equal_height=False, elem_id="filters"):
        words = gr.Textbox(
            label=say("explore.filter"),
            placeholder=filters.HELP,
            elem_id="filter",
            scale=8,
            min_width=280,
            max_lines=1,
        )
        symbol = gr.Dropdown(
            [
                (say("explore.number_of_stages"), "stages"), (say("explore.kind_of_method"), "kind"),
                (say("explore.all_alike"), "none"),
            ],
            value=View.symbol, label=say("explore.symbol"), elem_id="symbol", scale=2, min_width=140,
        )  # fmt: skip
        dominated = gr.Dropdown(
            [(say("explore.dimmed"), "dim"), (say("explore.shown"), "show"), (say("explore.hidden"), "hide")],
            value=View.dominated, label=say("explore.dominated_runs"), elem_id="dominated",
            scale=2, min_width=120,
        )  # fmt: skip
    with gr.Row(elem_id="switches"):
        log_x = gr.Checkbox(
            label=say("explore.logarithmic_across"), elem_id="log-x", container=False, min_width=60
        )
        log_y = gr.Checkbox(
            True, label=say("explore.logarithmic_upwards"), elem_id="log-y", container=False, min_width=60
        )
        broken = gr.Checkbox(
            True, label=say("explore.show_broken_runs"), elem_id="show-broken", container=False, min_width=60
        )
    held = panel("basket")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            empty = panel("empty", visible=False)
            scatter = plot("pareto", say("explore.plot"), following("picture"))
        with gr.Column(scale=3, min_width=320):
            chosen = panel(
                "card", GUIDE, following("details", ("results", "questions"), rests=2, about="run")
            )
    table = panel("runs", script=following("listing"))
    with gr.Row(elem_id="downloads"):
        csv = gr.Button("CSV", size="sm", elem_id="download-csv")
        as_json_button = gr.Button("JSON", size="sm", elem_id="download-json")
        png = gr.Button("PNG", size="sm", elem_id="download-png")
        svg = gr.Button("SVG", size="sm", elem_id="download-svg")
    here, saved = address("address"), download("download")
    run, order, basket = gr.State(""), gr.State(""), gr.State("")
    seen = gr.State("")

    # In the order of the fields of a View.
    controls: Sequence[Any] = (
        colour, symbol, dominated, broken, log_x, log_y, scope, x, y, words, basket, run, order,
    )  # fmt: skip
    drawn: Sequence[Any] = (scope, colour, scatter, empty, held, table, here)

    def draw(view: View, points: pd.DataFrame | None = None) -> list[Any]:
        points = results.points(database) if points is None else points
        choices = scope_choices(database, points)
        keys = [key for _, key in choices]
        if view.scope not in keys:
            view = replace(view, scope=keys[0] if keys else "")
        shown, problem = filtered(points, view)
        told = drawing(database, shown, view) if keys else shipped_front()[0]
        colours = colour_choices(shown)
        if view.colour not in [value for _, value in colours]:
            colours.append((view.colour, view.colour))
        return [
            gr.update(choices=choices, value=view.scope or None),
            gr.update(choices=colours, value=view.colour),
            gr.update(value=told or None, selected=view.run, visible=bool(told)),
            gr.update(value="" if keys else nothing_yet(jobs), visible=not keys),
            (banner(escape(problem), "bad") if problem else "") + basket_strip(database, view),
            rows(shown, view),
            view.query(keys[0] if keys else ""),
        ]

    def opened(request: gr.Request) -> list[Any]:
        view = View.of_query(dict(request.query_params))
        points = results.points(database)
        settled = [
            view.x, view.y, view.log_x, view.log_y, view.broken, view.symbol, view.dominated, view.words,
            view.basket, view.run, view.order,
        ]  # fmt: skip
        return [
            *draw(view, points), card(jobs, view.run, points), activity(jobs), choices(jobs), *settled,
        ]  # fmt: skip

    def changed(*values: Any) -> list[Any]:
        return draw(View.of_controls(values))

    def picked(event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        view = View.of_controls(values)
        action = getattr(event, "action", "open")
        points = results.points(database)
        shown = visible(points, view)
        ids = [run for run in view.basket.split(",") if run]
        if action == "sort":
            view = replace(view, order=str(event.order)[:40])
        elif action == "several":
            # The best ones of what was lassoed, in the order of the table.
            listed = [str(name)[:12] for name in event.runs]
            best = ordered(shown[shown["id"].isin(listed)], view.y)["id"].drop_duplicates()
            ids = best.head(MOST_BASKET).tolist()
        elif action == "hold":
            ids = [*ids, str(event.run)[:12]][-MOST_BASKET:]
        elif action == "drop":
            ids = [name for name in ids if name != str(event.run)]
        elif action == "clear":
            ids = []
        elif action.startswith("export-"):
            try:
                ask(jobs, str(event.run)[:12], action.removeprefix("export-"), user_of(request, jobs.host))
            except UserError as error:
                raise gr.Error(escape(str(error)), duration=8, print_exception=False) from None
        else:
            view = replace(view, run="" if action == "close" else str(event.run)[:12])
        view = replace(view, basket=",".join(dict.fromkeys(ids)))
        known = scopes(points)
        opens = action in ("open", "close")
        return [
            view.run, view.order, view.basket,
            gr.update(selected=view.run) if opens else gr.skip(),
            rows(shown, view) if opens or action == "sort" else gr.skip(),
            card(jobs, view.run, points) if opens or action.startswith("export-") else gr.skip(),
            basket_strip(database, view),
            view.query(known[0] if known else ""),
        ]  # fmt: skip

    def renewed(before: str, *values: Any) -> Any:
        now = choices(jobs)
        return gr.skip() if before == now else [now, *draw(View.of_controls(values))]

    def saved_as(kind: str, *values: Any) -> dict[str, str]:
        view = View.of_controls(values)
        shown = ordered(visible(results.points(database), view), view.order)
        if kind == "csv":
            return {"name": "paretoscope.csv", "type": "text/csv", "text": as_csv(shown)}
        return {"name": "paretoscope.json", "type": "application/json", "text": as_json(shown)}

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    settled_controls = [x, y, log_x, log_y, broken, symbol, dominated, words, basket, run, order]
    page.load(opened, None, [*drawn, chosen, strip, seen, *settled_controls], **quiet)
    for control in (scope, log_x, log_y, broken, colour, symbol, dominated):
        control.input(changed, list(controls), list(drawn), **quiet)
    # Not `input`: Gradio's text boxes do not send it for a paste or a deletion.
    words.change(changed, list(controls), list(drawn), trigger_mode="always_last", **quiet)
    for axis, log in ((x, log_x), (y, log_y)):
        # A new axis starts on the scale that usually reads best.
        usual = axis.input(lambda metric: charts.axis_of(metric, View.x).log, axis, log, queue=False, **quiet)
        usual.then(changed, list(controls), list(drawn), **quiet)
    for source in (scatter, table, chosen, held):
        source.select(
            picked, list(controls), [run, order, basket, scatter, table, chosen, held, here], **quiet
        )
    strip.select(renewed, [seen, *controls], [seen, *drawn], concurrency_limit=None, **quiet)
    csv.click(lambda *values: saved_as("csv", *values), list(controls), saved, **quiet)
    as_json_button.click(lambda *values: saved_as("json", *values), list(controls), saved, **quiet)
    for press, form in ((png, "png"), (svg, "svg")):
        press.click(None, None, None, js=SAVE_PLOT % form)
