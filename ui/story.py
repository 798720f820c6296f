"""A story's views with all that they show: what is presented live, and what stands in a file on its own.

A frozen story is JSON and holds nothing of the machine that made it: no user, host, worker or path, and of
all runs only those that its views show.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from backend.errors import UserError
from backend.registry import discover
from backend.story import Story, StoryView
from store import results
from store.database import Database
from ui import charts
from ui.answers import answers_of, lane
from ui.layer_map import facts
from ui.pages import compare, layers
from ui.panel import table
from ui.quantities import MISSING
from ui.side_by_side import numbers
from ui.texts import many, say
from ui.view import View, figure, scopes, visible

Frozen = dict[str, Any]
SHIPPED = Path(__file__).parent / "stories"
# Of those that come with the app the one whose first plot stands on Explore until there are runs.
FRONT = "front"
_FORMAT = 1


class _GoneError(Exception):
    """What a view showed is not there any more."""


def freeze(database: Database, story: Story) -> Frozen:
    """The story with what each of its views shows now."""
    views = [frozen_view(database, view) for view in story.views]
    return {"frozen": _FORMAT, "title": story.title, "summary": story.summary, "views": views}


def frozen_view(database: Database, view: StoryView) -> Frozen:
    """One view with its heading and its figure or markup, or why it cannot be shown any more."""
    told: Frozen = {"kind": view.kind, "caption": view.caption}
    if view.kind == "text":
        return told
    query = dict(parse_qsl(view.query))
    try:
        return told | _FREEZE[view.kind](database, query)
    except _GoneError as gone:
        return told | {"heading": _NAMES[view.kind], "problem": str(gone)}


def pinned(database: Database, view: StoryView) -> StoryView:
    """The same view, independent of which runs other people add: a plot without a scope gets today's."""
    query = dict(parse_qsl(view.query))
    known = scopes(results.points(database)) if view.kind == "plot" and not query.get("scope") else []
    return view.model_copy(update={"query": urlencode(query | {"scope": known[0]})}) if known else view


def read_frozen(written: str, where: str = "story") -> Frozen:
    """A frozen story from its JSON."""
    try:
        frozen = json.loads(written)
    except ValueError as error:
        raise UserError(say("stories.not_valid_json", where=where, error=error)) from None
    if not isinstance(frozen, dict) or frozen.get("frozen") != _FORMAT:
        raise UserError(say("stories.wrong_format", where=where, format=_FORMAT))
    return frozen


def is_frozen(written: str) -> bool:
    """Whether this JSON is a frozen story rather than one to freeze."""
    try:
        told = json.loads(written)
    except ValueError:
        return False
    return isinstance(told, dict) and "frozen" in told


def shipped() -> dict[str, Frozen]:
    """The stories that come with the app, by the names of their files."""
    files = sorted(SHIPPED.glob("*.json"))
    return {file.stem: read_frozen(file.read_text(encoding="utf-8"), file.name) for file in files}


def shipped_front() -> tuple[str, str]:
    """The Pareto plot that comes with the app as JSON, its runs without ids, and what it shows."""
    views = shipped().get(FRONT, {"views": []})["views"]
    for view in views:
        if "figure" in view:
            for trace in view["figure"]["data"]:
                trace["customdata"] = [[None, *facts[1:]] for facts in trace.get("customdata", [])]
            return json.dumps(view["figure"], separators=(",", ":")), view["note"]
    return "", ""


def shipped_points(x: charts.Axis, y: charts.Axis) -> charts.Figure | None:
    """The working runs that come with the app on these axes, as points of their own kind; None where its
    story has no such plot."""
    for view in shipped().get(FRONT, {"views": []})["views"]:
        if "figure" not in view or view["heading"] != _heading(x, y):
            continue
        drawn = [trace for trace in view["figure"]["data"] if "customdata" in trace]
        working = [trace for trace in drawn if trace["marker"]["symbol"] != "x-thin-open"]
        return {
            "type": "scatter", "mode": "markers", "name": say("explore.shipped_points"),
            "x": [value for trace in working for value in trace["x"]],
            "y": [value for trace in working for value in trace["y"]],
            # No run of this store: nothing opens.
            "customdata": [[None, *facts[1:]] for trace in working for facts in trace["customdata"]],
            "hovertemplate": working[0]["hovertemplate"],
            "marker": {
                "symbol": "triangle-down-open", "size": 7, "color": "var(--ink-3)", "opacity": 0.55,
                "line": {"width": 1},
            },
        }  # fmt: skip
    return None


def captions(frozen: Frozen) -> Story:
    """A story of one's own with the words of a frozen one; the views have to be added anew."""
    views = [StoryView(kind="text", caption=view["caption"]) for view in frozen["views"]]
    return Story(title=frozen["title"], summary=frozen["summary"], views=tuple(views))


def public(name: object) -> str:
    """A model or text as strangers may read it: of a path only its last part."""
    told = str(name)
    prefix = "file:" if told.startswith("file:") else ""
    path = told.removeprefix("file:").replace("\\", "/")
    local = bool(prefix) or path.startswith(("/", "~", ".")) or path[1:3] == ":/"
    return prefix + path.rstrip("/").rsplit("/", 1)[-1] if local else told


def _heading(x: charts.Axis, y: charts.Axis) -> str:
    return say("stories.plot_heading", quality=y.title, cost=x.title[0].lower() + x.title[1:])


def _plot(database: Database, query: Mapping[str, str]) -> Frozen:
    view = View.of_query(query)
    points = results.points(database)
    known = scopes(points)
    if not known or (view.scope and view.scope not in known):
        raise _GoneError(say("stories.runs_are_gone"))
    shown = visible(points, view)
    # When a run finished, and whose it was, is nothing to a reader of the story.
    told = shown.assign(
        model=shown["model"].map(public), text=shown["text"].map(public), finished=None, user="", source=""
    )
    kinds = {method.spoken: method.kind for method in discover().methods.values()}
    drawn = figure(database, told, replace(view, scope="story"), kinds)
    for trace in drawn["data"]:
        for point in trace.get("customdata", []):
            point[-1] = point[-1].replace(f", {MISSING}", "", 1)
    count = many("stories.runs", len(told))
    place = f"{told['model'].iloc[0]}, {told['text'].iloc[0]}, {count}" if len(told) else count
    if view.run:
        ringed = told.loc[told["id"] == view.run, "chain"]
        place += (
            say("stories.ringed", chain=ringed.iloc[0]) if len(ringed) else say("stories.ringed_run_is_gone")
        )
    return {"heading": _heading(*view.axes), "note": place, "figure": drawn, "selected": view.run}


def _compare(database: Database, query: Mapping[str, str]) -> Frozen:
    runs = _runs(database, query.get("runs", ""))
    rows = answers_of(database, query["group"][:32]) if query.get("group") else []
    if query.get("group") and not rows:
        raise _GoneError(say("stories.answers_are_gone"))
    names = {row["run_id"]: _chain(database, row["run_id"]) for row in rows}
    # An error's text may name the machine; that there was one is enough.
    lanes = "".join(
        lane(names[row["run_id"]], row | {"error": None}, rows[0] if number else None)
        for number, row in enumerate(rows)
    )
    asked = (
        f'<p class="prompt">{escape(rows[0]["prompt"])}</p><div class="lanes">{lanes}</div>' if rows else ""
    )
    if not rows and not runs:
        raise _GoneError(say("stories.no_run_named"))
    heading = ", ".join(run["chain"] for run in runs) or ", ".join(names.values())
    return {"heading": heading, "body": asked + numbers(database, runs)}


def _layers(database: Database, query: Mapping[str, str]) -> Frozen:
    runs = _runs(database, query.get("run") or query.get("runs", ""))
    try:
        shown = layers.shown_of(database, [run["id"] for run in runs], query.get("quantity", "error"))
    except UserError as error:
        raise _GoneError(say("stories.no_map")) from error
    if shown is None:
        raise _GoneError(say("stories.no_run_named"))
    names, chosen = [run["chain"] for run in shown.runs], query.get("layer", "")[:200]
    what = say("stories.minus", second=names[1], first=names[0]) if shown.both else names[0]
    found = facts(shown.tables).get(chosen, [])
    head = ["", *names, *([say("layers.difference")] if shown.both else [])]
    body = table(head, [(escape(title), *map(escape, values)) for title, values in found]) if found else ""
    frozen = {"heading": f"{shown.quantity.title}: {what}", "note": chosen if found else "", "body": body}
    return frozen | {"figure": json.loads(layers.figure(shown, chosen if found else "")), "selected": ""}


def _runs(database: Database, ids: str) -> list[dict[str, Any]]:
    wanted = [run_id[:12] for run_id in ids.split(",") if run_id][: compare.MOST_RUNS]
    found: Sequence[dict[str, Any] | None] = [results.run(database, run_id) for run_id in wanted]
    gone = [run_id for run_id, run in zip(wanted, found, strict=True) if run is None]
    if gone:
        raise _GoneError(say("stories.run_is_gone", runs=", ".join(gone)))
    runs = [run for run in found if run is not None]
    if len({run["model"] for run in runs}) > 1:
        raise _GoneError(say("stories.several_models"))
    return runs


def _chain(database: Database, run_id: str | None) -> str:
    run = results.run(database, run_id) if run_id else None
    return run["chain"] if run else charts.DENSE


_FREEZE = {"plot": _plot, "compare": _compare, "layers": _layers}
_NAMES = {"plot": say("stories.plot"), "compare": say("stories.comparison"), "layers": say("stories.layers")}
