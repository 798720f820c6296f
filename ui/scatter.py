"""The trade-off plot of Explore as a plotly figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from ui import charts, filters
from ui.charts import DENSE, Axis, Figure, layout, rounded, short
from ui.noise import DOMINATED, FRONT, WITHIN, Windows, standing
from ui.quantities import age, byte_size, significant, with_error
from ui.texts import say

Symbol = Literal["stages", "kind", "none"]
Dominated = Literal["dim", "show", "hide"]
SYMBOLS: tuple[Symbol, ...] = get_args(Symbol)
DOMINATED_RUNS: tuple[Dominated, ...] = get_args(Dominated)
COLOURS = ("method", "family", "model", "user", "sweep")
# Beyond this many points error bars are a hatching, not information.
_MOST_ERROR_BARS = 400
# Beyond this many points the browser draws them on its graphics card, and a hover tells the numbers of the
# plot alone: the rest is on the run's card.
_CROWD = 2000
# More values than this of a parameter are told by a scale, not one by one.
_MOST_GROUPS = 10
# Okabe and Ito's colours, darkened or lightened to read on both pages; apart for every colour blindness.
_GROUPS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8912a", "#4ba3d9", "#7d8894", "#8a63d2", "#c9463d"),
    "#6c9a2b",
)
# What the runs are called that lack the parameter which gives the colour.
_WITHOUT = say("explore.without")


@dataclass(frozen=True)
class Look:
    """How points are drawn: what colour and symbol mean, what becomes of dominated runs."""

    colour: str = "method"
    symbol: Symbol = "stages"
    dominated: Dominated = "dim"
    broken: bool = True
    log_x: bool = False
    log_y: bool = False


def scatter(
    points: pd.DataFrame,
    x: Axis,
    y: Axis,
    kinds: Mapping[str, str],
    look: Look,
    windows: Windows | None = None,
    revision: str = "",
) -> Figure:
    """Trade-offs of runs, their Pareto front, what cannot be told from it, and the dense reference.

    Runs of several models or protocols get a front each, and a symbol each.
    """
    table = _placed(points, x, y)
    x, y = (_flagged(axis, table) for axis in (x, y))
    groups = table["_group"].drop_duplicates().tolist()
    scopes = len(table[["model", "protocol"]].drop_duplicates())
    traces: list[Figure] = []
    told = pd.Series(DOMINATED, index=table.index)
    for group in groups:
        own = table[(table["_group"] == group) & table["broken"].isna()]
        told[own.index] = standing(own, x, y, windows or {})
        traces.append(_front_line(own[told[own.index] == FRONT], x, first=group == groups[0]))
    runs = table[table["broken"].isna() & (table["chain"] != DENSE)]
    if scopes == 1:
        # The dense model has a star of its own.
        groups = runs["_group"].drop_duplicates().tolist()
    near = runs[told[runs.index] == WITHIN]
    if len(near) and len(windows or {}):
        traces.append(_halo(near))
    if look.dominated == "hide":
        runs = runs[told[runs.index] != DOMINATED]
    faint = (told[runs.index] == DOMINATED) & (look.dominated == "dim")
    symbols = _symbols(runs, kinds, look, groups)
    # What is bright comes first, for the legend shows the first point of each colour.
    runs = runs.loc[faint.sort_values(kind="stable").index]
    for name, colour, own in _coloured(runs, kinds, look):
        traces.append(
            _markers(own, name, colour, len(runs), symbols[own.index], faint[own.index], told, (x, y))
        )
    broken = table[table["broken"].notna() & (table["chain"] != DENSE)]
    if look.broken and len(broken):
        traces.append(_crosses(broken, table[table["broken"].isna()], y, told))
    dense = table[table["chain"] == DENSE].drop_duplicates(["model", "protocol"])
    if len(dense):
        traces.append(_star(dense, told))
    if len(groups) > 1:
        traces += _legend_of(groups, table)
    height = float(dense["_y"].iloc[0]) if len(dense) == 1 and scopes == 1 else None
    return {
        "data": traces,
        "layout": layout(
            x, y, look.log_x, look.log_y, height,
            f"{revision}|{x.metric}|{y.metric}|{look.log_x}|{look.log_y}", few_ticks=_spans(table["_y"]),
        ),
    }  # fmt: skip


def _spans(values: pd.Series) -> bool:
    """Whether positive numbers span so much that a tick at each digit would be a crowd."""
    there = values[values > 0]
    return bool(len(there) and there.max() / there.min() > 300)


def _placed(points: pd.DataFrame, x: Axis, y: Axis) -> pd.DataFrame:
    hovered = [metric for _, metric in _HOVER_LINES] + list(_SIZES)
    named = [*_DESCRIBED, *hovered, *(f"{metric}.stderr" for metric in hovered)]
    named = [name for name in named if name in points]
    # Few columns: every choice of rows copies all of them.
    table = points.reindex(columns=list(dict.fromkeys([*named, x.metric, y.metric, f"{y.metric}.stderr"])))
    table = table.assign(
        _x=table[x.metric].astype(float) / x.scale,
        _y=table[y.metric].astype(float) / y.scale,
        _error=table[f"{y.metric}.stderr"].astype(float) / y.scale,
    )
    # Where no axis is a speed, nothing is simulated.
    speeds = table["speeds"] if charts.is_speed(x.metric) or charts.is_speed(y.metric) else ""
    table = table.assign(speeds=speeds).fillna({"speeds": ""})
    table["_group"] = table["model"] + "|" + table["protocol"] + "|" + table["speeds"]
    return table[np.isfinite(table["_x"]) & np.isfinite(table["_y"])]


def _flagged(axis: Axis, table: pd.DataFrame) -> Axis:
    """The axis, its title saying whether speeds on it are simulated."""
    simulated = table["speeds"] == "simulated"
    if not charts.is_speed(axis.metric) or not simulated.any():
        return axis
    flag = say("explore.simulated") if simulated.all() else say("explore.partly_simulated")
    return replace(axis, title=axis.title + flag)


def _front_line(best: pd.DataFrame, x: Axis, first: bool) -> Figure:
    best = best.sort_values("_x", ascending=not x.higher_is_better, kind="stable")
    return {
        "type": "scatter", "mode": "lines", "name": say("explore.pareto_front"), "hoverinfo": "skip",
        "showlegend": first,
        "x": rounded(best["_x"]), "y": rounded(best["_y"]),
        "line": {"shape": "hv", "width": 1.4, "color": "var(--plot-front)"},
    }  # fmt: skip


def _halo(near: pd.DataFrame) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "name": say("explore.within_noise"), "hoverinfo": "skip",
        "x": rounded(near["_x"]), "y": rounded(near["_y"]),
        "marker": {"size": 21, "color": "var(--plot-near)", "line": {"width": 0}},
    }  # fmt: skip


def _coloured(
    runs: pd.DataFrame, kinds: Mapping[str, str], look: Look
) -> list[tuple[str, str | tuple[list[float], str], pd.DataFrame]]:
    """(name, colour or numbers for a scale, its runs) of each group of points."""
    if look.colour == "method":
        values = pd.Series(charts.leads(runs["chain"], kinds), index=runs.index, dtype=object)
        palette = charts.colours(kinds)
        named = {name: palette.get(name, charts.OTHER[0]) for name in values.unique()}
    elif look.colour == "family":
        families = [kinds.get(name, "other") for name in charts.leads(runs["chain"], kinds)]
        values = pd.Series(families, index=runs.index, dtype=object)
        named = charts.family_colours(values.unique())
    else:
        column = {"sweep": "sweep_id"}.get(look.colour, look.colour)
        values = runs[column] if look.colour in COLOURS else filters.parameter(runs, look.colour)
        numbers = pd.to_numeric(values, errors="coerce")
        if look.colour not in COLOURS and numbers.nunique() > _MOST_GROUPS:
            there = numbers.notna()
            scaled = [(look.colour, (numbers[there].tolist(), look.colour), runs[there])]
            return scaled + ([(_WITHOUT, charts.OTHER[0], runs[~there])] if (~there).any() else [])
        values = values.map(lambda value: _WITHOUT if value is None or value != value else _spoken(value))
        order = sorted(values.unique(), key=_natural)
        named = {name: _GROUPS[number % len(_GROUPS)] for number, name in enumerate(order)}
        named |= {_WITHOUT: charts.OTHER[0]} if _WITHOUT in named else {}
    return [(name, named[name], runs[values == name]) for name in sorted(named, key=_natural)]


def _spoken(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _symbols(runs: pd.DataFrame, kinds: Mapping[str, str], look: Look, groups: Sequence[str]) -> pd.Series:
    if len(groups) > 1:
        numbers = [groups.index(group) for group in runs["_group"]]
    elif look.symbol == "stages":
        numbers = [chain.count(" → ") for chain in runs["chain"]]
    elif look.symbol == "kind":
        order = sorted(set(kinds.values()))
        numbers = [order.index(kinds.get(name, order[0])) for name in charts.leads(runs["chain"], kinds)]
    else:
        numbers = [0] * len(runs)
    shapes = charts.SYMBOLS
    return pd.Series([shapes[min(number, len(shapes) - 1)] for number in numbers], index=runs.index)


def _markers(
    rows: pd.DataFrame,
    name: str,
    colour: str | tuple[list[float], str],
    crowd: int,
    symbols: pd.Series,
    faint: pd.Series,
    told: pd.Series,
    axes: tuple[Axis, Axis] | None = None,
) -> Figure:
    crowded = axes is not None and crowd > _CROWD
    small = crowd > _MOST_ERROR_BARS
    bright = 0.72 if small else 0.92
    marker: Figure = {
        "size": 7 if small else 10, "symbol": symbols.tolist(),
        "opacity": [0.28 if weak else bright for weak in faint],
        "line": {"width": 0.5 if small else 1, "color": "var(--paper)"},
    }  # fmt: skip
    if isinstance(colour, str):
        marker["color"] = colour
    else:
        numbers, title = colour
        marker |= {
            "color": [float(f"{value:.6g}") for value in numbers], "colorscale": "Viridis", "showscale": True,
            "colorbar": {"title": {"text": escape(title)}, "thickness": 10, "outlinewidth": 0, "len": 0.6},
        }  # fmt: skip
    trace: Figure = {
        "type": "scattergl" if crowded else "scatter", "mode": "markers", "name": escape(name),
        "x": rounded(rows["_x"]), "y": rounded(rows["_y"]), "marker": marker,
    }  # fmt: skip
    if axes is not None and crowded:
        trace["customdata"] = [
            [run, short(chain, 60), _STANDINGS[place] + _SPEEDS.get(speeds, "")]
            for run, chain, place, speeds in zip(
                rows["id"], rows["chain"], told[rows.index], rows["speeds"], strict=True
            )
        ]
        trace["hovertemplate"] = (
            f"<b>%{{customdata[1]}}</b><br>{axes[1].title}  %{{y:.4g}}<br>{axes[0].title}  %{{x:.4g}}<br>"
            "%{customdata[2]}<extra></extra>"
        )
    else:
        trace |= {"customdata": _facts(rows, told), "hovertemplate": _HOVER}
    if not small and isinstance(colour, str):
        # A bar as strong as a dimmed point's would outshine the point.
        errors = [
            None if np.isnan(e) or weak else float(f"{e:.4g}")
            for e, weak in zip(rows["_error"], faint, strict=True)
        ]
        trace["error_y"] = {"type": "data", "array": errors, "thickness": 1, "width": 2, "color": colour}
    return trace


def _plain(rows: pd.DataFrame, name: str, colour: str, told: pd.Series) -> Figure:
    same = pd.Series("circle", index=rows.index), pd.Series(False, index=rows.index)
    return _markers(rows, name, colour, _MOST_ERROR_BARS + 1, *same, told)


def _star(dense: pd.DataFrame, told: pd.Series) -> Figure:
    star = _plain(dense, say("common.dense"), "var(--plot-front)", told)
    star["marker"] |= {"symbol": "star", "size": 14, "opacity": 1}
    return star


def _crosses(broken: pd.DataFrame, sound: pd.DataFrame, y: Axis, told: pd.Series) -> Figure:
    """Broken runs; one far out stands just beyond the worst sound run, or it would flatten all the others."""
    worst = float(sound["_y"].min() / 1.15 if y.higher_is_better else sound["_y"].max() * 1.15)
    if np.isfinite(worst):
        clip = {"lower": worst} if y.higher_is_better else {"upper": worst}
        broken = broken.assign(_y=broken["_y"].clip(**clip))
    crosses = _plain(broken, say("common.broken"), "var(--bad)", told)
    crosses["marker"] |= {
        "symbol": "x-thin-open", "size": 8, "opacity": 0.8, "line": {"width": 1.6, "color": "var(--bad)"},
    }  # fmt: skip
    return crosses


def _legend_of(groups: Sequence[str], table: pd.DataFrame) -> list[Figure]:
    """What each symbol stands for, where several models or protocols share a picture."""
    entries = []
    told = [group.rsplit("|", 2) for group in groups]
    alike = len({(model, protocol) for model, protocol, _ in told}) == 1
    for number, (group, (model, protocol, speeds)) in enumerate(zip(groups, told, strict=True)):
        own = table[table["_group"] == group].iloc[0]
        words = [model, own["text"] or say("explore.no_text"), own["computed"]]
        scope = f"{', '.join(filter(None, words))} ({protocol[:4]})"
        name = _SPEEDS[speeds].removeprefix(", ") if alike else scope + _SPEEDS.get(speeds, "")
        entries.append(
            {
                "type": "scatter", "mode": "markers", "x": [None], "y": [None], "hoverinfo": "skip",
                "name": escape(name),
                "marker": {
                    "symbol": charts.SYMBOLS[min(number, len(charts.SYMBOLS) - 1)], "color": "var(--ink-3)",
                },
            }
        )  # fmt: skip
    return entries


_HOVER_LINES = (
    (say("metric.perplexity"), "perplexity"),
    (say("explore.kl_from_dense"), "divergence.kl"),
    (say("metric.kl_p99"), "divergence.kl_p99"),
    (say("metric.agreement"), "divergence.agreement"),
)
_HOVER = (
    "<b>%{customdata[1]}</b><br>"
    + "".join(f"{label}  %{{customdata[{number}]}}<br>" for number, (label, _) in enumerate(_HOVER_LINES, 2))
    + say(
        "explore.hover_sizes",
        packed="%{customdata[6]}",
        file="%{customdata[7]}",
        peak="%{customdata[8]}",
    )
    + "<br>"
    + say("explore.hover_bits", bits="%{customdata[9]}")
    + "<br>%{customdata[10]}<extra></extra>"
)
_SIZES = ("size.packed", "size.file", "memory.peak", "size.bits_per_weight")
_DESCRIBED = (
    *(
        "id",
        "chain",
        "model",
        "protocol",
        "text",
        "computed",
        "broken",
        "finished",
        "recipe",
        "user",
        "sweep_id",
        "speeds",
    ),
)
_SPEEDS = {"simulated": say("explore.speeds_simulated"), "real": say("explore.speeds_real")}
_STANDINGS = {
    FRONT: say("explore.on_the_front"),
    WITHIN: say("explore.within_noise"),
    DOMINATED: say("explore.dominated"),
}


def _facts(rows: pd.DataFrame, told: pd.Series) -> list[list[str]]:
    """What a point's hover tells, and first of all its run."""
    cells = [rows["id"].tolist(), [short(chain) for chain in rows["chain"]]]
    for _, metric in _HOVER_LINES:
        values = rows[metric] if metric in rows else [None] * len(rows)
        errors = rows[f"{metric}.stderr"] if f"{metric}.stderr" in rows else [None] * len(rows)
        cells.append([with_error(metric, *pair) for pair in zip(values, errors, strict=True)])
    for metric in _SIZES[:3]:
        cells.append([byte_size(value) for value in rows.get(metric, [None] * len(rows))])
    bits = rows.get("size.bits_per_weight", [None] * len(rows))
    cells.append([significant(value, 3) for value in bits])
    cells.append(
        [
            escape(
                f"{model}, {text or say('explore.no_text')}, {age(finished)}; "
                + (
                    say("explore.broken_because", broken=broken)
                    if isinstance(broken, str)
                    else _STANDINGS[place]
                )
                + _SPEEDS.get(speeds, "")
            )
            for model, text, finished, broken, place, speeds in zip(
                rows["model"],
                rows["text"],
                rows["finished"],
                rows["broken"],
                told[rows.index],
                rows["speeds"],
                strict=True,
            )
        ]
    )
    return [list(fact) for fact in zip(*cells, strict=True)]
