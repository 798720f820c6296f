"""Verdicts on claims, with figures worked out by hand, and the recipes that test them."""

import math

import pytest

from backend.claims import Outcome, Verdict, recipes, series_name, verdict
from backend.recipe import Calibration, Evaluation
from backend.registry import Claim, discover
from backend.rules import check_layers

# Linears of the embedded model.
LAYERS = {"model.layers.0.self_attn.q_proj": (576, 576), "model.layers.0.mlp.down_proj": (576, 1536)}
CLAIMS = {name: found.claim for name, found in discover().methods.items() if found.claim}


def outcome(*windows, packed=100, broken=None):
    return Outcome(windows, packed, broken)


def test_the_difference_is_paired_and_its_error_is_that_of_the_differences():
    # Differences -0.1, -0.2, -0.3, -0.2: mean -0.2, sd sqrt(0.02 / 3), error sd / 2.
    said = verdict(outcome(2.9, 3.8, 1.7, 2.8), outcome(3.0, 4.0, 2.0, 3.0))
    assert said.word == "holds"
    assert said.difference == pytest.approx(-0.2)
    assert said.stderr == pytest.approx(math.sqrt(0.02 / 3) / 2)


def test_windows_of_very_different_loss_do_not_hide_a_steady_difference():
    worse = [1.0, 9.0, 3.0, 14.0]
    better = [1.0 - 0.01, 9.0 - 0.012, 3.0 - 0.011, 14.0 - 0.009]
    assert verdict(outcome(*better), outcome(*worse)).word == "holds"


@pytest.mark.parametrize(
    ("apart", "word"),
    [
        # Mean m, sd 0.1 of four windows, error 0.05: 3.18 errors, Student's t, are 0.159.
        (-0.17, "holds"), (-0.15, "within noise"), (0.0, "within noise"), (0.15, "within noise"),
        (0.17, "does not hold"),
    ],
)  # fmt: skip
def test_a_difference_counts_beyond_students_interval(apart, word):
    spread = 0.1 * math.sqrt(3) / 2
    windows = [apart - spread, apart + spread, apart - spread, apart + spread]
    said = verdict(outcome(*windows), outcome(0.0, 0.0, 0.0, 0.0))
    assert said.stderr == pytest.approx(0.05)
    assert said.word == word


def test_more_bytes_refute_a_claim_unless_it_is_about_what_they_buy():
    better, worse = outcome(1.0, 1.1, packed=101), outcome(2.0, 2.1, packed=100)
    assert verdict(better, worse).word == "does not hold"
    assert verdict(better, worse, more_bytes=True).word == "holds"
    assert verdict(worse, better, more_bytes=True).word == "does not hold"


def test_equal_runs_are_within_noise_and_equal_differences_are_beyond_it():
    assert verdict(outcome(1.0, 2.0), outcome(1.0, 2.0)).word == "within noise"
    assert verdict(outcome(1.0, 2.0), outcome(1.5, 2.5)).word == "holds"


def test_one_window_tells_nothing_about_noise():
    said = verdict(outcome(1.0), outcome(5.0))
    assert (said.word, said.difference, said.stderr) == ("within noise", -4.0, None)


def test_a_run_that_is_broken_shows_nothing_of_the_other():
    broken = outcome(9.0, 9.1, broken="loops")
    works = outcome(1.0, 2.0)
    assert verdict(works, broken) == Verdict("baseline broken")
    assert verdict(outcome(9.5, 9.6), broken) == Verdict("baseline broken")
    assert verdict(outcome(1.0, 2.0, packed=101), broken) == Verdict("baseline broken")
    assert verdict(works, outcome(math.nan, 9.0, broken="not finite")) == Verdict("baseline broken")
    assert verdict(works, outcome(broken="the loss is NaN")) == Verdict("baseline broken")
    assert verdict(broken, works) == verdict(broken, broken) == Verdict("broken")


def test_a_missing_run_is_not_tested_and_a_collapsed_one_is_broken():
    assert verdict(None, outcome(1.0, 2.0)).word == "not tested"
    assert verdict(outcome(1.0, 2.0), None).word == "not tested"
    assert verdict(outcome(broken="NaN"), outcome(1.0, 2.0)).word == "broken"


def test_runs_on_other_windows_are_refused():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        verdict(outcome(1.0, 2.0), outcome(1.0, 2.0, 3.0))


@pytest.mark.parametrize("name", CLAIMS)
def test_the_recipes_of_every_claim_are_valid_and_differ(name):
    pair = recipes(CLAIMS[name], "m", Calibration(samples=4), Evaluation(windows=3), seed=7)
    assert pair[0] != pair[1]
    for recipe in pair:
        check_layers(recipe, LAYERS)
        assert (recipe.calibration.samples, recipe.evaluation.windows, recipe.seed) == (4, 3, 7)
    assert any(name in (stage.method for stage in recipe.stages) for recipe in pair)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_about_a_metric_that_keeps_its_windows(name):
    metric = CLAIMS[name].metric
    assert metric in ("perplexity", "divergence.kl", "divergence.kl_reverse")
    assert series_name(metric).endswith(".windows")


def test_the_metric_of_a_claim_is_measured_in_any_case():
    stage = {"method": "quantize.rtn", "params": {}}
    claim = Claim("x", ({**stage, "params": {"bits": 4}},), (stage,), "divergence.kl", whose="ours")
    for recipe in recipes(claim, "m", Calibration(), Evaluation(metrics=("perplexity",))):
        assert recipe.evaluation.metrics == ("perplexity", "divergence")
