"""Explore: what each run costs and what it keeps, the front between them, and everything about one run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.jobs import Jobs
from backend.registry import discover
from store import results
from store.database import Database
from ui import charts
from ui.panel import address, badge, banner, button, code, download, link, panel, table, top
from ui.plot import plot
from ui.quantities import MISSING, TITLES, age, difference, duration, measured, significant, with_error

MOST_ROWS = 200
_NUMBERS = (
    ("Perplexity", "perplexity"),
    ("KL, mean", "divergence.kl"),
    ("KL, 99 %", "divergence.kl_p99"),
    ("Agreement", "divergence.agreement"),
    ("Packed", "size.packed"),
    ("File", "size.file"),
    ("Peak memory", "memory.peak"),
    ("Bits/weight", "size.bits_per_weight"),
)


@dataclass(frozen=True)
class View:
    """What the reader looks at: the page's address says all of it."""

    scope: str = ""
    x: str = "size.packed"
    y: str = "perplexity"
    log_x: bool = False
    log_y: bool = True
    broken: bool = True
    words: str = ""
    run: str = ""
    order: str = ""

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> "View":
        """The view that an address names; what it does not know falls back to the default."""
        x, y = query.get("x", cls.x), query.get("y", cls.y)
        x, y = (x if x in charts.COSTS else cls.x), (y if y in charts.QUALITIES else cls.y)
        return cls(
            scope=query.get("scope", ""),
            x=x,
            y=y,
            log_x=query.get("logx", "1" if charts.COSTS[x].log else "0") == "1",
            log_y=query.get("logy", "1" if charts.QUALITIES[y].log else "0") == "1",
            broken=query.get("broken", "1") == "1",
            words=query.get("find", "")[:200],
            run=query.get("run", "")[:12],
            order=query.get("order", "")[:40],
        )

    def query(self, default_scope: str = "") -> str:
        """The address of this view, without what is the default anyway."""
        told = {
            "run": self.run,
            "x": self.x if self.x != View.x else "",
            "y": self.y if self.y != View.y else "",
            "logx": str(int(self.log_x)) if self.log_x != charts.COSTS[self.x].log else "",
            "logy": str(int(self.log_y)) if self.log_y != charts.QUALITIES[self.y].log else "",
            "broken": "" if self.broken else "0",
            "find": self.words,
            "scope": self.scope if self.scope != default_scope else "",
            "order": self.order,
        }
        return "?" + urlencode({key: value for key, value in told.items() if value})


def method_kinds() -> dict[str, str]:
    """{name: kind} of every method, as chains name them."""
    return {method.name: method.kind for method in discover().methods.values()}


def scopes(points: pd.DataFrame) -> list[str]:
    """Keys `MODEL|PROTOCOL` of what may share a plot, the one with most finished runs first."""
    done = points[(points["status"] == "done") & (points["protocol"] != "")]
    if done.empty:
        return []
    counted = (
        done.groupby(["model", "protocol"], sort=True).size().sort_values(ascending=False, kind="stable")
    )
    return [f"{model}|{protocol}" for model, protocol in counted.index]


def scope_choices(database: Database, points: pd.DataFrame) -> list[tuple[str, str]]:
    """(what the reader sees, key): model, text and windows of each scope."""
    keys = scopes(points)
    if not keys:
        return []
    firsts = points.drop_duplicates(["model", "protocol"]).set_index(["model", "protocol"])
    runs = {key: str(firsts.loc[tuple(key.rsplit("|", 1)), "id"]) for key in keys}
    stamps = results.measurements(database, sorted(set(runs.values())))
    choices = []
    for key in keys:
        model, protocol = key.rsplit("|", 1)
        own = stamps[(stamps["run_id"] == runs[key]) & (stamps["comparable"] == protocol)]
        stamp = json.loads(own["stamp"].iloc[0]) if len(own) else {}
        windows = f"{stamp.get('windows', '?')} x {stamp.get('window', '?')} tokens"
        text = str(stamp.get("text", "")) or "no text"
        in_scope = (points["model"] == model) & (points["protocol"] == protocol)
        count = int((in_scope & (points["status"] == "done")).sum())
        label = f"{model}: {text}, {windows}, {count} run{'' if count == 1 else 's'}"
        choices.append((label, key))
    labels = [label for label, _ in choices]
    # Two protocols can look alike and still differ, in the tokenizer or the digest of the text.
    return [(f"{label} ({key[-6:]})" if labels.count(label) > 1 else label, key) for label, key in choices]


def visible(points: pd.DataFrame, view: View) -> pd.DataFrame:
    """The finished runs of the view's scope that hold all of its words."""
    known = scopes(points)
    scope = view.scope if view.scope in known else (known[0] if known else "|")
    model, protocol = scope.rsplit("|", 1)
    shown = points[
        (points["model"] == model) & (points["protocol"] == protocol) & (points["status"] == "done")
    ]
    for word in view.words.lower().split():
        held = shown["chain"].str.lower().str.contains(word, regex=False)
        for column in ("id", "user", "source", "name"):
            held |= shown[column].str.lower().str.contains(word, regex=False)
        shown = shown[held | (shown["chain"] == charts.DENSE)]
    return shown


def ordered(shown: pd.DataFrame, order: str) -> pd.DataFrame:
    """Sorted by `METRIC` or `-METRIC`; newest first when the order names nothing."""
    column = order.removeprefix("-")
    if column not in ("chain", "finished", *(metric for _, metric in _NUMBERS)) or column not in shown:
        return shown
    return shown.sort_values(column, ascending=not order.startswith("-"), kind="stable", na_position="last")


def figure(shown: pd.DataFrame, view: View, kinds: Mapping[str, str]) -> str:
    """The plot of what is shown, as JSON."""
    drawn = charts.scatter(
        shown, charts.COSTS[view.x], charts.QUALITIES[view.y], kinds,
        log_x=view.log_x, log_y=view.log_y, show_broken=view.broken, revision=view.scope,
    )  # fmt: skip
    return json.dumps(drawn, separators=(",", ":"))


def rows(shown: pd.DataFrame, view: View) -> str:
    """The table: one line a run, sorted, the first ones only when there are very many."""
    listed = ordered(shown, view.order).head(MOST_ROWS)
    columns = [("Run", ""), ("Chain", "chain"), *_NUMBERS, ("Finished", "finished")]
    head = []
    for title, column in columns:
        look = ' class="num"' if column not in ("", "chain", "finished") else ""
        if not column:
            head.append(f'<th scope="col"><button type="button" tabindex="-1">{title}</button></th>')
            continue
        state = {column: "ascending", f"-{column}": "descending"}.get(view.order, "none")
        following = f"-{column}" if view.order == column else column
        head.append(
            f'<th scope="col"{look} aria-sort="{state}"><button type="button" data-send data-action="sort"'
            f' data-order="{following}">{title}</button></th>'
        )
    body = []
    columns_there = {metric: listed[metric].tolist() for _, metric in _NUMBERS if metric in listed}
    described = zip(*(listed[name].tolist() for name in ("id", "chain", "broken", "finished")), strict=True)
    for index, (run, chain, broken, finished) in enumerate(described):
        mark = f" {badge('broken', 'bad')}" if isinstance(broken, str) else ""
        numbers = (
            measured(metric, columns_there[metric][index]) if metric in columns_there else MISSING
            for _, metric in _NUMBERS
        )
        cells = "".join(f'<td class="num">{number}</td>' for number in numbers)
        selected = ' aria-selected="true"' if run == view.run else ""
        body.append(
            f'<tr tabindex="0" data-send data-action="open" data-run="{escape(run)}"{selected}>'
            f'<td class="key">{escape(run)}</td><td class="wide">{escape(chain)}{mark}</td>{cells}'
            f"<td>{age(finished)}</td></tr>"
        )
    if not body:
        return '<p class="note">No finished run holds these words.</p>' if view.words else ""
    rest = len(shown) - len(body)
    note = (
        f'<p class="note">{rest} more: narrow them down with a filter; the downloads hold all.</p>'
        if rest
        else ""
    )
    return (
        f'<div class="rows"><table><thead><tr>{"".join(head)}</tr></thead><tbody>{"".join(body)}</tbody>'
        f"</table></div>{note}"
    )


def card(database: Database, run_id: str, points: pd.DataFrame) -> str:
    """Everything about one run; how to read the plot when none is chosen."""
    if not run_id:
        return _GUIDE
    run = results.run(database, run_id)
    if run is None:
        return f'<div class="panel"><h3>No run {escape(run_id)}</h3><p>It may have been removed.</p></div>'
    own = points[points["id"] == run_id]
    protocol = str(own["protocol"].iloc[0]) if len(own) else ""
    same = points[(points["model"] == run["model"]) & (points["protocol"] == protocol)]
    references = same.loc[(same["chain"] == charts.DENSE) & (same["status"] == "done"), "id"]
    dense_id = str(references.iloc[0]) if len(references) and run["chain"] != charts.DENSE else ""
    found = results.measurements(database, [run_id, dense_id] if dense_id else [run_id])
    return (
        f'<div class="panel" id="run-card">{_heading(run)}{_numbers(found, run_id, dense_id, protocol)}'
        f"{_seconds(run)}{_layers(results.layers(database, run_id))}{_reproduce(run)}</div>"
    )


def status_badge(run: Mapping[str, Any]) -> str:
    """The state of a run in one word."""
    if run["status"] == "done":
        return badge("broken", "bad") if run["broken"] else badge("done", "good")
    tone = {"running": "info", "failed": "bad", "cancelled": "warn"}.get(run["status"], "")
    return badge(run["status"], tone)


def _heading(run: Mapping[str, Any]) -> str:
    evaluation = run["recipe"].get("evaluation", {})
    actions = [link("Compare", f"compare?{urlencode({'runs': run['id']})}")] if run["artifact"] else []
    actions.append(link("Change and queue again", f"compress?{urlencode({'from': run['id']})}"))
    if run["status"] != "done":
        actions.append(link("Open in the queue", f"queue?{urlencode({'run': run['id']})}"))
    text = ", ".join(
        escape(str(part))
        for part in (
            run["model"],
            evaluation.get("text", ""),
            f"{evaluation['windows']} x {evaluation['length']} tokens" if "windows" in evaluation else "",
        )
        if part
    )
    cause = f'<p class="bad-ink">{escape(run["broken"])}</p>' if run["broken"] else ""
    failure = (
        f'<p class="bad-ink">{escape(str(run["error"]).strip().splitlines()[-1])}</p>' if run["error"] else ""
    )
    name = f'{status_badge(run)}<span class="note mono">{run["id"]}</span>'
    return (
        f"{top(name, button('Close', 'close'))}<h3>{escape(run['chain'])}</h3>"
        f'<p class="note">{text}; by {escape(run["user"])}, {age(run["finished"] or run["created"])}</p>'
        f'{cause}{failure}<div class="acts" style="margin-top:8px">{"".join(actions)}</div>'
    )


def _numbers(found: pd.DataFrame, run_id: str, dense_id: str, protocol: str) -> str:
    # A run measured on several texts shows the one of its point; what belongs to the run has no text.
    found = found[(found["comparable"] == protocol) | (found["comparable"] == "")]
    own = found[found["run_id"] == run_id].drop_duplicates("metric", keep="last").set_index("metric")
    dense = found[found["run_id"] == dense_id].set_index("metric")["value"].to_dict()
    lines = []
    for metric, title in TITLES.items():
        if metric not in own.index:
            continue
        value, stderr = own.loc[metric, "value"], own.loc[metric, "stderr"]
        if metric.startswith("speed.") and json.loads(own.loc[metric, "stamp"]).get("simulated"):
            title += ", simulated"
        lines.append(
            (
                escape(title),
                with_error(metric, value, stderr),
                f'<span class="subtle">{difference(metric, value, dense.get(metric))}</span>',
            )
        )
    if not lines:
        return '<p class="note" style="margin-top:12px">Nothing has been measured yet.</p>'
    return "<h4>Measured</h4>" + table(("", "this run", "against dense" if dense_id else ""), lines)


def _seconds(run: Mapping[str, Any]) -> str:
    taken = [(phase, seconds) for phase, seconds in run["seconds"].items() if seconds]
    if not taken:
        return ""
    longest = sorted(taken, key=lambda pair: -pair[1])[:4]
    told = ", ".join(f"{escape(phase)} {duration(seconds)}" for phase, seconds in longest)
    total = duration(sum(seconds for _, seconds in taken))
    return f'<h4>Time</h4><p>{total} <span class="note">({told})</span></p>'


def _layers(layers: pd.DataFrame) -> str:
    if layers.empty or layers["error"].isna().all():
        return ""
    last = layers.sort_values("stage").drop_duplicates("layer", keep="last")
    worst = last.sort_values("error", ascending=False).head(5)
    lines = [
        (f'<span class="mono">{escape(layer)}</span>', significant(error, 3), significant(bits, 3))
        for layer, error, bits in zip(worst["layer"], worst["error"], worst["bits"], strict=True)
    ]
    middle = significant(float(last["error"].median()), 3)
    return (
        f"<h4>Worst layers</h4>{table(('of ' + str(len(last)), 'output error', 'bits/weight'), lines)}"
        f'<p class="note">Relative error of a layer\'s outputs on the calibration text; median {middle}.</p>'
    )


def _reproduce(run: Mapping[str, Any]) -> str:
    recipe = json.dumps(run["recipe"], indent=1, ensure_ascii=False)
    return (
        f"<h4>Reproduce</h4>{code('python app.py run recipe.json', 'reproduce-command')}"
        f"<details><summary class='note'>recipe.json</summary>{code(recipe, 'reproduce-recipe')}</details>"
    )


_GUIDE = """<div class="panel"><h3>Reading the plot</h3>
<p>Every point is a compressed model: what it costs across, how far it is from the dense model upwards.
The line joins the points that no other run beats; the dotted line is the dense model.</p>
<p>Circles are one method, diamonds two in a row, squares three. Colour tells the method that sets the
bytes. Crosses are runs that broke: they stay off the line.</p>
<p class="note">Choose a point, or a line of the table, to see everything about that run.
1 MB is 10<sup>6</sup> bytes.</p></div>"""


def activity(jobs: Jobs) -> str:
    """What the worker does now, in one line; empty when nothing waits."""
    waiting = results.queue(jobs.database)
    if not waiting:
        return ""
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


def as_csv(shown: pd.DataFrame) -> str:
    """What is shown as CSV; a cell that a spreadsheet would run as a formula is defused."""
    told = shown.drop(columns=["artifact"], errors="ignore").copy()
    for column in told.select_dtypes(include=["object", "string"]):
        told[column] = [
            f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell
            for cell in told[column]
        ]
    return told.to_csv(index=False)


def as_json(shown: pd.DataFrame) -> str:
    """What is shown as a JSON list, recipes as objects."""
    told = shown.drop(columns=["artifact"], errors="ignore")
    records = json.loads(told.to_json(orient="records"))
    for record in records:
        record["recipe"] = json.loads(record["recipe"])
    return json.dumps(records, indent=1, ensure_ascii=False)


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
            chosen = panel("card", _GUIDE)
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
        return draw(View(*_settled(values)))

    def picked(event: gr.EventData, *values: Any) -> list[Any]:
        view = View(*_settled(values))
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
        view = View(*_settled(values))
        points = results.points(database)
        return [versions, activity(jobs), card(database, view.run, points), *draw(view, points)]

    def saved_as(kind: str, *values: Any) -> dict[str, str]:
        shown = ordered(visible(results.points(database), View(*_settled(values))), values[-1])
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


def _settled(values: Sequence[Any]) -> tuple[Any, ...]:
    """Values of the controls as a View takes them; an axis that is none falls back to the default."""
    scope, x, y, *rest, words, run, order = values
    x, y = (x if x in charts.COSTS else View.x), (y if y in charts.QUALITIES else View.y)
    return (scope or "", x, y, *rest, (words or "")[:200], run or "", order or "")
