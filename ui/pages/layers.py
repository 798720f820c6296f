"""Layers: what a run made of every linear, block by block, or how two runs differ in it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.errors import UserError
from backend.jobs import Jobs
from store import results
from store.database import Database
from ui.charts import heat_map
from ui.layer_map import ERRORS, QUANTITIES, Quantity, differences, facts, final, known
from ui.pages.compare import choices, chosen_runs
from ui.panel import address, banner, button, card, link, panel, table, top
from ui.plot import plot
from ui.quantities import is_number
from ui.texts import say

MOST_RUNS = 2
_MOST_LISTED = 12


@dataclass(frozen=True)
class Shown:
    """The runs on the page, the table of each, and what the map shows of them."""

    runs: list[dict[str, Any]]
    tables: list[pd.DataFrame]
    quantity: Quantity
    cells: pd.DataFrame
    wanted: str

    @property
    def both(self) -> bool:
        """Whether the map shows a difference."""
        return len(self.runs) == 2


def shown_of(database: Database, ids: Sequence[str], wanted: str) -> Shown | None:
    """What the page shows of these runs, None without any; UserError when they cannot be shown together."""
    if len(ids) > MOST_RUNS:
        raise UserError(say("layers.too_many_runs", count=len(ids)))
    runs = chosen_runs(database, ids)
    if not runs:
        return None
    tables = [final(results.layers(database, run["id"]), run["recipe"]) for run in runs]
    for run, own in zip(runs, tables, strict=True):
        if own.empty:
            raise UserError(say("layers.none_in_this_run", id=run["id"], chain=run["chain"]))
    cells = differences(*tables) if len(tables) == 2 else tables[0]
    if not known(cells):
        raise UserError(say("layers.none_in_common"))
    usable = {quantity.column: quantity for quantity in known(cells)}
    return Shown(runs, tables, usable.get(wanted) or next(iter(usable.values())), cells, wanted)


def figure(shown: Shown, layer: str) -> str:
    """The map as JSON; the chosen layer is framed."""
    hovers, told = {}, facts(shown.tables)
    for name in shown.cells.index:
        lines = [f"<b>{escape(name)}</b>"]
        for title, values in told[name]:
            lines.append(f"{title}  {values[0]}" + (f" → {values[1]} ({values[2]})" if shown.both else ""))
        hovers[name] = "<br>".join(lines)
    drawn = heat_map(shown.cells, shown.quantity.column, shown.quantity.title, hovers, shown.both, layer)
    return json.dumps(drawn, separators=(",", ":"))


def side(shown: Shown, layer: str, database: Database) -> str:
    """The numbers of the chosen layer, and the layers that stand out."""
    return _layer(shown, layer, database) + _largest(shown, layer)


def _layer(shown: Shown, layer: str, database: Database) -> str:
    if not any(layer in own.index for own in shown.tables):
        return card(
            f"<h3>{say('layers.one_linear')}</h3><p>{say('layers.choose_a_cell')}</p>",
            "layer-card",
        )
    head = ["", *(_short(run) for run in shown.runs), *([say("layers.difference")] if shown.both else [])]
    lines = [(escape(title), *values) for title, values in facts(shown.tables)[layer]]
    history = ""
    for run in shown.runs:
        rows = results.layers(database, run["id"])
        own = rows[rows["layer"] == layer].sort_values("stage")
        steps = [
            (
                escape(str(row["method"])),
                QUANTITIES["error"].told(row["error"]),
                QUANTITIES["bits"].told(row["bits"]),
            )
            for row in own.to_dict("records")
        ]
        if len(steps) > 1:
            name = f'<p class="note">{_short(run)}</p>' if shown.both else ""
            history += (
                f"<h4>{say('layers.stage_by_stage')}</h4>"
                f"{name}{table(('', say('layers.error'), say('layers.bits_a_weight')), steps)}"
            )
    name = f'<span class="note mono">{escape(layer)}</span>'
    first = top(name, button(say("common.close"), "layer"))
    return card(
        f"{first}{table(head, lines)}{history}{_meaning(shown, layer)}",
        "layer-card",
    )


def _meaning(shown: Shown, layer: str) -> str:
    kinds = [own.loc[layer, "seen"] for own in shown.tables if layer in own.index]
    told = dict.fromkeys(ERRORS[kind] for kind in kinds if kind in ERRORS)
    if not told:
        return ""
    if len(told) > 1:
        return f'<p class="note">{say("layers.errors_differ", kinds="; ".join(told))}</p>'
    return f'<p class="note">{say("layers.error_means", kind=next(iter(told)))}</p>'


def _largest(shown: Shown, layer: str) -> str:
    column = shown.quantity.column
    size = shown.cells[column].astype(float).abs()
    if not (size > 0).any():
        equal = say("layers.equal") if shown.both else say("layers.zero")
        return card(f"<h3>{shown.quantity.title}</h3><p>{equal}</p>")
    most = shown.cells.loc[
        size[size > 0].sort_values(ascending=False, kind="stable").head(_MOST_LISTED).index
    ]
    body = "".join(
        f'<tr tabindex="0" data-send data-action="layer" data-run="{escape(name)}"'
        f'{" aria-selected=true" if name == layer else ""}><td class="key">{escape(_place(row))}</td>'
        f'<td class="num">{shown.quantity.told(row[column], shown.both)}</td></tr>'
        for name, row in most.iterrows()
    )
    title = say("layers.largest_differences") if shown.both else say("layers.largest")
    return card(
        f"<h3>{title}: {shown.quantity.title.lower()}</h3><div class='rows short'><table>{body}</table></div>"
    )


def _place(row: pd.Series) -> str:
    return say("layers.place", block=int(row["block"]), projection=row["projection"])


def _short(run: dict[str, Any]) -> str:
    return escape(run["chain"])


def heading(shown: Shown) -> str:
    """What the map shows, in a line."""
    names = [f'<a href="./?{urlencode({"run": run["id"]})}">{_short(run)}</a>' for run in shown.runs]
    column, title = shown.quantity.column, shown.quantity.title
    values = [value for value in shown.cells[column] if is_number(value)]
    what = f"{title}, <b>{names[0]}</b>"
    if shown.both:
        what = say("layers.minus", title=title, second=names[1], first=names[0])
    note = ""
    if shown.wanted == "error" != column:
        note = f" {say('layers.errors_not_comparable')}"
    elif len(values) < len(shown.cells):
        note = f" {say('layers.blanks')}"
    return f'<p class="lead" id="layers-heading">{what}.{note}</p>'


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    database = jobs.database
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Row(equal_height=False):
        picked = gr.Dropdown(
            [], multiselect=True, max_choices=MOST_RUNS, label=say("layers.runs"),
            elem_id="layer-runs", scale=5, min_width=300,
        )  # fmt: skip
        quantity = gr.Dropdown(
            [(known_.title, known_.column) for known_ in QUANTITIES.values()], value="error",
            label=say("layers.quantity"), elem_id="quantity", scale=2, min_width=200,
        )  # fmt: skip
    problem = panel("layers-problem")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            told = panel("layers-told")
            heat = plot("heat", say("layers.plot"))
        with gr.Column(scale=3, min_width=320):
            beside = panel("layer", _HOW)
    here = address("address")
    layer = gr.State("")

    def drawn(ids: Sequence[str], wanted: str, chosen: str) -> list[Any]:
        try:
            shown = shown_of(database, ids, wanted)
        except UserError as error:
            return [
                banner(escape(str(error)), "bad"),
                "",
                gr.update(value=None, visible=False),
                _HOW,
                gr.skip(),
            ]
        if shown is None:
            return ["", "", gr.update(value=None, visible=False), _guide(database), gr.skip()]
        offered = [(known_.title, known_.column) for known_ in known(shown.cells)]
        return [
            "", heading(shown), gr.update(value=figure(shown, chosen), visible=True),
            side(shown, chosen, database), gr.update(choices=offered, value=shown.quantity.column),
        ]  # fmt: skip

    def query(ids: Sequence[str], wanted: str, chosen: str) -> str:
        named = {"run": ids[0]} if len(ids) == 1 else {"runs": ",".join(ids)}
        named |= {"quantity": wanted if wanted != "error" else "", "layer": chosen}
        return "?" + urlencode({key: value for key, value in named.items() if value}, safe=",")

    def opened(request: gr.Request) -> list[Any]:
        asked = dict(request.query_params)
        ids = [run[:12] for run in (asked.get("run") or asked.get("runs", "")).split(",") if run][:MOST_RUNS]
        chosen, wanted = asked.get("layer", "")[:200], asked.get("quantity", "error")
        offered = choices(database, ids)
        usable = [run for run in ids if run in {run_id for _, run_id in offered}]
        parts = drawn(usable, wanted, chosen)
        if missing := [run for run in ids if run not in usable]:
            told = say("layers.not_known", runs=escape(", ".join(missing)))
            parts[0] = banner(told, "bad")
        return [gr.update(choices=offered, value=usable), *parts, chosen]

    def changed(ids: list[str] | None, wanted: str, chosen: str) -> list[Any]:
        return [*drawn(ids or [], wanted, chosen), query(ids or [], wanted, chosen)]

    def pressed(event: gr.EventData, ids: list[str] | None, wanted: str) -> list[Any]:
        chosen = str(event.run)[:200]
        return [*drawn(ids or [], wanted, chosen), chosen, query(ids or [], wanted, chosen)]

    shown_parts = [problem, told, heat, beside, quantity]
    page.load(opened, None, [picked, *shown_parts, layer], **quiet)
    for control in (picked, quantity):
        control.input(changed, [picked, quantity, layer], [*shown_parts, here], **quiet)
    for source in (heat, beside):
        source.select(pressed, [picked, quantity], [*shown_parts, layer, here], **quiet)


def _guide(database: Database) -> str:
    return _HOW if choices(database, []) else _NOTHING


_NOTHING = card(
    f"<h3>{say('layers.no_layers_yet')}</h3><p>{say('layers.nothing_yet')}</p>"
    f"<p>{link(say('common.compress_a_model'), 'compress')} {link(say('common.see_the_queue'), 'queue')}</p>",
    "how-to-layers",
)
_HOW = card(
    f"<h3>{say('layers.choose_a_run')}</h3><p>{say('layers.how_to')}</p>"
    f"<p>{link(say('common.explore'), './')} {link(say('common.compress_a_model'), 'compress')}</p>",
    "how-to-layers",
)
