"""Predicted KL of single changes: against a plain computation, and against the KL itself."""

import pytest
import torch
from torch import nn

from backend import fisher
from backend.artifacts import load_model
from backend.facts import facts
from backend.fisher import sensitivities
from backend.progress import silent
from tests.tiny import make_model

NAME = "model.layers.0.mlp.up_proj"
OTHER = "model.layers.1.self_attn.v_proj"


@pytest.fixture
def opened(tmp_path, host):
    return load_model(facts(str(make_model(tmp_path / "model")), host), host)


@pytest.fixture
def tokens():
    return torch.randint(3, 250, (8, 128), generator=torch.Generator().manual_seed(3))


def changes_of(opened, size=1e-3, only=None):
    def changes(block):
        generator = torch.Generator().manual_seed(block)
        found = {}
        for group in opened.family.group_names(block):
            for name in group:
                weight = opened.model.get_submodule(name).weight
                noise = torch.randn(weight.shape, generator=generator) * size
                found[name] = [torch.zeros_like(noise), noise, 2 * noise]
        return found if only is None else {name: found[name] for name in only if name in found}

    return changes


def test_equals_a_plain_computation_position_by_position(opened, tokens, tmp_path):
    found = sensitivities(
        opened, tokens[:2], changes_of(opened, only=[NAME, OTHER]), 5, silent, tmp_path, draws=3
    )
    assert set(found) == {NAME, OTHER}
    generator = torch.Generator().manual_seed(5)
    for name, block in ((NAME, 0), (OTHER, 1)):
        generator.manual_seed(5)
        _, change, _ = changes_of(opened)(block)[name]
        squares = []
        for ids in tokens[:2]:
            # A change of each token's output by its own amount: the gradient with respect to it is g.
            module = opened.model.get_submodule(name)
            seen = {}

            def shifted(layer, given, output, seen=seen):
                seen["x"] = given[0][0].detach()
                seen["extra"] = torch.zeros_like(output, requires_grad=True)
                return output.detach() + seen["extra"]

            handle = module.register_forward_hook(shifted)
            logits = opened.model(input_ids=ids[None]).logits[0]
            handle.remove()
            for _ in range(3):
                labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
                loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, seen["extra"], retain_graph=True)
                felt = [
                    float(gradient[0, t].double() @ (change.double() @ seen["x"][t].double()))
                    for t in range(len(ids))
                ]
                squares.append(sum(felt) ** 2 / len(ids))
        assert found[name][1] == pytest.approx(sum(squares) / len(squares) / 2, rel=1e-4)


def test_a_model_whose_gradients_do_not_fit_on_the_disk_comes_in_several_passes(
    opened, tokens, tmp_path, monkeypatch
):
    at_once = sensitivities(opened, tokens[:2], changes_of(opened), 0, silent, tmp_path)
    monkeypatch.setattr(fisher, "_WAITING_BYTES", 1)
    assert sensitivities(opened, tokens[:2], changes_of(opened), 0, silent, tmp_path) == at_once


def test_no_change_costs_nothing_and_twice_the_change_four_times(opened, tokens, tmp_path):
    found = sensitivities(opened, tokens[:2], changes_of(opened), 0, silent, tmp_path)
    assert len(found) == 14
    for nothing, once, twice in found.values():
        assert nothing == 0
        assert twice == pytest.approx(4 * once, rel=1e-3)


def test_predicts_the_kl_of_a_small_change(opened, tokens, tmp_path):
    found = sensitivities(opened, tokens, changes_of(opened, 3e-3), 0, silent, tmp_path)
    ratios = []
    with torch.inference_mode():
        dense = opened.model(input_ids=tokens).logits.double().log_softmax(-1)
        for block in (0, 1):
            for name, (_, change, _) in changes_of(opened, 3e-3)(block).items():
                weight = opened.model.get_submodule(name).weight
                weight += change
                ours = opened.model(input_ids=tokens).logits.double().log_softmax(-1)
                weight -= change
                kl = float((dense.exp() * (dense - ours)).sum(-1).mean())
                ratios.append(found[name][1] / kl)
    # Labels are drawn, and what tokens do to each other is left out: each prediction is a noisy one.
    assert all(0.4 < ratio < 2.5 for ratio in ratios)
    assert 0.7 < sorted(ratios)[7] < 1.4


def test_the_same_seed_gives_the_same_numbers_and_leaves_nothing_behind(opened, tokens, tmp_path):
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    first, second = (
        sensitivities(opened, tokens[:2], changes_of(opened), 0, silent, tmp_path) for _ in range(2)
    )
    assert first == second
    assert list(tmp_path.glob("tmp*")) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in opened.model.state_dict().items())
    assert not any(module._forward_hooks for module in opened.model.modules())


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "opt", "gpt_neox", "phi3"])
def test_works_for_every_kind_of_family(model_type, tmp_path, host, tokens):
    opened = load_model(facts(str(make_model(tmp_path / model_type, model_type)), host), host)

    def changes(block):
        found = {}
        for group in opened.family.group_names(block):
            for name in group:
                weight = opened.model.get_submodule(name).weight
                found[name] = [1e-3 * torch.ones_like(weight.T if opened.family.transposed else weight)]
        return found

    found = sensitivities(opened, tokens[:1, :64], changes, 0, silent, tmp_path / "scratch")
    assert all(0 < value < 1 for (value,) in found.values())
