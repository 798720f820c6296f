"""Result tables as plotly figures (plain dictionaries). Colours of ink and lines are CSS variables, which the
plot resolves in the browser, so that a figure follows the light or dark page it stands on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ui.quantities import age, byte_size, significant, with_error

Figure = dict[str, Any]
DENSE = "dense"


@dataclass(frozen=True)
class Axis:
    """A measurement that can be an axis; `scale` divides the stored number, `log` is the usual choice."""

    metric: str
    title: str
    scale: float = 1.0
    higher_is_better: bool = False
    log: bool = False


COSTS = {
    axis.metric: axis
    for axis in (
        Axis("size.packed", "Packed size (MB)", 1e6),
        Axis("size.file", "File size (MB)", 1e6),
        Axis("memory.peak", "Peak memory (MB)", 1e6),
        Axis("size.bits_per_weight", "Bits per compressed weight"),
        Axis("size.bits_per_parameter", "Bits per parameter, whole model"),
    )
}
QUALITIES = {
    axis.metric: axis
    for axis in (
        Axis("perplexity", "Perplexity", log=True),
        Axis("divergence.kl", "KL divergence from dense (mean)", log=True),
        Axis("divergence.kl_p99", "KL divergence from dense (99th percentile)", log=True),
        Axis("divergence.agreement", "Top-1 agreement with dense (%)", 0.01, higher_is_better=True),
    )
}

# One family of hues a kind of method, of middle lightness: they must read on white and on near-black.
_PALETTES = {
    "quantize": ("#3f7fd0", "#8a63d2", "#2a9db5", "#c05fbf", "#5b6ee1", "#4f93a8"),
    "prune": ("#d9772b", "#c9463d", "#b8912a", "#d65a7e", "#a9653a", "#e0903f"),
    "factorize": ("#2f9e6e", "#6c9a2b", "#1f8f8a"),
    "compensate": ("#2f9e6e", "#6c9a2b", "#1f8f8a"),
}
_OTHER = ("#7d8894", "#94806b", "#6f8f7f")
# Which stage of a chain decides most about its bytes, and so gives the point its colour.
_LEADS = ("quantize", "prune", "factorize")
_SYMBOLS = ("circle", "diamond", "square", "hexagon2")
# Beyond this many points error bars are a hatching, not information.
_MOST_ERROR_BARS = 400


def colours(kinds: Mapping[str, str]) -> dict[str, str]:
    """{method name: colour} for {method name: kind}; the same methods always get the same colours."""
    placed: dict[str, int] = {}
    chosen: dict[str, str] = {}
    for name in sorted(kinds):
        palette = _PALETTES.get(kinds[name], _OTHER)
        position = placed.get(kinds[name], 0)
        placed[kinds[name]] = position + 1
        chosen[name] = palette[position % len(palette)]
    return chosen


def lead(chain: str, kinds: Mapping[str, str]) -> str:
    """The method that gives a chain such as `wanda 2:4 → gptq 3-bit g64` its colour; `other` if unknown."""
    names = [words.split(" ", 1)[0] for words in chain.split(" → ")]
    known = [name for name in names if name in kinds]
    for kind in _LEADS:
        for name in known:
            if kinds[name] == kind:
                return name
    return known[0] if known else "other"


def front(x: Sequence[float], y: Sequence[float], higher_is_better: bool = False) -> list[int]:
    """Positions of the points that no other beats (less x, better y), by x; equals stand together."""
    costs, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if higher_is_better:
        values = -values
    usable = np.flatnonzero(np.isfinite(costs) & np.isfinite(values))
    kept: list[int] = []
    best, best_cost = np.inf, np.nan
    for position in usable[np.lexsort((values[usable], costs[usable]))]:
        if values[position] < best or (values[position] == best and costs[position] == best_cost):
            kept.append(int(position))
            best, best_cost = values[position], costs[position]
    return kept


def scatter(
    points: pd.DataFrame,
    x: Axis,
    y: Axis,
    kinds: Mapping[str, str],
    *,
    log_x: bool = False,
    log_y: bool = False,
    show_broken: bool = True,
    revision: str = "",
) -> Figure:
    """Trade-offs of runs of one model under one protocol, their Pareto front and the dense reference."""
    table = _placed(points, x, y)
    dense = table[table["chain"] == DENSE].head(1)
    broken = table[table["broken"].notna() & (table["chain"] != DENSE)]
    sound = table[table["broken"].isna()]
    runs = sound[sound["chain"] != DENSE]
    traces: list[Figure] = [_front_line(sound, y)]
    leads = runs["chain"].map(lambda chain: lead(chain, kinds))
    palette = colours(kinds)
    for name in sorted(leads.unique()):
        traces.append(_markers(runs[leads == name], name, palette.get(name, _OTHER[0]), len(runs)))
    if show_broken and len(broken):
        traces.append(_crosses(broken, sound, y))
    if len(dense):
        star = _markers(dense, DENSE, "var(--plot-front)", _MOST_ERROR_BARS + 1)
        star["marker"] |= {"symbol": "star", "size": 14, "opacity": 1}
        traces.append(star)
    return {
        "data": traces,
        "layout": _layout(x, y, log_x, log_y, dense, f"{revision}|{x.metric}|{y.metric}|{log_x}|{log_y}"),
    }


def _placed(points: pd.DataFrame, x: Axis, y: Axis) -> pd.DataFrame:
    columns = [x.metric, y.metric, f"{y.metric}.stderr"]
    table = points.reindex(columns=[*points.columns, *(name for name in columns if name not in points)])
    table = table.assign(
        _x=table[x.metric].astype(float) / x.scale,
        _y=table[y.metric].astype(float) / y.scale,
        _error=table[f"{y.metric}.stderr"].astype(float) / y.scale,
    )
    return table[np.isfinite(table["_x"]) & np.isfinite(table["_y"])]


def _front_line(sound: pd.DataFrame, y: Axis) -> Figure:
    best = sound.iloc[front(sound["_x"].tolist(), sound["_y"].tolist(), y.higher_is_better)]
    return {
        "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
        "x": _rounded(best["_x"]), "y": _rounded(best["_y"]),
        "line": {"shape": "hv", "width": 1.4, "color": "var(--plot-front)"},
    }  # fmt: skip


def _markers(rows: pd.DataFrame, name: str, colour: str, crowd: int) -> Figure:
    stages = [min(chain.count(" → "), len(_SYMBOLS) - 1) for chain in rows["chain"]]
    small = crowd > _MOST_ERROR_BARS
    trace: Figure = {
        "type": "scatter", "mode": "markers", "name": name,
        "x": _rounded(rows["_x"]), "y": _rounded(rows["_y"]),
        "customdata": _facts(rows), "hovertemplate": _HOVER,
        "marker": {
            "color": colour, "size": 7 if small else 10, "opacity": 0.72 if small else 0.92,
            "symbol": [_SYMBOLS[number] for number in stages],
            "line": {"width": 0.5 if small else 1, "color": "var(--paper)"},
        },
    }  # fmt: skip
    if not small:
        trace["error_y"] = {
            "type": "data", "array": [None if np.isnan(e) else float(f"{e:.4g}") for e in rows["_error"]],
            "thickness": 1, "width": 2, "color": colour,
        }  # fmt: skip
    return trace


def _crosses(broken: pd.DataFrame, sound: pd.DataFrame, y: Axis) -> Figure:
    """Broken runs; one far out stands just beyond the worst sound run, or it would flatten all the others."""
    worst = float(sound["_y"].min() / 1.15 if y.higher_is_better else sound["_y"].max() * 1.15)
    if np.isfinite(worst):
        clip = {"lower": worst} if y.higher_is_better else {"upper": worst}
        broken = broken.assign(_y=broken["_y"].clip(**clip))
    crosses = _markers(broken, "broken", "var(--bad)", _MOST_ERROR_BARS + 1)
    crosses["marker"] |= {
        "symbol": "x-thin-open", "size": 8, "opacity": 0.8, "line": {"width": 1.6, "color": "var(--bad)"},
    }  # fmt: skip
    return crosses


_HOVER_LINES = (
    ("Perplexity", "perplexity"),
    ("KL from dense", "divergence.kl"),
    ("KL, 99th percentile", "divergence.kl_p99"),
    ("Top-1 agreement", "divergence.agreement"),
)
_HOVER = (
    "<b>%{customdata[1]}</b><br>"
    + "".join(f"{label}  %{{customdata[{number}]}}<br>" for number, (label, _) in enumerate(_HOVER_LINES, 2))
    + "Packed %{customdata[6]}, file %{customdata[7]}, peak %{customdata[8]}<br>"
    "%{customdata[9]} bits per weight<br>%{customdata[10]}<extra></extra>"
)


def _facts(rows: pd.DataFrame) -> list[list[str]]:
    """What a point's hover tells, and first of all its run."""
    cells = [rows["id"].tolist(), [_short(chain) for chain in rows["chain"]]]
    for _, metric in _HOVER_LINES:
        values = rows[metric] if metric in rows else [None] * len(rows)
        errors = rows[f"{metric}.stderr"] if f"{metric}.stderr" in rows else [None] * len(rows)
        cells.append([with_error(metric, *pair) for pair in zip(values, errors, strict=True)])
    for metric in ("size.packed", "size.file", "memory.peak"):
        cells.append([byte_size(value) for value in rows.get(metric, [None] * len(rows))])
    bits = rows.get("size.bits_per_weight", [None] * len(rows))
    cells.append([significant(value, 3) for value in bits])
    cells.append(
        [
            escape(
                f"{model}, {text or 'no text'}, {age(finished)}"
                + (f"; broken: {broken}" if isinstance(broken, str) else "")
            )
            for model, text, finished, broken in zip(
                rows["model"], rows["text"], rows["finished"], rows["broken"], strict=True
            )
        ]
    )
    return [list(fact) for fact in zip(*cells, strict=True)]


def _short(chain: str, most: int = 90) -> str:
    return escape(chain if len(chain) <= most else chain[: most - 1] + "…")


def _rounded(values: pd.Series) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _layout(x: Axis, y: Axis, log_x: bool, log_y: bool, dense: pd.DataFrame, revision: str) -> Figure:
    axis = {
        "gridcolor": "var(--plot-grid)", "linecolor": "var(--rule-2)", "zeroline": False, "showline": True,
        "ticks": "outside", "tickcolor": "var(--rule-2)", "ticklen": 4, "automargin": True,
        "tickfont": {"color": "var(--ink-2)"},
    }  # fmt: skip
    layout: Figure = {
        "autosize": True, "uirevision": revision, "hovermode": "closest", "dragmode": "zoom",
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 58, "r": 16, "t": 8, "b": 48},
        "font": {"size": 12, "color": "var(--ink)", "family": "var(--font)"},
        "xaxis": axis | _scale(log_x) | {"title": {"text": x.title, "font": {"size": 12.5}, "standoff": 8}},
        "yaxis": axis | _scale(log_y) | {"title": {"text": y.title, "font": {"size": 12.5}, "standoff": 8}},
        "legend": {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "hoverlabel": {
            "bgcolor": "var(--plot-hover)", "bordercolor": "var(--rule-2)", "align": "left",
            "font": {"size": 12, "color": "var(--ink)"},
        },
    }  # fmt: skip
    if len(dense) and (height := float(dense["_y"].iloc[0])) > 0:
        layout["shapes"] = [
            {
                "type": "line", "layer": "below",
                "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height,
                "line": {"color": "var(--plot-dense)", "width": 1, "dash": "dot"},
                "label": {
                    "text": f"dense {significant(height)}", "textposition": "start", "yanchor": "bottom",
                    "font": {"size": 11, "color": "var(--ink-3)"},
                },
            }
        ]  # fmt: skip
    return layout


# Lightness alone tells the order, so that no kind of colour blindness and no page hides it.
_SEQUENTIAL = [[step / 4, f"var(--heat-{step})"] for step in range(5)]
# Blue below zero, orange above: apart for every common kind of colour blindness.
_DIVERGING = [[step / 4, f"var(--apart-{step})"] for step in range(5)]


def heat_map(
    cells: pd.DataFrame, column: str, title: str, hovers: Mapping[str, str], signed: bool, chosen: str = ""
) -> Figure:
    """One number of every linear by projection and block; `signed` puts zero in the middle of the colours.

    `cells` are rows by layer name with block, projection and `column`; `hovers` the text of each layer.
    """
    projections = list(dict.fromkeys(cells["projection"]))
    blocks = list(range(int(cells["block"].max()) + 1))
    values: list[list[float | None]] = [[None] * len(blocks) for _ in projections]
    told: list[list[list[str]]] = [[["", ""] for _ in blocks] for _ in projections]
    frame: list[Figure] = []
    rows = zip(cells.index, cells["projection"], cells["block"], cells[column].astype(float), strict=True)
    for name, projection, block, value in rows:
        y, x = projections.index(projection), int(block)
        values[y][x] = float(f"{value:.6g}") if np.isfinite(value) else None
        told[y][x] = [name, hovers[name]]
        if name == chosen:
            # Ink on paper: seen on the lightest cell and on the darkest.
            frame += [
                {
                    "type": "rect", "x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5,
                    "line": {"color": f"var(--{colour})", "width": width},
                }
                for colour, width in (("paper", 6), ("ink", 2.5))
            ]  # fmt: skip
    most = max((abs(value) for row in values for value in row if value is not None), default=0.0) or 1.0
    short = [escape(projection.split(".")[-1]) for projection in projections]
    labels = short if len(set(short)) == len(short) else list(map(escape, projections))
    axis = {
        "showgrid": False, "zeroline": False, "tickfont": {"color": "var(--ink-2)"}, "fixedrange": True,
        "ticks": "outside", "ticklen": 5, "tickcolor": "rgba(0,0,0,0)", "automargin": True,
    }  # fmt: skip
    numbers = {"tickformat": ".0%"} if column == "sparsity" else {"exponentformat": "SI"}
    return {
        "data": [
            {
                "type": "heatmap", "z": values, "x": blocks, "y": list(range(len(projections))),
                "customdata": told, "hovertemplate": "%{customdata[1]}<extra></extra>",
                "hoverongaps": False, "xgap": 1, "ygap": 1, "zmin": -most if signed else 0.0, "zmax": most,
                "colorscale": _DIVERGING if signed else _SEQUENTIAL,
                "colorbar": {
                    "orientation": "h", "thickness": 10, "len": 0.55, "x": 0, "xanchor": "left", "y": 1.02,
                    "yanchor": "bottom", "outlinewidth": 0, "nticks": 6, **numbers,
                    "tickfont": {"size": 11, "color": "var(--ink-2)"},
                    "title": {"text": title, "side": "top", "font": {"size": 12}},
                },
            }
        ],
        "layout": {
            "autosize": True, "uirevision": "layers", "hovermode": "closest", "dragmode": False,
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 84, "r": 10, "t": 8, "b": 44},
            "font": {"size": 12, "color": "var(--ink)", "family": "var(--font)"},
            "xaxis": axis | {"tickprefix": "block ", "showtickprefix": "first"},
            "yaxis": axis | {
                "title": {"text": ""}, "autorange": "reversed", "tickmode": "array",
                "tickvals": list(range(len(projections))), "ticktext": labels,
            },
            "shapes": frame,
            "hoverlabel": {
                "bgcolor": "var(--plot-hover)", "bordercolor": "var(--rule-2)", "align": "left",
                "font": {"size": 12, "color": "var(--ink)"},
            },
        },
    }  # fmt: skip


# Whole numbers beside every tick: by itself the plot labels those between decades by their first digit alone.
_LOG_TICKS = [
    float(f"{digit}e{power}") for power in range(-6, 8) for digit in ("1", "1.4", "2", "3", "5", "7")
]


def _scale(log: bool) -> Figure:
    return (
        {
            "type": "log",
            "tickmode": "array",
            "tickvals": _LOG_TICKS,
            "ticktext": [f"{v:g}" for v in _LOG_TICKS],
        }
        if log
        else {"type": "linear"}
    )


_TASTED = ("#3f7fd0", "#d9772b", "#2f9e6e", "#8a63d2")


@dataclass(frozen=True)
class Tasted:
    """A model's place in a tasting: KL from dense with its error, score with its interval."""

    name: str
    kl: float
    kl_error: float
    score: float
    low: float
    high: float
    told: str


def taste(models: Sequence[Tasted]) -> Figure:
    """What people prefer against how far a model is from dense; dense is the line at zero."""
    x = Axis("divergence.kl", "KL divergence from dense (mean)")
    y = Axis("score", "Score against dense (log odds)", higher_is_better=True)
    traces = [
        {
            "type": "scatter", "mode": "markers", "name": DENSE, "x": [0], "y": [0], "showlegend": False,
            "marker": {"symbol": "star", "size": 14, "color": "var(--plot-front)"},
            "hovertemplate": "<b>dense</b><extra></extra>",
        }
    ]  # fmt: skip
    for number, model in enumerate(models):
        colour = _TASTED[number % len(_TASTED)]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": escape(model.name), "showlegend": False,
                "x": _rounded(pd.Series([model.kl])), "y": _rounded(pd.Series([model.score])),
                "marker": {"color": colour, "size": 11, "symbol": _SYMBOLS[number % len(_SYMBOLS)]},
                "error_x": {
                    "type": "data", "array": [model.kl_error], "color": colour, "thickness": 1.4, "width": 3,
                },
                "error_y": {
                    "type": "data", "symmetric": False, "color": colour, "thickness": 1.4, "width": 3,
                    "array": [model.high - model.score], "arrayminus": [model.score - model.low],
                },
                "hovertemplate": f"<b>{_short(model.name)}</b><br>{escape(model.told)}<extra></extra>",
            }
        )  # fmt: skip
    layout = _layout(x, y, False, False, pd.DataFrame(), "taste")
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["shapes"] = [
        {
            "type": "line", "layer": "below", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0,
            "line": {"color": "var(--plot-dense)", "width": 1, "dash": "dot"},
        }
    ]  # fmt: skip
    return {"data": traces, "layout": layout}


def taste_colour(number: int) -> str:
    """The colour of a tasting's model in the plot."""
    return _TASTED[number % len(_TASTED)]
