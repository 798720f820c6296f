"""The Pareto front and the figure around it."""

import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import results
from ui import charts
from ui.scatter import Look, scatter

KINDS = {"rtn": "quantize", "gptq": "quantize", "wanda": "prune", "sparsegpt": "prune", "eora": "compensate"}
PACKED, PERPLEXITY = charts.COSTS["size.packed"], charts.QUALITIES["perplexity"]
AGREEMENT = charts.QUALITIES["divergence.agreement"]
numbers = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def dominates(one, other):
    return one[0] <= other[0] and one[1] <= other[1] and one != other


@given(numbers)
def test_the_front_is_what_no_point_beats(points):
    x, y = [cost for cost, _ in points], [value for _, value in points]
    expected = {i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)}
    found = charts.front(x, y)
    assert set(found) == expected
    assert [x[i] for i in found] == sorted(x[i] for i in found)


@given(numbers)
def test_a_front_of_higher_is_better_mirrors_one_of_lower(points):
    x, y = [cost for cost, _ in points], [value for _, value in points]
    assert charts.front(x, y, higher_is_better=True) == charts.front(x, [-value for value in y])


def test_equal_points_stand_on_the_front_together():
    assert sorted(charts.front([1, 1, 2], [3, 3, 3])) == [0, 1]


def test_what_is_no_number_is_on_no_front():
    assert charts.front([1, math.nan, 3], [math.nan, 1, 2]) == [2]
    assert charts.front([], []) == []


@pytest.fixture
def points(jobs, filled):
    return results.points(jobs.database)


def drawn(points, x=PACKED, y=PERPLEXITY, **options):
    windows = options.pop("windows", None)
    figure = scatter(points, x, y, KINDS, Look(**options), windows)
    return figure, {trace["name"]: trace for trace in figure["data"]}


def test_the_figure_is_one_that_plotly_takes(points):
    figure, _ = drawn(points, log_y=True)
    # The variables are resolved in the browser; plotly's own check wants a colour.
    text = re.sub(r"var\(--[a-z0-9-]+\)", "#123456", str(figure))
    go.Figure(eval(text, {"__builtins__": {}}, {"None": None, "True": True, "False": False, "nan": None}))


def test_broken_runs_stay_off_the_front_and_keep_the_scale(points):
    _, traces = drawn(points)
    assert len(traces["broken"]["x"]) == 1
    assert 48211 not in traces["Pareto front"]["y"]
    assert max(traces["broken"]["y"]) < 100
    assert "48,211" in traces["broken"]["customdata"][0][2]
    _, without = drawn(points, broken=False)
    assert "broken" not in without


def test_the_front_goes_the_other_way_where_more_is_better(points):
    _, traces = drawn(points, y=AGREEMENT)
    heights = traces["Pareto front"]["y"]
    assert heights == sorted(heights)
    assert heights[-1] == 100
    _, lower = drawn(points)
    assert lower["Pareto front"]["y"] == sorted(lower["Pareto front"]["y"], reverse=True)


def test_the_dense_model_is_a_line_and_a_star(points):
    figure, traces = drawn(points)
    assert traces["dense"]["marker"]["symbol"] == "star"
    (line,) = figure["layout"]["shapes"]
    assert line["y0"] == line["y1"] == pytest.approx(22.41)


def test_a_logarithmic_axis_draws_no_line_at_zero(points):
    figure, _ = drawn(points, y=charts.QUALITIES["divergence.kl"], log_y=True)
    assert "shapes" not in figure["layout"]


def test_every_point_carries_its_run_and_its_facts(points, filled):
    _, traces = drawn(points)
    ids = [fact[0] for trace in traces.values() for fact in trace.get("customdata", [])]
    assert sorted(ids) == sorted(filled)


def test_symbols_count_the_stages_and_colours_tell_the_leading_method(points):
    _, traces = drawn(points)
    assert set(traces["rtn"]["marker"]["symbol"]) == {"circle"}
    assert set(traces["wanda"]["marker"]["symbol"]) == {"circle", "diamond"}
    assert "square" in traces["gptq"]["marker"]["symbol"]
    assert charts.lead("wanda 2:4 → gptq 4-bit g64 → eora r32", KINDS) == "gptq"
    assert charts.lead("something 3", KINDS) == "other"


def test_colours_do_not_depend_on_what_is_shown():
    every = charts.colours(KINDS)
    assert len(set(every.values())) == len(every)
    assert charts.colours(dict(reversed(KINDS.items()))) == every


def test_names_in_a_hover_cannot_bring_markup(points):
    points.loc[0, "chain"] = "<img src=x onerror=alert(1)>"
    _, traces = drawn(points)
    told = str([trace.get("customdata") for trace in traces.values()])
    assert "<img" not in told
    assert "&lt;img" in told


def test_a_store_without_a_metric_draws_an_empty_plot():
    columns = ("id", "chain", "broken", "model", "protocol", "text", "finished", "recipe")
    figure, _ = drawn(pd.DataFrame({name: pd.Series([], dtype=object) for name in columns}))
    assert figure["data"] == []


def test_every_pair_of_axes_can_be_drawn(points):
    for x, y in itertools.product(charts.AXES.values(), charts.AXES.values()):
        figure, _ = drawn(points, x, y)
        titles = [figure["layout"][f"{axis}axis"]["title"]["text"] for axis in "xy"]
        assert titles == [x.title, y.title]


def windows_of(points, **values):
    """Made-up windows of runs by chain."""
    rows = zip(points["id"], points["protocol"], points["chain"], strict=True)
    return {(run, protocol): np.array(values[chain]) for run, protocol, chain in rows if chain in values}


def test_what_cannot_be_told_from_the_front_is_not_called_dominated(points):
    base = np.array([3.0, 2.5, 3.5, 3.1, 2.9, 3.2, 2.8, 3.3])
    wobble = np.array([0.2, -0.2, 0.1, -0.1, 0.2, -0.15, 0.05, -0.05])
    values = {
        "gptq 3-bit g64": base, "rtn 3-bit g64": base + 0.01 + wobble, "wanda 2:4": base + 0.3 + wobble / 10,
    }  # fmt: skip
    some = points[points["chain"].isin(values)].copy()
    _, traces = drawn(some, windows=windows_of(some, **values), dominated="hide")
    assert len(traces["within noise of the front"]["x"]) == 1
    assert "rtn" in traces
    assert "wanda" not in traces
    _, dimmed = drawn(some, windows=windows_of(some, **values))
    assert dimmed["wanda"]["marker"]["opacity"] == [0.28]
    assert dimmed["rtn"]["marker"]["opacity"] == [0.92]
    assert "dominated" in dimmed["wanda"]["customdata"][0][-1]
    assert "within noise" in dimmed["rtn"]["customdata"][0][-1]


def test_without_windows_every_worse_run_is_dominated(points):
    _, traces = drawn(points, dominated="hide")
    assert "within noise of the front" not in traces
    shown = {
        fact[0] for name, trace in traces.items() if name != "broken" for fact in trace.get("customdata", [])
    }
    table = points[points["broken"].isna()]
    ahead = charts.front(table["size.packed"].tolist(), table["perplexity"].tolist())
    assert shown == set(table["id"].iloc[ahead])


def test_colour_follows_any_parameter_the_family_or_the_model(points):
    _, traces = drawn(points, colour="bits")
    assert {"2", "3", "4", "without"} <= set(traces)
    _, traces = drawn(points, colour="family")
    assert {"quantize", "prune"} <= set(traces)
    _, traces = drawn(points, colour="model")
    assert "smollm2-135m-instruct" in traces


def test_a_parameter_of_many_values_becomes_a_scale(points):
    many = pd.concat([points.iloc[[1]]] * 12, ignore_index=True)
    many["recipe"] = [
        json.dumps({"stages": [{"method": "prune.wanda", "params": {"sparsity": n / 20}}]}) for n in range(12)
    ]
    many["id"] = [f"run{n}" for n in range(12)]
    many["size.packed"] = [1e8 + n for n in range(12)]
    _, traces = drawn(many, colour="sparsity")
    assert traces["sparsity"]["marker"]["showscale"] is True
    assert traces["sparsity"]["marker"]["color"][-1] == 0.55


def test_protocols_that_share_a_picture_have_fronts_and_symbols_of_their_own(points):
    other = points.assign(protocol="another", id=points["id"] + "x")
    both = pd.concat([points, other], ignore_index=True)
    figure, _ = drawn(both)
    lines = [trace for trace in figure["data"] if trace["name"] == "Pareto front"]
    assert len(lines) == 2
    symbols = {
        (point[0].endswith("x"), symbol)
        for trace in figure["data"]
        if isinstance(trace.get("marker", {}).get("symbol"), list)
        for point, symbol in zip(trace["customdata"], trace["marker"]["symbol"], strict=True)
    }
    assert {symbol for second, symbol in symbols if second}.isdisjoint(
        {symbol for second, symbol in symbols if not second}
    )
    assert "shapes" not in figure["layout"]


def test_simulated_and_real_speeds_are_told_apart_on_axis_front_legend_and_hover(points, filled):
    points = points.set_index("id").loc[filled[:6]].reset_index()
    points["speed.decode"] = [50.0, 20.0, 21.0, 22.0, 30.0, 31.0]
    points["speeds"] = ["real", *["simulated"] * 3, *["real"] * 2]
    decode = charts.AXES["speed.decode"]
    figure, _ = drawn(points, decode)
    assert figure["layout"]["xaxis"]["title"]["text"] == "Decode (tokens/s), partly simulated"
    fronts = [trace["x"] for trace in figure["data"] if trace["mode"] == "lines"]
    # Of dense and two real ones; of three simulated ones.
    assert len(fronts) == 2
    assert all(len({x < 23 for x in front}) == 1 for front in fronts)
    hovers = {point[0]: point[-1] for trace in figure["data"] for point in trace.get("customdata", ())}
    assert {run: "speeds simulated" in hovers[run] for run in filled[:6]} == {
        run: run in filled[1:4] for run in filled[:6]
    }
    assert all("speeds real" in hovers[run] for run in (filled[0], *filled[4:6]))
    shapes = {
        point[0]: shape
        for trace in figure["data"]
        if isinstance(trace.get("marker", {}).get("symbol"), list)
        for point, shape in zip(trace["customdata"], trace["marker"]["symbol"], strict=True)
    }
    assert {shapes[run] for run in filled[1:4]}.isdisjoint({shapes[run] for run in filled[4:6]})
    names = [trace["name"] for trace in figure["data"] if trace.get("x") == [None]]
    assert {"speeds simulated", "speeds real"} <= set(names), "one model, one text: that is told once, above"
    only = points[points["id"].isin(filled[1:4])]
    assert drawn(only, decode)[0]["layout"]["xaxis"]["title"]["text"] == "Decode (tokens/s), simulated"
    told = json.dumps(drawn(points)[0])
    assert "simulated" not in told
