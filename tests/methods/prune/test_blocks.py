"""Whole blocks go: those that matter least first, and what is left is an ordinary smaller model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import load_tokenizer, open_artifact, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.export import export
from backend.families import FAMILIES
from backend.methods.prune.blocks import influence
from backend.text import calibration
from tests.methods.models import IDS, apart, asked, logits, made
from tests.tiny import CONFIGS, make_model

SIX = {"num_hidden_layers": 6}


def stage(**params):
    return {"method": "prune.blocks", "params": params}


@pytest.fixture
def model(tmp_path):
    """Six blocks, of which two hardly change what they are given."""
    folder = make_model(tmp_path / "model", **SIX)
    opened = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for number in (2, 4):
            opened.model.layers[number].self_attn.o_proj.weight *= 1e-3
            opened.model.layers[number].mlp.down_proj.weight *= 1e-3
    opened.save_pretrained(folder)
    return folder


def test_influence_is_one_minus_the_mean_cosine_of_inputs_and_outputs(model):
    opened = AutoModelForCausalLM.from_pretrained(model).eval()
    found = influence(opened, FAMILIES["llama"], IDS, lambda *told: None)
    with torch.inference_mode():
        states = opened.model(IDS, output_hidden_states=True).hidden_states
    for number in range(5):
        before, after = states[number][0].double(), states[number + 1][0].double()
        plain = [float(a @ b / a.norm() / b.norm()) for a, b in zip(before, after, strict=True)]
        assert found[number] == pytest.approx(1 - sum(plain) / len(plain), abs=1e-6)
        assert 0 <= found[number] <= 2


def test_a_block_that_hands_its_inputs_on_has_no_influence(model):
    opened = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        opened.model.layers[3].self_attn.o_proj.weight.zero_()
        opened.model.layers[3].mlp.down_proj.weight.zero_()
    assert influence(opened, FAMILIES["llama"], IDS, lambda *told: None)[3] == pytest.approx(0, abs=1e-6)


def test_blocks_that_change_little_go_first(host, tmp_path, model):
    artifact, report = made(model, host, tmp_path, stage(blocks=2))
    notes = report.notes["stage 1, prune.blocks"]
    assert set(notes["blocks left out"]) == {2, 4}
    assert apart(model, artifact, host) < 0.01
    worse, _ = made(model, host, tmp_path, stage(blocks=2, score="last"))
    assert apart(model, worse, host) > 10 * apart(model, artifact, host)


def test_the_greedy_choice_is_that_of_brute_force(host, tmp_path):
    folder = make_model(tmp_path / "model", **SIX)
    _, report = made(folder, host, tmp_path, stage(blocks=1, score="greedy"))
    recipe = asked(folder, tmp_path)
    losses = []
    ids = calibration(recipe.calibration.text, load_tokenizer(str(folder), host), 8, 64, 0, host).ids
    for number in range(6):
        opened = AutoModelForCausalLM.from_pretrained(folder).eval()
        del opened.model.layers[number]
        for place, block in enumerate(opened.model.layers):
            block.self_attn.layer_idx = place
        opened.config.num_hidden_layers = 5
        with torch.inference_mode():
            told = opened(ids, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1)
        losses.append(-float(told.gather(2, ids[:, 1:, None]).mean()))
    notes = report.notes["stage 1, prune.blocks"]
    assert notes["blocks left out"] == [min(range(6), key=losses.__getitem__)]
    assert notes["loss after each block, nats a token"][0] == pytest.approx(min(losses), abs=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_gets_smaller_by_what_the_estimate_says(host, tmp_path, name):
    folder = make_model(tmp_path / "model", name)
    recipe = asked(
        folder, tmp_path, stage(blocks=1), {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}}
    )
    artifact, _ = made(folder, host, tmp_path, *(json.loads(recipe.to_json())["stages"]))
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    assert torch.isfinite(logits(artifact, host)).all()


def test_later_stages_and_the_plain_export_know_only_the_smaller_model(host, tmp_path, model):
    stages = [
        stage(blocks=2), {"method": "transform.hadamard"},
        {"method": "quantize.gptq", "params": {"bits": 4, "group_size": 16}},
        {"method": "recover.blocks", "params": {"samples": 4, "epochs": 1}},
    ]  # fmt: skip
    artifact, report = made(model, host, tmp_path, *stages)
    assert {row["block"] for row in report.layers} == {0, 1, 2, 3}
    opened = open_artifact(artifact, host).model
    assert opened.config.num_hidden_layers == 4
    told = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    ids = IDS[:, :8]
    assert torch.equal(opened.generate(ids, **told), opened.generate(ids, use_cache=False, **told))
    export(artifact, "transformers", tmp_path / "plain", host)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert len(plain.model.layers) == 4


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([stage(blocks=6)], "blocks is 6; this model has 6"),
        ([stage(blocks=0)], "blocks is 0"),
        ([stage(blocks=1) | {"only": "*.2.*"}], "allowed: no only"),
        ([{"method": "quantize.rtn"}, stage(blocks=1)], "comes after stage 1, quantize.rtn"),
        ([{"method": "transform.hadamard"}, stage(blocks=1)], "comes after stage 1, transform.hadamard"),
        ([stage(blocks=3), {"method": "quantize.rtn", "only": "*.5.*"}], "matches no linear"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(host, tmp_path, model, stages, said):
    with pytest.raises(UserError, match=said):
        estimate(asked(model, tmp_path, *stages), host)
