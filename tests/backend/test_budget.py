"""What the Budget learns of a model, and how far it trusts its predictions."""

import json

import numpy as np
import pytest

from backend.artifacts import tensor_sizes
from backend.budget import Budget, learn, trust
from backend.errors import UserError
from backend.host import Host
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import Calibration
from tests.tiny import make_model, make_text


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    model = make_model(
        folder / "model", hidden_size=64, intermediate_size=128, head_dim=16, max_position_embeddings=1024
    )
    text = make_text(folder / "text.txt", 40_000)
    host = Host.from_environment(
        {
            "PARETOSCOPE_HOME": str(folder / "home"),
            "PARETOSCOPE_ROOTS": str(folder),
            "PARETOSCOPE_DEVICE": "cpu",
        }
    )
    told = learn(str(model), Calibration(text=f"file:{text}", samples=4, length=64), host, silent)
    return Budget.of(json.loads(json.dumps(told))), host, text


def test_every_linear_has_its_bytes_and_predicted_loss_at_every_level(learned):
    found, _, _ = learned
    assert len(found.layers) == len(found.bytes) == len(found.losses) == 14
    assert len(found.levels) == 12
    for sizes, losses in zip(found.bytes, found.losses, strict=True):
        assert losses[0] == 0
        assert sizes[0] == max(sizes)
        by_name = dict(zip((level.name for level in found.levels), losses, strict=True))
        assert by_name["2-bit g64"] > by_name["4-bit g64"] > by_name["8-bit g64"] > 0


@pytest.mark.parametrize("share", [0.15, 0.3, 0.6])
def test_the_bytes_of_a_plan_are_those_of_its_run(learned, tmp_path, share):
    found, host, text = learned
    walk = found.ladder()
    whole = sum(sizes[0] for sizes in found.bytes)
    choice = dict(zip(found.layers, walk.plan(share * whole), strict=True))
    evaluation = {"text": f"file:{text}", "length": 64, "windows": 1, "metrics": ["perplexity"]}
    recipe = found.recipe(choice, evaluation=evaluation)
    compress(recipe, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)
    assert found.packed(choice) == sum(tensor_sizes(tmp_path / "a.safetensors").values())
    assert found.predicted(choice) == pytest.approx(walk.totals([choice[name] for name in found.layers])[1])


def test_trust_finds_the_law_that_measured_plans_follow():
    predicted = np.array([0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 1.0, 2.0])
    told = trust(predicted, 1.3 * predicted * np.exp(0.6 * predicted))
    assert (told.scale, told.growth, told.reach) == (pytest.approx(1.3), pytest.approx(0.6), 2.0)
    assert told.factor == pytest.approx(1.0)
    assert told.corrected([0.5])[0] == pytest.approx(1.3 * 0.5 * np.exp(0.3))
    assert told.corrected([4.0])[0] == pytest.approx(1.3 * 4.0 * np.exp(1.2)), "beyond what was measured"


def test_a_law_never_makes_a_costlier_plan_look_better():
    predicted = np.array([0.01, 0.1, 0.5, 1.0, 2.0])
    told = trust(predicted, predicted * np.array([1.5, 1.4, 1.2, 1.0, 0.8]))
    assert told.growth == 0
    assert np.all(np.diff(told.corrected(np.geomspace(0.001, 10, 50))) > 0)


def test_the_interval_of_a_scattered_law_is_as_wide_as_its_errors():
    noise = np.exp(np.array([0.2, -0.2, 0.2, -0.2, 0.2, -0.2, 0.2, -0.2, 0.2, -0.2, 0.2, -0.2]))
    predicted = np.geomspace(0.01, 1, 12)
    told = trust(predicted, predicted * noise)
    # t of 10 degrees of freedom at 90 %, times the spread, times what 12 plans know.
    spread = 0.2 * np.sqrt(12 / 10)
    assert told.growth == pytest.approx(0, abs=0.05)
    assert np.log(told.factor) == pytest.approx(1.812 * spread * np.sqrt(1 + 2 / 12), rel=0.03)
    assert told.covered == 12


@pytest.mark.parametrize("count", [8, 13, 20])
def test_nine_of_ten_further_plans_lie_in_the_interval(count):
    draw = np.random.default_rng(count)
    inside = []
    for _ in range(600):
        predicted = np.exp(draw.uniform(np.log(0.01), 0, count + 1))
        measured = 1.2 * predicted * np.exp(0.6 * predicted + draw.normal(0, 0.12, count + 1))
        told = trust(predicted[:-1], measured[:-1])
        off = abs(np.log(measured[-1] / told.corrected(predicted[-1:])[0]))
        inside.append(off <= np.log(told.factor))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def test_how_many_plans_the_others_hold_depends_on_the_plans():
    predicted = np.geomspace(0.01, 1, 20)
    off = np.zeros(20)
    counts = set()
    for outliers in ([], [3], [3, 9, 15]):
        off[:] = np.resize([0.05, -0.05], 20)
        off[outliers] = 2.0
        counts.add(trust(predicted, predicted * np.exp(off)).covered)
    assert counts == {20, 19, 17}


def test_few_measured_plans_give_no_interval():
    assert trust([], []).factor is None
    assert (trust([], []).scale, trust([], []).growth) == (1.0, 0.0)
    one = trust([0.1], [0.2])
    assert (one.scale, one.growth, one.factor) == (pytest.approx(2.0), 0.0, None)
    seven = np.geomspace(0.01, 1, 7)
    assert trust(seven, 2 * seven).factor is None
    assert trust(seven, 2 * seven).scale == pytest.approx(2.0)


def test_a_kl_of_zero_has_no_place_on_the_law():
    with pytest.raises(UserError, match="not above zero"):
        trust([0.1, 0.0], [0.1, 0.1])
