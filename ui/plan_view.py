"""The Budget's figures: predicted and measured plans, and one plan linear by linear."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from backend.budget import Budget, Trust
from backend.solvers.budget import Ladder
from ui import charts
from ui.charts import Axis, Figure, heat_map, layout, rounded
from ui.layer_map import in_order
from ui.learned import Measured
from ui.panel import figures, table
from ui.quantities import byte_size, significant
from ui.texts import say

PACKED, KL = charts.COSTS["size.packed"], Axis("divergence.kl", say("budget.kl"), log=True)
# Points of the predicted line: the eye sees no more.
_LINE = 160
# Below it the line falls out of the picture: nobody tells such a plan from the dense model.
_LEAST_KL = 1e-3


def line_of(found: Budget, walk: Ladder) -> tuple[np.ndarray, np.ndarray]:
    """(packed bytes, predicted KL) of the plans along the budget, smallest first."""
    picked = np.unique(np.linspace(0, len(walk.bytes) - 1, _LINE).astype(int))
    return found.rest_bytes + walk.bytes[picked], walk.losses[picked]


def front_figure(
    found: Budget, walk: Ladder, trust: Trust, points: Sequence[Measured], packed: float, predicted: float
) -> Figure:
    """Predicted plans as a line with its interval, uniform levels, measured runs, the plan of the slider."""
    sizes, losses = line_of(found, walk)
    above = losses >= min(_LEAST_KL, float(losses[0]) / 2)
    sizes, losses = sizes[above], trust.corrected(losses[above])
    traces: list[Figure] = []
    if trust.factor is not None:
        band = [*(losses * trust.factor), *(losses[::-1] / trust.factor)]
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": say("budget.interval_of_predictions"),
                "hoverinfo": "skip",
                "x": _list([*sizes, *sizes[::-1]], 1e6), "y": _list(band),
                "fill": "toself", "fillcolor": "var(--plot-band)", "line": {"width": 0},
            }
        )  # fmt: skip
    traces.append(
        {
            "type": "scatter", "mode": "lines", "name": say("budget.predicted_plans"),
            "x": _list(sizes, 1e6), "y": _list(losses), "line": {"color": "var(--accent)", "width": 2},
            "hovertemplate": f'{say("budget.hover_predicted")}<extra></extra>',
        }
    )  # fmt: skip
    traces.append(_uniform(found, trust))
    if points:
        traces.append(_measured(points, trust))
    if predicted > 0:
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": say("budget.this_one"), "hoverinfo": "skip",
                "x": _list([packed], 1e6), "y": _list(trust.corrected([predicted])),
                "marker": {
                    "symbol": "circle-open", "size": 17, "color": "var(--accent)", "line": {"width": 3},
                },
            }
        )  # fmt: skip
    return {"data": traces, "layout": layout(PACKED, KL, False, True, None, "budget", few_ticks=True)}


def _measured(points: Sequence[Measured], trust: Trust) -> Figure:
    predicted = trust.corrected([one.predicted for one in points])
    facts = [
        [one.run, escape(one.chain[:90]), significant(value)]
        for one, value in zip(points, predicted, strict=True)
    ]
    errors = _list([one.stderr for one in points])
    return {
        "type": "scatter", "mode": "markers", "name": say("budget.measured"), "customdata": facts,
        "x": _list([one.packed for one in points], 1e6), "y": _list([one.kl for one in points]),
        "error_y": {"type": "data", "array": errors, "thickness": 1, "width": 2},
        "hovertemplate": f'<b>%{{customdata[1]}}</b><br>{say("budget.hover_measured")}<extra></extra>',
        "marker": {"color": "var(--plot-front)", "size": 9},
    }  # fmt: skip


def _uniform(found: Budget, trust: Trust) -> Figure:
    """What every linear at one and the same level would cost."""
    numbers = [number for number, level in enumerate(found.levels) if level.stages]
    sizes = [found.packed(dict.fromkeys(found.layers, number)) for number in numbers]
    losses = [found.predicted(dict.fromkeys(found.layers, number)) for number in numbers]
    return {
        "type": "scatter", "mode": "markers", "name": say("budget.uniform_predicted"), "x": _list(sizes, 1e6),
        "y": _list(trust.corrected(losses)),
        "text": [escape(found.levels[number].name) for number in numbers],
        "hovertemplate": f'{say("budget.hover_uniform")}<br>{say("budget.hover_predicted")}<extra></extra>',
        "marker": {"symbol": "diamond-open", "color": "var(--ink-3)", "size": 9, "line": {"width": 1.6}},
    }  # fmt: skip


def plan_figure(found: Budget, plan: Sequence[int]) -> Figure:
    """Bits per weight of every linear under a plan."""
    rows = []
    hovers = {}
    for at, (name, (block, projection)) in enumerate(zip(found.layers, found.places, strict=True)):
        level = plan[at]
        bits = 8 * found.bytes[at][level] / found.weights[at]
        rows.append({"layer": name, "block": block, "projection": projection, "bits": bits})
        hovers[name] = (
            f"<b>{escape(name)}</b><br>"
            f"{say('budget.hover_bits', name=escape(found.levels[level].name), bits=bits)}<br>"
            f"{say('budget.hover_cost', cost=significant(found.losses[at][level], 3))}"
        )
    cells = in_order(pd.DataFrame(rows)).set_index("layer")
    return heat_map(cells, "bits", say("budget.bits_per_weight"), hovers, False)


def told(found: Budget, plan: Sequence[int], trust: Trust, points: Sequence[Measured]) -> str:
    """A plan in numbers: its size, what it is predicted to cost, which levels it takes."""
    choice = dict(zip(found.layers, plan, strict=True))
    packed, predicted = found.packed(choice), found.predicted(choice)
    dense = found.packed(dict.fromkeys(found.layers, 0))
    stored = sum(found.bytes[at][level] for at, level in enumerate(plan))
    numbers = {
        say("budget.packed"): byte_size(packed),
        say("budget.of_dense"): f"{100 * packed / dense:.1f} %",
        say("budget.bits_per_linear_weight"): f"{8 * stored / sum(found.weights):.2f}",
        say("budget.predicted_kl"): _interval(predicted, trust),
    }
    lines: list[tuple[str, ...]] = []
    for number, level in enumerate(found.levels):
        held = [at for at, taken in enumerate(plan) if taken == number]
        if held:
            share = sum(found.weights[at] for at in held) / sum(found.weights)
            lines.append((escape(level.name), str(len(held)), f"{100 * share:.0f} %"))
    head = (say("budget.level"), say("budget.linears"), say("budget.of_the_weights"))
    return (
        f"<h3>{say('budget.this_plan')}</h3>{figures(numbers)}{table(head, lines)}"
        f'<p class="note">{_beside(found, packed, predicted)} {_honesty(trust, points)}</p>'
    )


def _interval(predicted: float, trust: Trust) -> str:
    middle = float(trust.corrected([predicted])[0]) if predicted > 0 else 0.0
    if trust.factor is None or predicted <= 0:
        return significant(middle, 3)
    low, high = middle / trust.factor, middle * trust.factor
    return say(
        "budget.interval", middle=significant(middle, 3), low=significant(low, 3), high=significant(high, 3)
    )


def _beside(found: Budget, packed: int, predicted: float) -> str:
    """The best uniform level that costs no more."""
    fitting = [
        (found.predicted(dict.fromkeys(found.layers, number)), level.name)
        for number, level in enumerate(found.levels)
        if found.packed(dict.fromkeys(found.layers, number)) <= packed
    ]
    if not fitting or predicted <= 0:
        return ""
    loss, name = min(fitting)
    if not loss:
        return ""
    more = say("budget.times_as_much", times=loss / predicted)
    return say("budget.best_single_level", name=escape(name), more=more)


def _honesty(trust: Trust, points: Sequence[Measured]) -> str:
    if trust.count == 0:
        return say("budget.none_measured")
    if trust.factor is None:
        return say("budget.few_measured", count=trust.count)
    plans = [one for one in points if one.planned]
    both = pd.DataFrame({"predicted": [one.predicted for one in plans], "kl": [one.kl for one in plans]})
    ranks = both.corr("spearman")
    return say(
        "budget.honesty",
        count=trust.count,
        scale=trust.scale,
        growth=trust.growth,
        correlation=ranks.iloc[0, 1],
        covered=trust.covered,
        factor=trust.factor,
    )


def _list(values: Any, scale: float = 1.0) -> list[float]:
    return rounded(pd.Series(np.asarray(values, dtype=float) / scale))
