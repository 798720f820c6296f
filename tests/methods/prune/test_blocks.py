"""Whole blocks go: those that matter least first, and what is left is an ordinary smaller model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from backend.artifacts import OpenModel, load_model, load_tokenizer, open_artifact, read_parts, tensor_sizes
from backend.depth import apart as divergence
from backend.depth import influences, without
from backend.errors import UserError
from backend.estimate import estimate
from backend.evaluate import final_states
from backend.export import export
from backend.facts import facts
from backend.families import FAMILIES
from backend.pipeline import compress
from backend.progress import silent
from backend.text import calibration
from tests.methods.models import IDS, apart, asked, logits, made
from tests.tiny import DIFFERENT, make_model

SIX = {"num_hidden_layers": 6}


def whole(model):
    return OpenModel(model, FAMILIES["llama"], "", torch.device("cpu"))


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
    found = influences(whole(opened), "block", IDS, lambda *told: None)
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
    for piece in ("block", "attention", "mlp"):
        assert influences(whole(opened), piece, IDS, lambda *told: None)[3] == pytest.approx(0, abs=1e-6)


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
    assert notes["loss after each, nats a token"][0] == pytest.approx(min(losses), abs=1e-3)


@pytest.mark.parametrize("piece", ["attention", "mlp"])
def test_the_influence_of_a_half_is_that_of_what_it_adds(model, piece):
    opened = AutoModelForCausalLM.from_pretrained(model).eval()
    found = influences(whole(opened), piece, IDS, lambda *told: None)
    inside = {}
    layer = opened.model.layers[1]
    layer.register_forward_pre_hook(lambda module, given: inside.update(start=given[0]))
    layer.self_attn.register_forward_hook(lambda module, given, out: inside.update(attention=out[0]))
    layer.mlp.register_forward_hook(lambda module, given, out: inside.update(mlp=out))
    with torch.inference_mode():
        opened(IDS)
    middle = inside["start"] + inside["attention"]
    before, after = (inside["start"], middle) if piece == "attention" else (middle, middle + inside["mlp"])
    near = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1).mean()
    assert found[1] == pytest.approx(1 - float(near), abs=1e-6)


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("piece", ["attention", "mlp"])
def test_a_half_that_goes_adds_nothing_and_weighs_nothing(host, tmp_path, name, piece):
    folder = make_model(tmp_path / "model", name)
    rounded = {"method": "quantize.rtn", "params": {"bits": 8, "group_size": 16}}
    stages = [stage(blocks=1, piece=piece, score="last"), rounded]
    recipe = asked(folder, tmp_path, *stages)
    artifact, report = made(folder, host, tmp_path, *json.loads(recipe.to_json())["stages"])
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    opened = load_model(facts(str(folder), host), host)
    last = max(row["block"] for row in report.layers)
    ids = IDS[:, :24]
    alone, _ = made(folder, host, tmp_path, stage(blocks=1, piece=piece, score="last"))
    with torch.inference_mode(), without(opened, piece, [last]):
        expected = opened.model(ids).logits.double()
    assert torch.allclose(logits(alone, host, ids), expected, atol=1e-5)
    gone = [name for name, parts in read_parts(artifact).items() if sum(part.bits for part in parts) == 0]
    assert gone
    assert all(f".{last}." in name for name in gone)
    assert {row["stage"] for row in report.layers if row["layer"] in gone} == {1}


def test_evolution_over_one_block_finds_what_brute_force_does(host, tmp_path):
    folder = make_model(tmp_path / "model", **SIX)
    _, report = made(folder, host, tmp_path, stage(blocks=1, score="evolution", generations=8, offspring=5))
    ids = calibration(
        asked(folder, tmp_path).calibration.text, load_tokenizer(str(folder), host), 8, 64, 0, host
    ).ids
    opened = load_model(facts(str(folder), host), host)
    with torch.inference_mode():
        dense = [final_states(opened, one) for one in ids]
        costs = []
        for number in range(6):
            with without(opened, "block", [number]):
                costs.append(divergence(opened, ids, dense))
    notes = report.notes["stage 1, prune.blocks"]
    assert notes["blocks left out"] == [min(range(6), key=costs.__getitem__)]
    assert notes["KL of each generation's best, nats a token"][-1] == pytest.approx(min(costs), abs=1e-4)


def test_evolution_never_ends_above_the_choice_it_began_with(host, tmp_path):
    folder = make_model(tmp_path / "model", **SIX)
    begun, _ = made(folder, host, tmp_path, stage(blocks=3))
    ended, report = made(folder, host, tmp_path, stage(blocks=3, score="evolution", generations=10))
    ids = calibration(
        asked(folder, tmp_path).calibration.text, load_tokenizer(str(folder), host), 8, 64, 0, host
    ).ids
    losses = [
        sum(
            float((dense.exp() * (dense - now)).sum(dim=-1).mean())
            for one in ids
            for dense, now in [[logits(file, host, one[None]).log_softmax(dim=-1) for file in (folder, end)]]
        )
        for end in (begun, ended)
    ]
    assert losses[1] <= losses[0] + 1e-6
    curve = report.notes["stage 1, prune.blocks"]["KL of each generation's best, nats a token"]
    assert curve == sorted(curve, reverse=True)
    assert len(report.notes["stage 1, prune.blocks"]["blocks left out"]) == 3


@pytest.mark.parametrize("name", DIFFERENT)
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


@pytest.mark.parametrize("piece", ["block", "attention"])
def test_a_stopped_run_goes_on_with_the_same_blocks(host, tmp_path, model, piece):
    rounded = {"method": "quantize.gptq", "params": {"bits": 3, "group_size": 16}}
    recipe = asked(model, tmp_path, stage(blocks=2, piece=piece, score="random"), rounded)
    whole_run, again = tmp_path / "whole.safetensors", tmp_path / "again.safetensors"
    compress(recipe, host, whole_run, tmp_path / "one", silent)

    def until(update):
        if update.stage == "compress" and update.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(recipe, host, again, tmp_path / "two", until)
    report = compress(recipe, host, again, tmp_path / "two", silent)
    assert report.notes["stage 1, prune.blocks"]
    first, second = (load_file(file) for file in (whole_run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_plans_are_made_for_the_smaller_model(host, tmp_path, model):
    stages = [
        stage(blocks=2), {"method": "allocate.dp", "params": {"bits": 3.0}},
        {"method": "quantize.gptq", "params": {"bits": 3, "group_size": 16}},
    ]  # fmt: skip
    artifact, report = made(model, host, tmp_path, *stages)
    parts = read_parts(artifact)
    assert len(parts) == 4 * 7
    assert {row["block"] for row in report.layers} == {0, 1, 2, 3}
    plain, _ = made(model, host, tmp_path, stages[0], stages[2])
    assert sum(tensor_sizes(artifact).values()) <= sum(tensor_sizes(plain).values())


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([stage(blocks=6)], "blocks is 6; this model has 6"),
        ([stage(blocks=0)], "blocks is 0"),
        ([stage(blocks=7, piece="mlp")], "blocks is 7; this model has 6"),
        ([stage(blocks=1) | {"only": "*.2.*"}], "allowed: no only"),
        ([{"method": "quantize.rtn"}, stage(blocks=1)], "comes after stage 1, quantize.rtn"),
        ([{"method": "transform.hadamard"}, stage(blocks=1)], "comes after stage 1, transform.hadamard"),
        ([stage(blocks=3), {"method": "quantize.rtn", "only": "*.5.*"}], "matches no linear"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(host, tmp_path, model, stages, said):
    with pytest.raises(UserError, match=said):
        estimate(asked(model, tmp_path, *stages), host)
