"""The card of one run: what it is, what was measured on it, where it lost most, how to repeat it."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from backend.export import formats
from backend.jobs import Jobs
from store import results
from store.database import Database
from ui import charts
from ui.downloads import offers
from ui.layer_map import ERRORS, final
from ui.panel import STATES, badge, button, code, link, table, top
from ui.quantities import MISSING, TITLES, age, difference, duration, significant, with_error
from ui.texts import say

# From so many numbers on a curve says more than they do.
_CURVE = 4


def card(jobs: Jobs, run_id: str, points: pd.DataFrame) -> str:
    """Everything about one run; how to read the plot when none is chosen."""
    database = jobs.database
    if not run_id:
        return GUIDE
    run = results.run(database, run_id)
    if run is None:
        return (
            f'<div class="panel"><h3>{say("explore.no_run", run_id=escape(run_id))}</h3>'
            f"<p>{say('explore.removed')}</p></div>"
        )
    own = points[points["id"] == run_id]
    protocol = str(own["protocol"].iloc[0]) if len(own) else ""
    same = points[(points["model"] == run["model"]) & (points["protocol"] == protocol)]
    references = same.loc[(same["chain"] == charts.DENSE) & (same["status"] == "done"), "id"]
    dense_id = str(references.iloc[0]) if len(references) and run["chain"] != charts.DENSE else ""
    found = results.measurements(database, [run_id, dense_id] if dense_id else [run_id])
    return (
        f'<div class="panel" id="run-card">{_heading(run)}{_numbers(found, run_id, dense_id, protocol)}'
        f"{_seconds(run)}{_notes(run)}{_layers(results.layers(database, run_id), run)}{_reproduce(jobs, run)}"
        f"{_log(database, run_id)}</div>"
    )


def status_badge(run: Mapping[str, Any]) -> str:
    """The state of a run in one word."""
    if run["status"] == "done":
        return badge(STATES["broken"], "bad") if run["broken"] else badge(STATES["done"], "good")
    tone = {"running": "info", "failed": "bad", "cancelled": "warn"}.get(run["status"], "")
    return badge(STATES[run["status"]], tone)


def _heading(run: Mapping[str, Any]) -> str:
    evaluation = run["recipe"].get("evaluation", {})
    actions = []
    if run["artifact"]:
        actions.append(link(say("explore.compare"), f"compare?{urlencode({'runs': run['id']})}"))
    if run["artifact"] and run["recipe"].get("stages"):
        actions.append(link(say("explore.layers"), f"layers?{urlencode({'run': run['id']})}"))
    if run["artifact"]:
        actions.append(button(say("explore.hold_for_comparison"), "hold", run["id"]))
    actions.append(f'<button type="button" class="act" data-copy-address>{say("explore.copy_link")}</button>')
    actions.append(link(say("explore.change_and_queue_again"), f"compress?{urlencode({'from': run['id']})}"))
    if run["report"].get("plan"):
        actions.append(link(say("explore.queue_its_plan"), f"compress?{urlencode({'plan-of': run['id']})}"))
    if run["status"] != "done":
        actions.append(link(say("explore.open_in_the_queue"), f"queue?{urlencode({'run': run['id']})}"))
    text = ", ".join(
        escape(str(part))
        for part in (
            run["model"],
            evaluation.get("text", ""),
            say("explore.windows_of_tokens", windows=evaluation["windows"], length=evaluation["length"])
            if "windows" in evaluation
            else "",
        )
        if part
    )
    cause = f'<p class="bad-ink">{escape(run["broken"])}</p>' if run["broken"] else ""
    failure = (
        f'<p class="bad-ink">{escape(str(run["error"]).strip().splitlines()[-1])}</p>' if run["error"] else ""
    )
    since = age(run["finished"] or run["created"])
    told = say("explore.asked_for", text=text, user=escape(run["user"]), finished=since)
    name = f'{status_badge(run)}<span class="note mono">{run["id"]}</span>'
    return (
        f"{top(name, button(say('common.close'), 'close'))}<h3 data-page>{escape(run['chain'])}</h3>"
        f'<p class="note">{told}</p>'
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
        if charts.is_speed(metric) and json.loads(own.loc[metric, "stamp"]).get("simulated"):
            title += say("explore.simulated")
            # The dense model's speed is a real one.
            dense.pop(metric, None)
        lines.append(
            (
                escape(title),
                with_error(metric, value, stderr),
                f'<span class="subtle">{difference(metric, value, dense.get(metric))}</span>',
            )
        )
    if not lines:
        return f'<p class="note" style="margin-top:12px">{say("explore.not_measured")}</p>'
    return f"<h4>{say('explore.measured')}</h4>" + table(
        ("", say("explore.this_run"), say("explore.against_dense") if dense_id else ""), lines
    )


def _seconds(run: Mapping[str, Any]) -> str:
    taken = [(phase, seconds) for phase, seconds in run["seconds"].items() if seconds]
    if not taken:
        return ""
    longest = sorted(taken, key=lambda pair: -pair[1])[:4]
    told = ", ".join(f"{escape(phase)} {duration(seconds)}" for phase, seconds in longest)
    total = duration(sum(seconds for _, seconds in taken))
    return f'<h4>{say("explore.time")}</h4><p>{total} <span class="note">({told})</span></p>'


def _notes(run: Mapping[str, Any]) -> str:
    """What methods tell of their work, stage by stage."""
    told = []
    for stage, notes in (run["report"].get("notes") or {}).items():
        lines = [(escape(name), _noted(name, value)) for name, value in notes.items()]
        told.append(f"<h4>{escape(stage)}</h4>{table((), lines, numeric_from=2)}")
    return "".join(told)


def _noted(name: str, value: Any) -> str:
    """A value, or where there are many numbers their curve with its ends."""
    if not (
        isinstance(value, list) and len(value) >= _CURVE and all(isinstance(one, float) for one in value)
    ):
        return escape(_plain(value))
    low, high = min(value), max(value)
    across, up = 196 / (len(value) - 1), 32 / ((high - low) or 1.0)
    points = " ".join(f"{2 + across * at:.1f},{36 - up * (one - low):.1f}" for at, one in enumerate(value))
    first, last, least, most = (significant(one, 4) for one in (value[0], value[-1], low, high))
    ends = say("explore.curve", first=first, last=last, least=least, most=most)
    return (
        f'<svg class="curve" viewBox="0 0 200 38" role="img" aria-label="{escape(name)}: {ends}">'
        f'<title>{escape(_plain(value))}</title><polyline points="{points}"/></svg>'
        f'<div class="note">{ends}</div>'
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(one) for one in value) or MISSING
    return significant(value, 4) if isinstance(value, float) else str(value)


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
    meaning = say("explore.error_means", kind=kinds[0]) if len(kinds) == 1 else say("explore.errors_differ")
    head = (say("explore.of_so_many", count=len(last)), say("layers.error"), say("layers.bits_a_weight"))
    return (
        f'<h4>{say("explore.worst_layers")}</h4>{table(head, lines)}<p class="note">{meaning} {middle}.</p>'
    )


def _log(database: Database, run_id: str) -> str:
    lines = results.log_tail(database, run_id, 60)["line"]
    if lines.empty:
        return ""
    printed = escape("\n".join(lines))
    body = f"<summary class='note'>{say('common.log')}</summary><div class='log'>{printed}</div>"
    return f"<details id='card-log'>{body}</details>"


def _reproduce(jobs: Jobs, run: dict[str, Any]) -> str:
    recipe = json.dumps(run["recipe"], indent=1, ensure_ascii=False)
    exports = "\n".join(
        f"python app.py export {run['id']} --format {name} --to {run['id']}-{name}" for name in formats()
    )
    export = (
        f"<details id='card-export'><summary class='note'>{say('explore.export_the_model')}</summary>"
        f"{offers(jobs, run)}{code(exports, 'export-commands')}</details>"
        if run["artifact"]
        else ""
    )
    return (
        f"<h4>{say('explore.reproduce')}</h4>{code('python app.py run recipe.json', 'reproduce-command')}"
        f"<details id='card-recipe'><summary class='note'>recipe.json</summary>"
        f"{code(recipe, 'reproduce-recipe')}</details>{export}"
    )


GUIDE = (
    f'<div class="panel"><h3>{say("explore.reading_the_plot")}</h3>\n'
    f"<p>{say('explore.guide')}</p>\n"
    f"<p>{say('explore.guide_symbols')}</p>\n"
    f'<p class="note">{say("explore.guide_card")}</p></div>'
)
