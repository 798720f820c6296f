"""The table of runs: one line a run, sorted by any number; and the same as a file."""

import json
from html import escape

import pandas as pd

from ui.panel import STATES, badge
from ui.quantities import MISSING, age, measured
from ui.texts import say
from ui.view import View

MOST_ROWS = 200
_NUMBERS = (
    (say("metric.perplexity"), "perplexity"),
    (say("explore.kl"), "divergence.kl"),
    (say("explore.kl_p99"), "divergence.kl_p99"),
    (say("explore.agreement"), "divergence.agreement"),
    (say("explore.packed"), "size.packed"),
    (say("explore.file"), "size.file"),
    (say("metric.peak"), "memory.peak"),
    (say("explore.bits_a_weight"), "size.bits_per_weight"),
)


def ordered(shown: pd.DataFrame, order: str) -> pd.DataFrame:
    """Sorted by `METRIC` or `-METRIC`; newest first when the order names nothing."""
    column = order.removeprefix("-")
    if column not in ("chain", "finished", *(metric for _, metric in _NUMBERS)) or column not in shown:
        return shown
    return shown.sort_values(column, ascending=not order.startswith("-"), kind="stable", na_position="last")


def rows(shown: pd.DataFrame, view: View) -> str:
    """The table: one line a run, sorted, the first ones only when there are very many."""
    listed = ordered(shown, view.order).head(MOST_ROWS)
    columns = [
        (say("common.run"), ""),
        (say("explore.chain"), "chain"),
        *_NUMBERS,
        (say("explore.finished"), "finished"),
    ]
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
        mark = f" {badge(STATES['broken'], 'bad')}" if isinstance(broken, str) else ""
        numbers = (
            (title, measured(metric, columns_there[metric][index]) if metric in columns_there else MISSING)
            for title, metric in _NUMBERS
        )
        # Where a line is too narrow for all columns, each number stands below its label.
        cells = "".join(
            f'<td class="num" data-label="{escape(title)}">{number}</td>' for title, number in numbers
        )
        selected = ' aria-selected="true"' if run == view.run else ""
        body.append(
            f'<tr tabindex="0" data-send data-action="open" data-run="{escape(run)}"{selected}>'
            f'<td class="key">{escape(run)}</td><td class="wide">{escape(chain)}{mark}</td>{cells}'
            f'<td data-label="{escape(say("explore.finished"))}">{age(finished)}</td></tr>'
        )
    if not body:
        return f'<p class="note">{say("explore.nothing_found")}</p>' if view.words else ""
    rest = len(shown) - len(body)
    note = f'<p class="note">{say("explore.more_runs", rest=rest)}</p>' if rest else ""
    return (
        f'<div class="rows"><table><thead><tr>{"".join(head)}</tr></thead><tbody>{"".join(body)}</tbody>'
        f"</table></div>{note}"
    )


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
