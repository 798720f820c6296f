"""The card of one run: what it is, what was measured on it, where it lost most, how to repeat it."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from backend.export import formats
from store import results
from store.database import Database
from ui import charts
from ui.layer_map import ERRORS, final
from ui.panel import badge, button, code, link, table, top
from ui.quantities import TITLES, age, difference, duration, significant, with_error


def card(database: Database, run_id: str, points: pd.DataFrame) -> str:
    """Everything about one run; how to read the plot when none is chosen."""
    if not run_id:
        return GUIDE
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
        f"{_seconds(run)}{_layers(results.layers(database, run_id), run)}{_reproduce(run)}"
        f"{_log(database, run_id)}</div>"
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
    if run["artifact"] and run["recipe"].get("stages"):
        actions.append(link("Layers", f"layers?{urlencode({'run': run['id']})}"))
    if run["artifact"]:
        actions.append(button("Hold for comparison", "hold", run["id"]))
    actions.append('<button type="button" class="act" data-copy-address>Copy link</button>')
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
        f"{top(name, button('Close', 'close'))}<h3 data-page>{escape(run['chain'])}</h3>"
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


def _layers(layers: pd.DataFrame, run: Mapping[str, Any]) -> str:
    if layers.empty or layers["error"].isna().all():
        return ""
    last = final(layers, run["recipe"])
    worst = last.sort_values("error", ascending=False).head(5)
    lines = [
        (f'<span class="mono">{escape(layer)}</span>', significant(error, 3), significant(bits, 3))
        for layer, error, bits in zip(worst["layer"], worst["error"], worst["bits"], strict=True)
    ]
    middle = significant(float(last["error"].median()), 3)
    kinds = [ERRORS[kind] for kind in dict.fromkeys(last["seen"]) if kind in ERRORS]
    meaning = (
        f"Error of a layer: {kinds[0]}; median" if len(kinds) == 1 else "Errors of several kinds; median"
    )
    return (
        f"<h4>Worst layers</h4>{table(('of ' + str(len(last)), 'error', 'bits/weight'), lines)}"
        f'<p class="note">{meaning} {middle}.</p>'
    )


def _log(database: Database, run_id: str) -> str:
    lines = results.log_tail(database, run_id, 60)["line"]
    if lines.empty:
        return ""
    printed = escape("\n".join(lines))
    body = f"<summary class='note'>Log</summary><div class='log'>{printed}</div>"
    return f"<details id='card-log'>{body}</details>"


def _reproduce(run: Mapping[str, Any]) -> str:
    recipe = json.dumps(run["recipe"], indent=1, ensure_ascii=False)
    exports = "\n".join(
        f"python app.py export {run['id']} --format {name} --to {run['id']}-{name}" for name in formats()
    )
    export = (
        f"<details id='card-export'><summary class='note'>Export the model</summary>"
        f"{code(exports, 'export-commands')}</details>"
        if run["artifact"]
        else ""
    )
    return (
        f"<h4>Reproduce</h4>{code('python app.py run recipe.json', 'reproduce-command')}"
        f"<details id='card-recipe'><summary class='note'>recipe.json</summary>"
        f"{code(recipe, 'reproduce-recipe')}</details>{export}"
    )


GUIDE = """<div class="panel"><h3>Reading the plot</h3>
<p>Every point is a compressed model: what it costs across, how far it is from the dense model upwards.
The line joins the points that no other run beats; the dotted line is the dense model.
A soft disc marks a run that the measured windows cannot tell from the line; a faint point is beaten
beyond noise.</p>
<p>Circles are one method, diamonds two in a row, squares three. Colour tells the method that sets the
bytes. Crosses are runs that broke: they stay off the line.</p>
<p class="note">Choose a point, or a line of the table, to see everything about that run.
1 MB is 10<sup>6</sup> bytes.</p></div>"""
