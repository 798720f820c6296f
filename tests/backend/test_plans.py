"""Plans: single linears with values of their own, as a recipe keeps, checks, names and counts them."""

import json

import pytest
import torch

from backend.artifacts import read_parts, tensor_sizes
from backend.coded import Grid
from backend.errors import UserError
from backend.estimate import estimate
from backend.facts import facts
from backend.parts import Sparse, combined
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.rules import check_layers
from tests.tiny import make_model, make_text

Q, UP, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
STAGES = [
    {"method": "prune.sparsegpt", "params": {"pattern": "2:4"}},
    {"method": "quantize.gptq", "params": {"bits": 4, "group_size": 16}},
]
PLAN = {
    Q: {"bits": 2, "skip": ["prune.sparsegpt"]},
    UP: {"skip": ["prune.sparsegpt", "quantize.gptq"]},
    DOWN: {"group_size": 32},
}


@pytest.fixture
def asked(tmp_path):
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")

    def recipe(**fields):
        return parse_recipe(
            {
                "model": str(folder),
                "stages": STAGES,
                "calibration": {"text": f"file:{text}", "samples": 4, "length": 64, "order": "dense"},
                "evaluation": {"text": f"file:{text}", "length": 64, "windows": 2, "metrics": ["perplexity"]},
                **fields,
            }
        )

    return recipe


def test_each_linear_gets_what_its_plan_says(asked, host, tmp_path):
    planned = asked(plan=PLAN)
    report = compress(planned, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)
    parts = read_parts(tmp_path / "a.safetensors")
    assert UP not in parts
    assert [type(part) for part in parts[Q]] == [Grid]
    assert (parts[Q][0].width, parts[DOWN][0].width) == (2, 4)
    assert parts[DOWN][0].kept() is not None
    assert parts[DOWN][0].scales.shape[1] == 64 // 32
    assert {row["stage"] for row in report.layers if row["layer"] == Q} == {2}
    # In dense order no linear depends on another: each equals that of a recipe for it alone.
    alone = asked(stages=[{"method": "quantize.gptq", "params": {"bits": 2, "group_size": 16}, "only": Q}])
    compress(alone, host, tmp_path / "b.safetensors", tmp_path / "other", silent)
    assert torch.equal(combined(read_parts(tmp_path / "b.safetensors")[Q]), combined(parts[Q]))
    assert not any(isinstance(part, Sparse) for pieces in parts.values() for part in pieces)


def test_bytes_of_a_plan_are_counted_exactly(asked, host, tmp_path):
    recipe = asked(plan=PLAN)
    compress(recipe, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)
    assert estimate(recipe, host).packed_bytes == sum(tensor_sizes(tmp_path / "a.safetensors").values())


def test_a_recipe_without_a_plan_reads_as_before_there_were_plans(asked):
    assert "plan" not in json.loads(asked().to_json())
    assert asked(plan={}).to_json() == asked().to_json()
    assert asked(plan=PLAN).digest("f") != asked().digest("f")


def test_plans_travel_as_json_and_never_read_alike(asked):
    recipe = asked(plan=PLAN)
    assert parse_recipe(recipe.to_json()) == recipe
    assert "2-bit" in recipe.chain()
    other = asked(plan={**PLAN, Q: {"bits": 2}})
    assert recipe.chain() != other.chain()


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({Q: {"bits": 17}}, "bits is 17 for quantize.gptq"),
        ({Q: {"rank": 3}}, "no stage takes 'rank'"),
        ({Q: {"skip": ["quantize.rtn"]}}, "allowed: prune.sparsegpt, quantize.gptq"),
        ({Q: {"bits": "4"}}, "bits is '4'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_in_one_sentence(asked, plan, told):
    with pytest.raises(UserError) as refusal:
        asked(plan=plan)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("method", "plan", "told"),
    [
        ("quantize.gptq", {"model.layers.9.up": {"bits": 3}}, "is no linear"),
        ("quantize.adadim", {Q: {"group_size": 24}}, "does not divide the 32"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused(asked, host, method, plan, told):
    recipe = asked(plan=plan, stages=[{"method": method, "params": {"group_size": 16}}])
    layout = facts(recipe.model, host)
    with pytest.raises(UserError, match=told):
        check_layers(recipe, layout.layers, layout.positions)


def test_nothing_left_to_repair_is_refused_for_the_linear_it_is_about(asked, host):
    recipe = asked(
        stages=[*STAGES, {"method": "compensate.svd", "params": {"rank": 2}}],
        plan={UP: {"skip": ["prune.sparsegpt", "quantize.gptq"]}},
    )
    layout = facts(recipe.model, host)
    with pytest.raises(UserError, match="nothing to compensate"):
        check_layers(recipe, layout.layers, layout.positions)
