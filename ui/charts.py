"""Result tables as plotly figures (plain dictionaries). Colours of ink and lines are CSS variables, which the
plot resolves in the browser, so that a figure follows the light or dark page it stands on."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ui.quantities import significant
from ui.texts import say

Figure = dict[str, Any]
# What a stored metric may be called.
METRIC = re.compile(r"[a-z_]+(\.[a-z0-9_]+)?")
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
        Axis("size.packed", say("axis.packed"), 1e6),
        Axis("size.file", say("axis.file"), 1e6),
        Axis("memory.peak", say("axis.peak"), 1e6),
        Axis("size.bits_per_weight", say("metric.bits_per_weight")),
        Axis("size.bits_per_parameter", say("axis.bits_per_parameter")),
    )
}
QUALITIES = {
    axis.metric: axis
    for axis in (
        Axis("perplexity", say("metric.perplexity"), log=True),
        Axis("divergence.kl", say("axis.kl"), log=True),
        Axis("divergence.kl_p99", say("axis.kl_p99"), log=True),
        Axis("divergence.agreement", say("axis.agreement"), 0.01, higher_is_better=True),
    )
}

# Everything else that is measured can stand on an axis too.
_OTHERS = (
    Axis("divergence.kl_median", say("axis.kl_median"), log=True),
    Axis("divergence.kl_reverse", say("axis.kl_reverse"), log=True),
    Axis("divergence.flips", say("axis.flips"), 0.01),
    Axis("size.linears", say("axis.linears"), 1e6),
    Axis("speed.prefill", say("axis.prefill"), higher_is_better=True),
    Axis("speed.decode", say("axis.decode"), higher_is_better=True),
    Axis("sanity.repetition", say("axis.repetition"), 0.01),
)
AXES = {**COSTS, **QUALITIES, **{axis.metric: axis for axis in _OTHERS}}


def is_speed(metric: str) -> bool:
    """Whether a measurement is one that is simulated where weights are decoded first."""
    return metric.startswith("speed.")


def axis_of(metric: str, default: str) -> Axis:
    """The axis of a metric; a name that is none falls back."""
    if metric in AXES:
        return AXES[metric]
    return Axis(metric, metric) if METRIC.fullmatch(metric) else AXES[default]


# One family of hues a kind of method, of middle lightness: they must read on white and on near-black.
_PALETTES = {
    "quantize": ("#3f7fd0", "#8a63d2", "#2a9db5", "#c05fbf", "#5b6ee1", "#4f93a8"),
    "prune": ("#d9772b", "#c9463d", "#b8912a", "#d65a7e", "#a9653a", "#e0903f"),
    "factorize": ("#2f9e6e", "#6c9a2b", "#1f8f8a"),
    "compensate": ("#2f9e6e", "#6c9a2b", "#1f8f8a"),
}
OTHER = ("#7d8894", "#94806b", "#6f8f7f")
# Which stage of a chain decides most about its bytes, and so gives the point its colour.
_LEADS = ("quantize", "prune", "factorize")
SYMBOLS = ("circle", "diamond", "square", "hexagon2", "triangle-up", "pentagon", "bowtie")


def colours(kinds: Mapping[str, str]) -> dict[str, str]:
    """{method name: colour} for {method name: kind}; the same methods always get the same colours."""
    placed: dict[str, int] = {}
    chosen: dict[str, str] = {}
    for name in sorted(kinds):
        palette = _PALETTES.get(kinds[name], OTHER)
        position = placed.get(kinds[name], 0)
        placed[kinds[name]] = position + 1
        chosen[name] = palette[position % len(palette)]
    return chosen


def family_colours(names: Iterable[str]) -> dict[str, str]:
    """{kind of method: colour}."""
    return {name: _PALETTES.get(name, OTHER)[0] for name in names}


def lead(chain: str, kinds: Mapping[str, str]) -> str:
    """The method that gives a chain such as `wanda 2:4 → gptq 3-bit g64` its colour; `other` if unknown."""
    return leads([chain], kinds)[0]


def leads(chains: Iterable[str], kinds: Mapping[str, str]) -> list[str]:
    """What `lead` says of each of many chains."""
    known = frozenset(kinds.items())
    return [_lead(chain, known) for chain in chains]


# Thousands of chains are asked about at every change of a filter.
@lru_cache(maxsize=50_000)
def _lead(chain: str, kinds: frozenset[tuple[str, str]]) -> str:
    kind_of = dict(kinds)
    names = [words.split(" ", 1)[0] for words in chain.split(" → ")]
    known = [name for name in names if name in kind_of]
    for kind in _LEADS:
        for name in known:
            if kind_of[name] == kind:
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


@lru_cache(maxsize=50_000)
def short(chain: str, most: int = 90) -> str:
    """A chain as markup that fits a hover."""
    return escape(chain if len(chain) <= most else chain[: most - 1] + "…")


def rounded(values: pd.Series) -> list[float]:
    """Numbers as a figure needs them, and no longer."""
    return [float(f"{value:.6g}") for value in values]


def layout(
    x: Axis, y: Axis, log_x: bool, log_y: bool, dense: float | None, revision: str, few_ticks: bool = False
) -> Figure:
    """Axes, legend and hover of a plot; `dense` is the height of a dotted line."""
    axis = {
        "gridcolor": "var(--plot-grid)", "linecolor": "var(--rule-2)", "zeroline": False, "showline": True,
        "ticks": "outside", "tickcolor": "var(--rule-2)", "ticklen": 4, "automargin": True,
        "tickfont": {"color": "var(--ink-2)"},
    }  # fmt: skip
    made: Figure = {
        "autosize": True, "uirevision": revision, "hovermode": "closest", "dragmode": "zoom",
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 58, "r": 16, "t": 8, "b": 48},
        "font": {"size": 12, "color": "var(--ink)", "family": "var(--font)"},
        "xaxis": axis | scale(log_x) | {"title": {"text": x.title, "font": {"size": 12.5}, "standoff": 8}},
        "yaxis": axis | scale(log_y, few_ticks) | {
            "title": {"text": y.title, "font": {"size": 12.5}, "standoff": 8},
        },
        "legend": {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "hoverlabel": {
            "bgcolor": "var(--plot-hover)", "bordercolor": "var(--rule-2)", "align": "left",
            "font": {"size": 12, "color": "var(--ink)"},
        },
    }  # fmt: skip
    if dense is not None and dense > 0:
        made["shapes"] = [
            {
                "type": "line", "layer": "below",
                "xref": "paper", "x0": 0, "x1": 1, "y0": dense, "y1": dense,
                "line": {"color": "var(--plot-dense)", "width": 1, "dash": "dot"},
                "label": {
                    "text": say("axis.dense", dense=significant(dense)), "textposition": "start",
                    "yanchor": "bottom",
                    "font": {"size": 11, "color": "var(--ink-3)"},
                },
            }
        ]  # fmt: skip
    return made


# Lightness alone tells the order, so that no kind of colour blindness and no page hides it.
_SEQUENTIAL = [[step / 4, f"var(--heat-{step})"] for step in range(5)]
# Blue below zero, orange above: apart for every common kind of colour blindness.
_DIVERGING = [[step / 4, f"var(--apart-{step})"] for step in range(5)]


def heat_map(
    cells: pd.DataFrame,
    column: str,
    title: str,
    hovers: Mapping[str, str],
    signed: bool,
    chosen: str = "",
    log: bool = False,
) -> Figure:
    """One number of every linear by projection and block; `signed` puts zero in the middle of the colours.

    `log` spreads the colours over orders of magnitude; what is not above zero stays blank then.

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
        if log:
            value = np.log10(value) if value > 0 else np.nan
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
    there = [value for row in values for value in row if value is not None]
    most = max((abs(value) for value in there), default=0.0) or 1.0
    ends = {"zmin": -most if signed else 0.0, "zmax": most}
    short = [escape(projection.split(".")[-1]) for projection in projections]
    labels = short if len(set(short)) == len(short) else list(map(escape, projections))
    axis = {
        "showgrid": False, "zeroline": False, "tickfont": {"color": "var(--ink-2)"}, "fixedrange": True,
        "ticks": "outside", "ticklen": 5, "tickcolor": "rgba(0,0,0,0)", "automargin": True,
    }  # fmt: skip
    numbers: Figure = {"tickformat": ".0%"} if column == "sparsity" else {"exponentformat": "SI"}
    if log:
        ends = {"zmin": min(there, default=0.0), "zmax": max(there, default=1.0)}
        decades = range(int(np.floor(ends["zmin"])), int(np.ceil(ends["zmax"])) + 1)
        numbers = {"tickvals": list(decades), "ticktext": [f"{10.0**power:g}" for power in decades]}
    return {
        "data": [
            {
                "type": "heatmap", "z": values, "x": blocks, "y": list(range(len(projections))),
                "customdata": told, "hovertemplate": "%{customdata[1]}<extra></extra>",
                "hoverongaps": False, "xgap": 1, "ygap": 1, **ends,
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
            "xaxis": axis | {"tickprefix": f"{say('axis.block')} ", "showtickprefix": "first"},
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


def scale(log: bool, few: bool = False) -> Figure:
    ticks = _LOG_TICKS[:: 6 if few else 1]
    ticks = sorted([*ticks, *_LOG_TICKS[3::6]]) if few else ticks
    return (
        {
            "type": "log",
            "tickmode": "array",
            "tickvals": ticks,
            "ticktext": [f"{v:g}" for v in ticks],
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
    x = Axis("divergence.kl", say("axis.kl"))
    y = Axis("score", say("axis.score"), higher_is_better=True)
    traces = [
        {
            "type": "scatter", "mode": "markers", "name": say("common.dense"), "x": [0], "y": [0],
            "showlegend": False,
            "marker": {"symbol": "star", "size": 14, "color": "var(--plot-front)"},
            "hovertemplate": f"<b>{say('common.dense')}</b><extra></extra>", "cliponaxis": False,
        }
    ]  # fmt: skip
    for number, model in enumerate(models):
        colour = _TASTED[number % len(_TASTED)]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": escape(model.name), "showlegend": False,
                "x": rounded(pd.Series([model.kl])), "y": rounded(pd.Series([model.score])),
                "marker": {"color": colour, "size": 11, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                "error_x": {
                    "type": "data", "array": [model.kl_error], "color": colour, "thickness": 1.4, "width": 3,
                },
                "error_y": {
                    "type": "data", "symmetric": False, "color": colour, "thickness": 1.4, "width": 3,
                    "array": [model.high - model.score], "arrayminus": [model.score - model.low],
                },
                "hovertemplate": f"<b>{short(model.name)}</b><br>{escape(model.told)}<extra></extra>",
            }
        )  # fmt: skip
    frame = layout(x, y, False, False, None, "taste")
    frame["xaxis"] |= {"rangemode": "tozero"}
    frame["shapes"] = [
        {
            "type": "line", "layer": "below", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0,
            "line": {"color": "var(--plot-dense)", "width": 1, "dash": "dot"},
        }
    ]  # fmt: skip
    return {"data": traces, "layout": frame}


def taste_colour(number: int) -> str:
    """The colour of a tasting's model in the plot."""
    return _TASTED[number % len(_TASTED)]
