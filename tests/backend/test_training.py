"""The whole model's loss as methods see it, beside that of the plain transformers model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.artifacts import open_artifact
from backend.checkpoints import Checkpoints
from backend.families import family_of
from backend.solvers.blockwise import gradients
from backend.text import calibration
from tests.methods.models import made
from tests.tiny import DIFFERENT, make_model

WATCH = {"method": "recover.watch"}
RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}


def plain_loss(model, ids):
    """Nats a token as transformers itself counts them."""
    return model(input_ids=ids, labels=ids).loss


def tokens(model, host, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    return calibration(f"file:{tmp_path / 'text.txt'}", tokenizer, 8, 64, 0, host).ids


@pytest.mark.parametrize("family", DIFFERENT)
def test_loss_and_gradient_of_other_weights_are_those_of_a_model_that_has_them(
    host, tmp_path, family, watched
):
    model = make_model(tmp_path / "model", family)
    seen = {}

    def look(work):
        with gradients():
            layers = [layer for layer in work.layers("nothing") if ".0." in layer.name]
            weights = {layer.name: (1.1 * layer.weight + 0.01).requires_grad_() for layer in layers}
            lost = work.loss()(work.tokens[:3], weights)
            lost.backward()
        seen.update(loss=float(lost), slopes={name: weight.grad for name, weight in weights.items()})
        seen["weights"] = {name: weight.detach() for name, weight in weights.items()}

    watched(look)
    made(model, host, tmp_path, RTN, WATCH)
    transposed = family_of(family, "m").transposed
    other = open_artifact(made(model, host, tmp_path, RTN)[0], host).model.float()
    dense = AutoModelForCausalLM.from_pretrained(model)
    for name, weight in seen["weights"].items():
        mine = dense.get_submodule(name).weight
        mine.data.copy_(weight.T if transposed else weight)
        place, _, short = name.rpartition(".")
        setattr(other.get_submodule(place), short, dense.get_submodule(name))
    lost = plain_loss(other, tokens(model, host, tmp_path)[:3])
    lost.backward()
    assert seen["loss"] == pytest.approx(float(lost), rel=1e-5)
    for name, slope in seen["slopes"].items():
        wanted = dense.get_submodule(name).weight.grad
        torch.testing.assert_close(slope, wanted.T if transposed else wanted, rtol=1e-3, atol=1e-6)


def test_the_model_itself_stays_as_it_is(host, tmp_path, watched):
    model = make_model(tmp_path / "model", dtype=torch.bfloat16)

    def look(work):
        before = {name: tensor.clone() for name, tensor in work.model.named_parameters()}
        loss = work.loss()
        with gradients():
            weights = {layer.name: torch.zeros_like(layer.weight) for layer in work.layers("nothing")}
            loss(work.tokens[:1], weights)
        for name, tensor in work.model.named_parameters():
            assert torch.equal(tensor, before[name])
            assert tensor.dtype == torch.bfloat16

    watched(look)
    made(model, host, tmp_path, RTN, WATCH)


def test_a_stage_finds_what_it_kept_and_other_stages_do_not(tmp_path):
    checkpoints = Checkpoints(tmp_path, torch.device("cpu"))
    first, second = checkpoints.kept(1), checkpoints.kept(2)
    assert first.load() is None
    first.save({"step": torch.tensor(3.0), "codes": torch.arange(5, dtype=torch.uint8)})
    first.save({"step": torch.tensor(4.0)})
    again = Checkpoints(tmp_path, torch.device("cpu")).kept(1).load()
    assert again is not None
    assert set(again) == {"step"}
    assert float(again["step"]) == 4
    assert second.load() is None


def test_a_state_that_was_cut_short_is_none(tmp_path):
    kept = Checkpoints(tmp_path, torch.device("cpu")).kept(1)
    kept.save({"step": torch.ones(1000)})
    (file,) = tmp_path.glob("*state*")
    file.write_bytes(file.read_bytes()[:100])
    assert kept.load() is None
