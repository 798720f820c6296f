"""Every family goes through the whole pipeline on a tiny random model of it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import compressed_modules, open_artifact, read_parts
from backend.errors import UserError
from backend.estimate import estimate
from backend.evaluate import Subject, evaluate
from backend.facts import facts
from backend.families import FAMILIES
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from tests.tiny import CONFIGS, make_model, make_text

CHAIN = [
    {"method": "prune.wanda", "params": {"pattern": "2:4"}},
    {"method": "quantize.gptq", "params": {"bits": 4, "group_size": 16}},
    {"method": "compensate.eora", "params": {"rank": 2}},
]


def recipe_for(folder: Path, text: Path, stages: list, **calibration):
    return parse_recipe(
        {
            "model": str(folder),
            "stages": stages,
            "calibration": {"text": f"file:{text}", "samples": 6, "length": 64, **calibration},
            "evaluation": {"text": f"file:{text}", "length": 64, "windows": 4},
        }
    )


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_chain_of_three_stages_runs_and_is_measured(model_type, tmp_path, host):
    folder = make_model(tmp_path / "model", model_type)
    text = make_text(tmp_path / "text.txt")
    recipe = recipe_for(folder, text, CHAIN)
    artifact = tmp_path / "artifact.safetensors"
    report = compress(recipe, host, artifact, tmp_path / "scratch", silent)
    layout = facts(str(folder), host)
    assert {row["layer"] for row in report.layers} == set(layout.layers)
    assert all(row["sparsity"] >= 0.5 for row in report.layers)

    opened = open_artifact(artifact, host)
    assert set(compressed_modules(opened.model)) == set(layout.layers)
    ids = torch.arange(40)[None] + 5
    with torch.inference_mode():
        assert bool(torch.isfinite(opened.model(ids).logits).all())

    subject = Subject(recipe, host, artifact, tmp_path / "scratch", silent)
    numbers = {
        found.metric: found.value
        for name in ("perplexity", "divergence", "size")
        for found in evaluate(name, subject).measurements
    }
    assert numbers["size.packed"] == estimate(recipe, host).packed_bytes
    assert numbers["size.packed"] < estimate(recipe_for(folder, text, []), host).packed_bytes
    assert numbers["divergence.kl"] > 0


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_dense_artifact_has_the_logits_of_the_model_itself(model_type, tmp_path, host):
    folder = make_model(tmp_path / "model", model_type)
    recipe = recipe_for(folder, make_text(tmp_path / "text.txt"), [])
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(40)[None] + 5
    with torch.inference_mode():
        ours = open_artifact(artifact, host).model(ids).logits
        assert torch.equal(ours, original(ids).logits)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_losses_are_those_of_a_plain_transformers_loop(model_type, tmp_path, host):
    folder = make_model(tmp_path / "model", model_type)
    recipe = recipe_for(folder, make_text(tmp_path / "text.txt"), [])
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    subject = Subject(recipe, host, artifact, tmp_path / "scratch", silent)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    losses = []
    with torch.inference_mode():
        for ids in subject.tokens.ids:
            logits = model(ids[None]).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[1:]).item())
    found = evaluate("perplexity", subject)
    assert found.series[0].values == pytest.approx(losses, rel=1e-5)
    kl = next(m.value for m in evaluate("divergence", subject).measurements if m.metric == "divergence.kl")
    assert kl == 0


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_rank_of_the_whole_layer_restores_the_dense_logits(model_type, tmp_path, host):
    folder = make_model(tmp_path / "model", model_type)
    stages = [
        {"method": "quantize.rtn", "params": {"bits": 2, "group_size": 16}},
        {"method": "compensate.eora", "params": {"rank": 4096}},
    ]
    recipe = recipe_for(folder, make_text(tmp_path / "text.txt"), stages)
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(40)[None] + 5
    with torch.inference_mode():
        ours, theirs = open_artifact(artifact, host).model(ids).logits, original(ids).logits
    assert torch.allclose(ours, theirs, atol=2e-3 * float(theirs.abs().max()))


def test_every_family_has_a_tiny_model():
    assert set(CONFIGS) == set(FAMILIES)


def test_an_unsupported_architecture_is_refused_before_anything_is_loaded(tmp_path, host):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="architecture 'bert' is not supported; supported: llama, mistral"):
        facts(str(folder), host)


def test_parts_in_the_file_are_what_the_open_model_decodes(tmp_path, host):
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16)
    recipe = recipe_for(folder, make_text(tmp_path / "text.txt"), CHAIN)
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    parts = read_parts(artifact)
    for name, module in compressed_modules(open_artifact(artifact, host).model).items():
        expected = sum(part.dense() for part in parts[name][:-1]).to(torch.bfloat16)
        assert torch.equal(module.weight, expected)
        kept = parts[name][0].kept()
        assert bool((module.weight[~kept] == 0).all())
        assert bool((kept.view(-1, 4).sum(dim=1) == 2).all())
