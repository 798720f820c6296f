"""Embeddings and head are compressed where a stage names them, and only there."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import open_artifact, read_parts, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.export import export
from backend.facts import facts
from backend.families import FAMILIES
from backend.pipeline import compress
from backend.progress import silent
from tests.methods.models import asked, logits, made
from tests.tiny import DIFFERENT, make_model

ROUND = {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16, "symmetric": True}}
BOTH = [ROUND | {"only": "*embed*"}, ROUND]


def nearest(weight):
    """Plain symmetric rounding to 16 levels in groups of 16."""
    out = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 16):
            group = weight[row, start : start + 16].float()
            size = float((group.abs().max() / 7.5).half())
            out[row, start : start + 16] = (group / size).round().clamp(-8, 7) * size
    return out


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_table_that_a_stage_names_is_rounded_and_counted(host, tmp_path, name):
    folder = make_model(tmp_path / "model", name)
    family, layout = FAMILIES[name], facts(str(folder), host)
    table = family.embeddings[0]
    recipe = asked(folder, tmp_path, ROUND | {"only": table})
    artifact, report = made(folder, host, tmp_path, *json.loads(recipe.to_json())["stages"])
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    assert set(read_parts(artifact)) == {table}
    dense = AutoModelForCausalLM.from_pretrained(folder)
    opened = open_artifact(artifact, host).model
    wanted = nearest(dense.get_submodule(table).weight.detach())
    assert torch.allclose(opened.get_submodule(table).weight, wanted, atol=1e-6)
    tied = family.head not in layout.tables
    head = opened.get_submodule(family.head).weight
    assert torch.equal(
        head, opened.get_submodule(table).weight if tied else dense.get_submodule(family.head).weight
    )
    notes = report.notes["stage 1, quantize.rtn"]
    error = ((wanted - dense.get_submodule(table).weight) ** 2).sum() / (
        dense.get_submodule(table).weight ** 2
    ).sum()
    assert notes[f"{table}, relative squared error"] == pytest.approx(float(error.detach()), rel=1e-4)


def test_a_head_of_its_own_is_a_table_too_and_gains_nothing_from_the_embedding(host, tmp_path):
    folder = make_model(tmp_path / "model", "qwen2")
    artifact, _ = made(folder, host, tmp_path, ROUND | {"only": "lm_head"})
    assert set(read_parts(artifact)) == {"lm_head"}
    dense, opened = AutoModelForCausalLM.from_pretrained(folder), open_artifact(artifact, host).model
    assert torch.equal(opened.model.embed_tokens.weight, dense.model.embed_tokens.weight)
    assert torch.allclose(opened.lm_head.weight, nearest(dense.lm_head.weight.detach()), atol=1e-6)


def test_a_head_that_a_rotation_has_untied_can_be_named(host, tmp_path):
    folder = make_model(tmp_path / "model")
    stages = [{"method": "transform.hadamard"}, ROUND | {"only": "lm_head"}, ROUND]
    recipe = asked(folder, tmp_path, *stages)
    artifact, _ = made(folder, host, tmp_path, *stages)
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    assert "lm_head" in read_parts(artifact)
    with pytest.raises(UserError, match="only 'lm_head' matches no linear"):
        estimate(asked(folder, tmp_path, stages[1]), host)


def test_a_pattern_that_matches_linears_leaves_the_tables_alone(host, tmp_path):
    folder = make_model(tmp_path / "model")
    artifact, _ = made(folder, host, tmp_path, ROUND | {"only": "*"})
    assert not any("embed" in name or "head" in name for name in read_parts(artifact))


def test_later_stages_see_the_rounded_embedding(host, tmp_path):
    folder = make_model(tmp_path / "model")
    gptq = {"method": "quantize.gptq", "params": {"bits": 3, "group_size": 16}}
    alone, _ = made(folder, host, tmp_path, gptq)
    behind, _ = made(folder, host, tmp_path, BOTH[0] | {"params": {**ROUND["params"], "bits": 2}}, gptq)
    first = "model.layers.0.self_attn.q_proj"
    codes = [read_parts(file)[first][0].codes for file in (alone, behind)]
    assert not torch.equal(*codes)


def test_a_group_may_be_cut_short_by_the_end_of_a_row(host, tmp_path):
    folder = make_model(tmp_path / "model")
    stage = {"method": "quantize.rtn", "params": {"group_size": 24}, "only": "model.embed_tokens"}
    artifact, _ = made(folder, host, tmp_path, stage)
    (part,) = read_parts(artifact)["model.embed_tokens"]
    assert (part.shape, part.scales.shape) == ((260, 32), (260, 2))
    recipe = asked(folder, tmp_path, stage)
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes


def test_a_stopped_run_opens_the_same_table_again(host, tmp_path):
    folder = make_model(tmp_path / "model")
    recipe = asked(folder, tmp_path, *BOTH)
    whole = tmp_path / "whole.safetensors"
    compress(recipe, host, whole, tmp_path / "one", silent)

    class Stop(Exception):
        pass

    def until(update):
        if "block 2" in update.detail:
            raise Stop

    with pytest.raises(Stop):
        compress(recipe, host, tmp_path / "again.safetensors", tmp_path / "two", until)
    compress(recipe, host, tmp_path / "again.safetensors", tmp_path / "two", silent)
    first, second = (read_parts(file) for file in (whole, tmp_path / "again.safetensors"))
    for name, pieces in first.items():
        for one, other in zip(pieces, second[name], strict=True):
            assert all(torch.equal(tensor, other.tensors()[key]) for key, tensor in one.tensors().items())


def test_a_table_may_be_a_sum_of_parts_and_is_exported_plain(host, tmp_path):
    folder = make_model(tmp_path / "model")
    stages = [*BOTH, {"method": "compensate.svd", "params": {"rank": 4}, "only": "model.embed_tokens"}]
    recipe = asked(folder, tmp_path, *stages)
    artifact, _ = made(folder, host, tmp_path, *stages)
    assert len(read_parts(artifact)["model.embed_tokens"]) == 2
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    export(artifact, "transformers", tmp_path / "plain", host)
    assert torch.allclose(logits(tmp_path / "plain", host), logits(artifact, host), atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            {"method": "quantize.gptq", "only": "model.embed_tokens"},
            "compressed without calibration; allowed there: ",
        ),
        (
            {"method": "recover.blocks", "only": "model.embed_tokens"},
            "nothing to tune yet|without calibration",
        ),
        (ROUND | {"only": "model.embedding"}, "matches no linear"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(host, tmp_path, stage, said):
    folder = make_model(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        estimate(asked(folder, tmp_path, stage), host)
