import pytest
import torch

from backend.artifacts import read_parts
from backend.errors import UserError
from backend.host import Host
from backend.methods.allocate.owl import _spread
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from tests.tiny import make_model, make_text

WANDA = {"method": "prune.wanda", "params": {"sparsity": 0.5}}


def run(host, tmp_path, *stages, **changes):
    folder, text = make_model(tmp_path / "model", **changes), make_text(tmp_path / "text.txt")
    recipe = parse_recipe(
        {
            "model": str(folder),
            "stages": list(stages),
            "calibration": {"text": f"file:{text}", "samples": 6, "length": 64},
            "evaluation": {"text": f"file:{text}", "length": 64, "windows": 2},
        }
    )
    artifact = tmp_path / f"{len(stages)}.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    return {name: pieces[0] for name, pieces in read_parts(artifact).items()}


@pytest.fixture
def host(tmp_path):
    return Host.from_environment(
        {"PARETOSCOPE_HOME": str(tmp_path / "home"), "PARETOSCOPE_ROOTS": str(tmp_path)}
    )


def test_blocks_get_the_sparsity_planned_and_the_mean_is_as_asked(host, tmp_path):
    owl = {"method": "allocate.owl", "params": {"sparsity": 0.6, "spread": 0.1, "outlier": 2.0}}
    parts = run(host, tmp_path, owl, WANDA)
    zeros = {name: 1 - float(part.kept().double().mean()) for name, part in parts.items()}
    by_block = {}
    for name, share in zeros.items():
        by_block.setdefault(name.split(".")[2], set()).add(round(share, 1))
    assert all(len(found) == 1 for found in by_block.values())
    counts = {name: part.shape[0] * part.shape[1] for name, part in parts.items()}
    mean = sum(zeros[name] * counts[name] for name in zeros) / sum(counts.values())
    assert mean == pytest.approx(0.6, abs=0.02)
    assert max(zeros.values()) - min(zeros.values()) == pytest.approx(0.2, abs=0.03)


def test_without_spread_it_is_the_uniform_base(host, tmp_path):
    owl = {"method": "allocate.owl", "params": {"sparsity": 0.5, "spread": 0.0}}
    planned = run(host, tmp_path, owl, WANDA)
    plain = run(host, tmp_path, WANDA)
    assert all(torch.equal(planned[name].mask, plain[name].mask) for name in plain)


def test_more_outliers_mean_less_sparsity_and_the_mean_counts_weights():
    plan = _spread({0: 0.01, 1: 0.03, 2: 0.02}, {0: 100, 1: 300, 2: 100}, 0.7, 0.08)
    assert plan[1] < plan[2] < plan[0]
    assert plan[0] - plan[1] == pytest.approx(0.16)
    assert (plan[0] * 100 + plan[1] * 300 + plan[2] * 100) / 500 == pytest.approx(0.7, abs=1e-12)
    assert set(_spread({0: 0.02, 1: 0.02}, {0: 1, 1: 1}, 0.7, 0.08).values()) == {0.7}


def test_at_ninety_percent_the_whole_spread_is_given_as_long_as_it_fits():
    plan = _spread({0: 0.01, 1: 0.03, 2: 0.02}, {0: 1, 1: 1, 2: 1}, 0.9, 0.08)
    # The paper's formula: kept = 0.16 share, scaled to 0 .. 1, less its mean 0.08, plus 0.1.
    assert [plan[block] for block in range(3)] == pytest.approx([0.98, 0.82, 0.90], abs=1e-12)
    many = _spread({0: 0.01, 1: 0.03, 2: 0.03}, {0: 1, 1: 8, 2: 8}, 0.9, 0.08)
    assert many[0] == pytest.approx(0.999)
    assert 0.08 < many[0] - many[1] < 0.16
    assert (many[0] + 8 * many[1] + 8 * many[2]) / 17 == pytest.approx(0.9)


@pytest.mark.parametrize("sparsity", [0.02, 0.97])
def test_near_the_ends_the_spread_shrinks_and_the_mean_stays(sparsity):
    plan = _spread({0: 0.01, 1: 0.03}, {0: 1, 1: 1}, sparsity, 0.4)
    assert all(0 <= share < 1 for share in plan.values())
    assert sum(plan.values()) / 2 == pytest.approx(sparsity)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ([], "no later stage takes the sparsity"),
        ([{"method": "quantize.rtn"}], "allowed: .*prune.wanda"),
        ([{"method": "prune.wanda", "params": {"pattern": "2:4"}}], "pattern 2:4, whose sparsity is fixed"),
    ],
)
def test_a_plan_that_nobody_takes_is_refused(later, said):
    with pytest.raises(UserError, match=said):
        parse_recipe({"model": "smollm2-135m-instruct", "stages": [{"method": "allocate.owl"}, *later]})
