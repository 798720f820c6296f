"""Units of least importance go from every block, and importance is what it says it is."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import load_model, load_tokenizer, open_artifact, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.facts import facts
from backend.families import FAMILIES, family_of
from backend.fisher import weight_gradients
from backend.progress import silent
from backend.text import calibration
from tests.methods.models import asked, logits, made
from tests.tiny import DIFFERENT, make_model

WIDE = {"intermediate_size": 128}


def stage(**params):
    return {"method": "prune.width", "params": params}


def channels(artifact, host):
    return open_artifact(artifact, host).model.model.layers


def test_taylor_sums_are_those_of_plain_autograd(host, tmp_path):
    """Channels chosen from the gradients of an ordinary backward pass through the whole model."""
    folder = make_model(tmp_path / "model", **WIDE)
    artifact, _ = made(folder, host, tmp_path, stage(ratio=0.5, samples=4))
    recipe = asked(folder, tmp_path)
    ids = calibration(recipe.calibration.text, load_tokenizer(str(folder), host), 8, 64, 0, host).ids[:4]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model(ids, labels=ids).loss.backward()
    for block, kept in zip(model.model.layers, channels(artifact, host), strict=True):
        mlp = block.mlp
        sums = (mlp.gate_proj.weight * mlp.gate_proj.weight.grad).abs().sum(dim=1)
        sums = sums + (mlp.up_proj.weight * mlp.up_proj.weight.grad).abs().sum(dim=1)
        sums = sums + (mlp.down_proj.weight * mlp.down_proj.weight.grad).abs().sum(dim=0)
        wanted = sums.topk(64).indices.sort().values
        assert torch.equal(kept.mlp.down_proj.weight, mlp.down_proj.weight[:, wanted])
        assert torch.equal(kept.mlp.gate_proj.weight, mlp.gate_proj.weight[wanted])


def test_the_gradient_foretells_what_scaling_a_unit_does(host, tmp_path):
    """Σ w·g over all MLP channels of a block is the loss's slope when all of them are scaled down."""
    folder = make_model(tmp_path / "model", dtype=torch.float32)
    recipe = asked(folder, tmp_path)
    ids = calibration(recipe.calibration.text, load_tokenizer(str(folder), host), 4, 64, 0, host).ids
    opened = load_model(facts(str(folder), host), host)
    name = "model.layers.1.mlp.down_proj"
    found = dict(weight_gradients(opened, ids, silent, tmp_path / "scratch"))
    weight = opened.model.get_submodule(name).weight
    slope = float((weight * found[name]).double().sum())

    def loss(scale):
        model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
        with torch.no_grad():
            model.get_submodule(name).weight *= scale
            told = model(ids).logits[:, :-1].log_softmax(dim=-1)
            return -float(told.gather(2, ids[:, 1:, None]).mean())

    assert slope == pytest.approx((loss(1 + 1e-3) - loss(1 - 1e-3)) / 2e-3, rel=0.05)


@pytest.mark.parametrize("score", ["taylor", "activation", "magnitude"])
@pytest.mark.parametrize("units", ["channels", "heads", "both"])
def test_units_that_do_nothing_go_first(host, tmp_path, score, units):
    """Half of the units count for nothing in the model; without them it computes what it did."""
    folder = make_model(tmp_path / "model", **WIDE)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight[:, :16] *= 1e-4
            block.self_attn.v_proj.weight[:8] *= 1e-4
            block.self_attn.q_proj.weight[:16] *= 1e-2
            block.self_attn.k_proj.weight[:8] *= 1e-2
            block.mlp.down_proj.weight[:, ::2] *= 1e-4
            block.mlp.up_proj.weight[::2] *= 1e-2
            block.mlp.gate_proj.weight[::2] *= 1e-2
    model.save_pretrained(folder)
    artifact, report = made(folder, host, tmp_path, stage(ratio=0.5, units=units, score=score))
    assert torch.allclose(logits(artifact, host), logits(folder, host), atol=0.02)
    config = open_artifact(artifact, host).model.config
    assert config.intermediate_size == (128 if units == "heads" else 64)
    assert config.num_key_value_heads == (2 if units == "channels" else 1)
    assert report.notes["stage 1, prune.width"]


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_family_gets_smaller_by_what_the_estimate_says(host, tmp_path, name):
    wide = {"opt": {"ffn_dim": 128}, "gpt2": {}}.get(name, WIDE)
    folder = make_model(tmp_path / "model", name, **wide)
    units = "both" if FAMILIES[name].free_heads else "channels"
    stages = [
        stage(ratio=0.5, units=units, samples=2),
        {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}},
    ]
    recipe = asked(folder, tmp_path, *stages)
    artifact, _ = made(folder, host, tmp_path, *(json.loads(recipe.to_json())["stages"]))
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    assert torch.isfinite(logits(artifact, host)).all()


@pytest.mark.parametrize("name", [name for name in DIFFERENT if not FAMILIES[name].free_heads])
def test_heads_stay_where_the_configuration_ties_their_width_to_their_number(host, tmp_path, name):
    folder = make_model(tmp_path / "model", name)
    with pytest.raises(UserError, match=f"{family_of(name, 'm').name} ties.*allowed: channels"):
        estimate(asked(folder, tmp_path, stage(units="both")), host)


def test_too_small_a_share_is_refused_instead_of_doing_nothing(host, tmp_path):
    folder = make_model(tmp_path / "model")
    with pytest.raises(UserError, match="leaves all 2 heads of a block"):
        estimate(asked(folder, tmp_path, stage(units="heads", ratio=0.3)), host)


@pytest.mark.parametrize(("before", "kept"), [(1024, 832), (128, 104), (120, 96), (100, 80)])
def test_widths_stay_multiples_that_groups_divide(host, tmp_path, before, kept):
    folder = make_model(tmp_path / "model", intermediate_size=before)
    artifact, _ = made(folder, host, tmp_path, stage(ratio=0.2, score="magnitude"))
    assert open_artifact(artifact, host).model.config.intermediate_size == kept
