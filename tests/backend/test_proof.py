"""What moves scales or turns channels proves itself on the model at hand, or is refused by name."""

import dataclasses

import pytest
import torch

from backend.artifacts import load_model
from backend.errors import UserError
from backend.facts import facts
from backend.families import FAMILIES
from backend.shrink import few_blocks
from backend.solvers.folding import check_folding
from tests.methods.models import made
from tests.tiny import CONFIGS, make_model

SMOOTH, HADAMARD = {"method": "transform.smoothquant"}, {"method": "transform.hadamard"}
AWQ = {"method": "quantize.awq", "params": {"bits": 4, "group_size": 16}}
# As OPT 350M has them, which is an OPT model all the same.
NORMS_BEHIND = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_scales_can_be_moved_in_every_family(model_type, dtype, tmp_path, host):
    opened = load_model(facts(str(make_model(tmp_path / "model", model_type, dtype)), host), host)
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    check_folding(opened.model, opened.family)
    after = opened.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", [SMOOTH, AWQ], ids=lambda stage: stage["method"])
def test_a_model_whose_norms_stand_elsewhere_is_refused_what_moves_scales(stage, tmp_path, host):
    model = make_model(tmp_path / "model", "opt", **NORMS_BEHIND)
    with pytest.raises(
        UserError,
        match=r"stage 1, \w+\.\w+: scales cannot be moved into .* self_attn.q_proj.*OPT model.*logits change",
    ):
        made(model, host, tmp_path, stage)


def test_that_model_takes_what_moves_no_scales(tmp_path, host):
    model = make_model(tmp_path / "model", "opt", **NORMS_BEHIND)
    gptq = {"method": "quantize.gptq", "params": {"bits": 4, "group_size": 16}}
    assert len(made(model, host, tmp_path, gptq)[1].layers) == 12


def test_a_norm_that_a_family_has_wrong_is_found(tmp_path, host):
    opened = load_model(facts(str(make_model(tmp_path / "model", "gemma2")), host), host)
    wrong = dataclasses.replace(opened.family, norm_offset=0.0)
    with pytest.raises(UserError, match=r"scales cannot be moved into the inputs of self_attn.q_proj"):
        check_folding(opened.model, wrong)


def test_a_turn_that_a_layout_does_not_bear_is_refused(tmp_path, host, monkeypatch):
    model = make_model(tmp_path / "model", "gemma2")
    wrong = dataclasses.replace(FAMILIES["gemma2"], rotates=True)
    monkeypatch.setitem(FAMILIES, "gemma2", wrong)
    with pytest.raises(
        UserError, match=r"stage 1, transform.hadamard: changes what this Gemma 2 model computes"
    ):
        made(model, host, tmp_path, HADAMARD)


def test_a_few_blocks_compute_as_the_whole_model_does(tmp_path, host):
    opened = load_model(facts(str(make_model(tmp_path / "m", "gemma3_text", torch.bfloat16)), host), host)
    ids = torch.arange(20)[None] + 5
    whole = few_blocks(opened.model, opened.family, {0, 1, 2})
    few = few_blocks(opened.model, opened.family, {0, 2})
    with torch.no_grad():
        assert whole(ids).logits.dtype == torch.float32
        expected = opened.model.float()(ids).logits
        assert torch.allclose(whole(ids).logits, expected, atol=1e-4)
        assert few.config.layer_types == ["sliding_attention", "sliding_attention"]
        assert not torch.allclose(few(ids).logits, expected, atol=1e-2)
    assert len(opened.model.model.layers) == 3


LONG = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 128, "factor": 2.0,
    },
    "original_max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    "stages",
    [
        ({"method": "prune.width", "params": {"ratio": 0.25}},),
        (
            {"method": "allocate.fisher", "params": {"bits": 4}},
            {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}},
        ),
        (SMOOTH,), (HADAMARD,), (AWQ,),
    ],
    ids=lambda stages: stages[0]["method"],
)  # fmt: skip
def test_a_model_with_two_sets_of_rotary_frequencies_bears_gradients(stages, tmp_path, host):
    model = make_model(tmp_path / "model", "phi3", **LONG)
    assert made(model, host, tmp_path, *stages)[0].is_file()
