"""The numbers of several runs side by side, and where their recipes differ."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from store import results
from store.database import Database
from ui.charts import DENSE, is_speed
from ui.panel import card, table
from ui.quantities import MISSING, TITLES, difference, is_number, measured
from ui.texts import say

Cell = tuple[float | None, bool | None]


def dense_of(database: Database, run: Mapping[str, Any]) -> str:
    """The finished dense run of the same model under the same protocol, if there is one."""
    points = results.points(database)
    own = points[points["id"] == run["id"]]
    same = points[
        (points["model"] == run["model"])
        & (points["protocol"].isin(set(own["protocol"])))
        & (points["chain"] == DENSE)
        & (points["status"] == "done")
    ]
    return str(same["id"].iloc[0]) if len(same) else ""


def numbers(database: Database, runs: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of runs and dense as a table: differences to dense and to the first, the best in bold."""
    if not runs:
        return ""
    dense_id = dense_of(database, runs[0])
    ids = [run["id"] for run in runs]
    found = results.measurements(database, [*ids, dense_id] if dense_id else ids)
    # What has no text compares by the device alone, if it was measured on one.
    found["device"] = [json.loads(stamp).get("device", "") for stamp in found["stamp"]]
    # As of `_cells`: of several measurements of a run the last one counts.
    simulated = {
        (run_id, metric): is_speed(metric) and bool(json.loads(stamp).get("simulated"))
        for run_id, metric, stamp in zip(found["run_id"], found["metric"], found["stamp"], strict=True)
    }
    own = found[found["run_id"] == ids[0]]
    like_first = found["comparable"].isin({*own["comparable"], ""})
    like_first &= found["device"].isin({*own["device"], ""})
    found, foreign = found[like_first], found[~like_first & found["run_id"].isin(ids)]
    columns = ([dense_id] if dense_id else []) + ids
    head = ["", *([say("common.dense")] if dense_id else []), *(run["chain"] for run in runs)]
    lines = []
    for metric, title in TITLES.items():
        cells = _cells(found, metric, columns)
        if all(value is None for value, _ in cells.values()):
            continue
        line = [escape(title)]
        kinds = {column: simulated.get((column, metric), False) for column in columns}
        # Decoded weights and what really runs are two things: neither beats the other.
        mixed = len({kinds[run_id] for run_id in ids if cells[run_id][0] is not None}) > 1
        best = None if mixed else _best([cells[run_id] for run_id in ids])
        for column in columns:
            value = cells[column][0]
            told = measured(metric, value) + (say("explore.simulated") if kinds[column] else "")
            if column == dense_id:
                line.append(f'<span class="subtle">{told}</span>')
                continue
            bold = ' class="best"' if value is not None and value == best and len(ids) > 1 else ""
            others = [(dense_id, say("common.dense"))] if dense_id else []
            others += [(ids[0], say("compare.first"))] if column != ids[0] else []
            against = [
                (difference(metric, value, cells[other][0]), name)
                for other, name in others
                if kinds[other] == kinds[column]
            ]
            notes = ", ".join(
                say("compare.difference_to", difference=text, name=name)
                for text, name in against
                if text and text != say("number.same")
            )
            line.append(f'<span{bold}>{told}</span><br><span class="subtle">{notes}</span>')
        lines.append(line)
    if not lines:
        return ""
    note = ""
    if len(foreign):
        note = f'<p class="note">{say("compare.dash")}</p>'
    return card(f"<h3>{say('compare.measured')}</h3>{table(head, lines)}{note}", "numbers")


def _cells(found: pd.DataFrame, metric: str, columns: Sequence[str]) -> dict[str, Cell]:
    rows = found[found["metric"] == metric]
    cells: dict[str, Cell] = dict.fromkeys(columns, (None, None))
    for row in rows.to_dict("records"):
        if is_number(row["value"]):
            lower = row["lower_is_better"]
            cells[row["run_id"]] = (row["value"], None if lower is None or lower != lower else bool(lower))
    return cells


def _best(cells: Sequence[Cell]) -> float | None:
    values = [value for value, _ in cells if value is not None]
    lower = next((direction for _, direction in cells if direction is not None), None)
    if len(values) < 2 or lower is None or len(set(values)) == 1:
        return None
    return min(values) if lower else max(values)


def recipe_differences(runs: Sequence[Mapping[str, Any]]) -> str:
    """Only what differs between the recipes."""
    if len(runs) < 2:
        return ""
    flat = [dict(_leaves(run["recipe"])) for run in runs]
    keys = sorted({key for recipe in flat for key in recipe})
    lines = []
    for key in keys:
        values = [recipe.get(key, MISSING) for recipe in flat]
        if len(set(values)) > 1:
            lines.append([f'<span class="mono">{escape(key)}</span>', *(escape(value) for value in values)])
    if not lines:
        return ""
    head = ["", *(run["chain"] for run in runs)]
    return card(
        f"<h3>{say('compare.where_the_recipes_differ')}</h3>{table(head, lines)}", "recipe-differences"
    )


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else key)
        ]
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return [leaf for at, inner in enumerate(value, start=1) for leaf in _leaves(inner, f"{path} {at}")]
    return [] if value is None else [(path, value if isinstance(value, str) else json.dumps(value))]
