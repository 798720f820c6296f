"""Smoothing leaves the function alone, evens out the ranges, and helps where activations are rounded."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.artifacts import open_artifact
from backend.errors import UserError
from backend.families import FAMILIES
from backend.text import calibration
from tests.methods.models import apart, asked, logits, made, normed, outlying
from tests.tiny import CONFIGS, make_model

SMOOTH = {"method": "transform.smoothquant"}
EIGHT = (
    {"method": "quantize.rtn", "params": {"bits": 8, "group_size": -1, "symmetric": True}},
    {"method": "quantize.activations", "params": {"input_bits": 8}},
)


SMOOTHABLE = [name for name in CONFIGS if FAMILIES[name].feeds[0]]


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - set(SMOOTHABLE)))
def test_a_model_without_norms_before_its_linears_is_refused_by_name(host, tmp_path, family):
    model = make_model(tmp_path / "model", family)
    with pytest.raises(UserError, match=f"no norm of a {FAMILIES[family].name} model stands before"):
        made(model, host, tmp_path, SMOOTH)


@pytest.mark.parametrize("family", SMOOTHABLE)
@pytest.mark.parametrize("alpha", [0.3, 0.85])
def test_smoothing_alone_leaves_every_logit_where_it_was(host, tmp_path, family, alpha):
    model = normed(make_model(tmp_path / "model", family))
    artifact, _ = made(model, host, tmp_path, SMOOTH | {"params": {"alpha": alpha}})
    before, after = logits(model, host), logits(artifact, host)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())
    weights = [dict(one.named_parameters()) for one in _both(model, artifact, host)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_at_one_half_each_channel_has_one_range_in_inputs_and_weights(host, tmp_path):
    model = outlying(tmp_path / "model")
    artifact, _ = made(model, host, tmp_path, SMOOTH)
    opened = open_artifact(artifact, host).model
    tokenizer = _tokenizer(model)
    recipe = asked(model, tmp_path, SMOOTH)
    ids = calibration(recipe.calibration.text, tokenizer, 8, 64, 0, host).ids
    seen = []
    attention = opened.model.layers[1].self_attn
    attention.q_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        opened(ids)
    reach = torch.cat(seen).abs().amax(dim=(0, 1))
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    weights = torch.stack([linear.weight.abs().amax(dim=0) for linear in linears]).amax(dim=0)
    torch.testing.assert_close(reach, weights, rtol=1e-4, atol=1e-6)


def test_with_outliers_eight_bits_lose_several_times_less_after_smoothing(host, tmp_path):
    model = outlying(tmp_path / "model")
    plain, _ = made(model, host, tmp_path, *EIGHT)
    smooth, _ = made(model, host, tmp_path, SMOOTH, *EIGHT)
    assert apart(model, smooth, host) < apart(model, plain, host) / 3


def test_a_dead_channel_keeps_its_norm(host, tmp_path):
    folder = make_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[5] = 0.0
        model.model.layers[1].self_attn.q_proj.weight[:, 7] = 0.0
    model.save_pretrained(folder)
    artifact, _ = made(folder, host, tmp_path, SMOOTH)
    before, after = logits(folder, host), logits(artifact, host)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())


def test_it_comes_before_what_compresses(host, tmp_path):
    model = make_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"stage 2, transform\.smoothquant: comes after stage 1"):
        asked(model, tmp_path, EIGHT[0], SMOOTH)


def _both(model, artifact, host):
    return AutoModelForCausalLM.from_pretrained(model), open_artifact(artifact, host).model


def _tokenizer(model):
    return AutoTokenizer.from_pretrained(model)
