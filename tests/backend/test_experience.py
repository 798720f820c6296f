"""Times of runs are predicted by method and shape, and learned from past runs, each method apart."""

import statistics
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from backend.costs import Cost
from backend.effort import first_rates, work_units
from backend.estimate import estimate
from backend.experience import PastRun, learned_rates, seconds_of_work, seconds_off
from backend.facts import facts
from backend.headway import seconds_of
from backend.recipe import parse_recipe
from backend.report import Report
from tests.tiny import make_model, make_text

FIRST = first_rates(None, None)


@pytest.fixture
def make(tmp_path):
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")

    def recipe(method, seed=0, **params):
        return parse_recipe(
            {
                "model": str(folder),
                "stages": [{"method": method, "params": {"group_size": 16, **params}}],
                "calibration": {"text": f"file:{text}", "samples": 6, "length": 64},
                "evaluation": {"text": f"file:{text}", "length": 64, "windows": 2, "metrics": ["perplexity"]},
                "seed": seed,
            }
        )

    return recipe


@pytest.fixture
def past(make, host):
    """A past run of a method whose stage took so long; the rest took `pace` times what is expected first."""

    def run(method, stage, pace=1.0):
        recipe = make(method)
        layout = facts(recipe.model, host)
        made = PastRun(recipe, layout, {}, None)
        taken = {}
        for phase, unit, amount in made.units:
            taken[phase] = taken.get(phase, 0.0) + pace * FIRST[unit.split(" ")[0]] * amount
        return replace(made, seconds=taken | {f"stage 1, {method}": stage})

    return run


def stage_seconds(recipe, layout, rates):
    made = [unit for unit in work_units(recipe, layout) if unit[0].startswith("stage")]
    return seconds_of_work(made, rates)


def test_the_work_of_a_method_is_that_of_its_likes_on_each_shape(make, host):
    recipe = make("quantize.quantease")
    layout = facts(recipe.model, host)
    gptq, quantease, swept = (
        stage_seconds(one, layout, FIRST)
        for one in (make("quantize.gptq"), recipe, make("quantize.quantease", sweeps=10))
    )
    by_hand = sum(
        inputs * inputs * inputs + rows * inputs * inputs + 1e6 * inputs
        for rows, inputs in layout.layers.values()
    )
    assert gptq == pytest.approx(FIRST["solve"] * by_hand)
    assert quantease == pytest.approx(20 * gptq)
    assert swept == pytest.approx(quantease / 3)
    rounding = stage_seconds(make("quantize.rtn"), layout, FIRST)
    assert rounding == pytest.approx(FIRST["round"] * sum(r * i for r, i in layout.layers.values()))
    assert Cost("svd", 2.0).amount(3, 5, {}) == 2 * 3 * 5 * 3


def test_a_slow_method_is_learned_and_a_fast_one_is_not_spoiled(make, host, past):
    layout = facts(make("quantize.gptq").model, host)
    history = [past("quantize.quantease", 900.0)] * 3 + [past("quantize.gptq", 4.0)] * 3
    rates = learned_rates(history, FIRST)
    assert stage_seconds(make("quantize.quantease"), layout, rates) == pytest.approx(900)
    assert stage_seconds(make("quantize.gptq"), layout, rates) == pytest.approx(4)


def test_a_method_that_never_ran_takes_the_pace_of_the_machine(make, host, past):
    layout = facts(make("quantize.gptq").model, host)
    slow = past("quantize.gptq", 5 * stage_seconds(make("quantize.gptq"), layout, FIRST), pace=5.0)
    rates = learned_rates([slow] * 3, FIRST)
    for method in ("quantize.hlq", "quantize.rtn"):
        before, after = (stage_seconds(make(method), layout, each) for each in (FIRST, rates))
        assert after == pytest.approx(5 * before)


def test_the_error_of_a_past_run_is_of_a_prediction_that_did_not_see_it(past):
    history = [
        past(f"quantize.{method}", seconds)
        for method, seconds in (("gptq", 300.0), ("adadim", 900.0), ("hlq", 2700.0))
    ]
    rates = learned_rates(history, FIRST)
    seen = [abs(seconds_of_work(run.units, rates) / run.total - 1) for run in history]
    assert statistics.median(seen) < 0.05
    # Each ran alone of its method: the others tell nothing of it but the machine's pace.
    off = seconds_off(history, FIRST)
    assert min(off) > 0.2
    for at, run in enumerate(history):
        others = learned_rates(history[:at] + history[at + 1 :], FIRST)
        assert off[at] == abs(seconds_of_work(run.units, others) / run.total - 1)


def test_databases_from_before_teach_too_and_the_card_shows_the_error_left_out(make, host, past):
    rows, totals = [], []
    for number, seconds in enumerate((100.0, 110.0, 120.0)):
        run = past("quantize.gptq", seconds)
        totals.append(run.total)
        for phase, value in run.seconds.items():
            name = phase if phase in ("perplexity", "rest") else f"compress.{phase}"
            told = {"run_id": str(number), "recipe": make("quantize.gptq", number).to_json(), "phase": name}
            rows.append({**told, "seconds": value})
    told = estimate(make("quantize.gptq"), host, pd.DataFrame(rows))
    assert told.seconds == pytest.approx(totals[1])
    # The others say 115, 110 and 105 seconds for what took 100, 110 and 120.
    assert told.seconds_error == pytest.approx(15 / totals[2])
    unlike = estimate(make("quantize.quantease"), host, pd.DataFrame(rows))
    assert unlike.seconds > 15 * 110


def test_shares_of_a_run_follow_what_was_learned(make, host, past):
    recipe = make("quantize.gptq")
    layout = facts(recipe.model, host)
    learned = learned_rates([past("quantize.gptq", 250.0)] * 3, FIRST)
    (before,), (after,) = seconds_of(recipe, layout), seconds_of(recipe, layout, learned)
    assert before["compress"] < 5
    assert after["compress"] == pytest.approx(250, rel=0.01)


def test_a_phase_within_another_is_counted_once():
    report = Report(torch.device("cpu"))
    began = time.perf_counter()
    with report.timed("stage 1, quantize.awq"):
        for _ in range(2):
            with report.timed("statistics"):
                time.sleep(0.05)
        time.sleep(0.02)
    whole = time.perf_counter() - began
    assert report.seconds["statistics"] >= 0.1
    assert sum(report.seconds.values()) == pytest.approx(whole, rel=0.05)
