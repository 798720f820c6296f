"""A smaller model is an ordinary one and computes what the whole one does without what was taken out."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.errors import UserError
from backend.facts import facts
from backend.families import FAMILIES, blocks_of
from backend.shrink import drop_blocks, keep_units, narrower, unit_sums, units_of, without_blocks
from tests.methods.models import IDS
from tests.tiny import CONFIGS, make_model

HEADS = [name for name in CONFIGS if FAMILIES[name].free_heads]


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.inference_mode()
def logits(model):
    return model(IDS).logits.double()


@torch.no_grad()
def silenced(model, family, group, units, gone):
    """Zero the columns of the linear that takes the units, so that these count for nothing."""
    for block, numbers in enumerate(gone):
        module = model.get_submodule(family.group_names(block)[group][0])
        weight = module.weight if family.transposed else module.weight.T
        weight.view(units, -1, weight.shape[1])[numbers] = 0


def chosen(units, kept, blocks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = [sorted(torch.randperm(units, generator=generator)[:kept].tolist()) for _ in range(blocks)]
    return keep, [[unit for unit in range(units) if unit not in some] for some in keep]


def same_after_saving(model, folder):
    """Saved and opened by transformers alone it answers the same, with a key-value cache as without."""
    before = logits(model)
    model.save_pretrained(folder)
    again = opened(folder)
    assert torch.allclose(logits(again), before, atol=1e-5)
    told = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    cached = again.generate(IDS[:, :8], use_cache=True, **told)
    assert torch.equal(cached, again.generate(IDS[:, :8], use_cache=False, **told))
    assert torch.equal(cached, model.generate(IDS[:, :8], use_cache=True, **told))
    return again


@pytest.mark.parametrize("name", CONFIGS)
def test_channels_that_are_cut_out_are_channels_that_count_for_nothing(tmp_path, name):
    folder, family = make_model(tmp_path / "model", name), FAMILIES[name]
    model, whole = opened(folder), opened(folder)
    channels = units_of(model, family)[1]
    keep, gone = chosen(channels, channels - 24, len(blocks_of(model, family)))
    silenced(whole, family, 3, channels, gone)
    keep_units(model, family, [], keep)
    assert torch.allclose(logits(model), logits(whole), atol=1e-5)
    assert not torch.allclose(logits(model), logits(opened(folder)), atol=1e-2)
    same_after_saving(model, tmp_path / "smaller")


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_cut_out_are_heads_that_count_for_nothing(tmp_path, name):
    folder, family = make_model(tmp_path / "model", name), FAMILIES[name]
    model, whole = opened(folder), opened(folder)
    heads = units_of(model, family)[0]
    keep, gone = chosen(heads, heads - 1, len(blocks_of(model, family)), seed=1)
    silenced(whole, family, 1, heads, gone)
    keep_units(model, family, keep, [])
    assert not any(module.training for module in model.modules())
    assert torch.allclose(logits(model), logits(whole), atol=1e-5)
    assert not torch.allclose(logits(model), logits(opened(folder)), atol=1e-2)
    same_after_saving(model, tmp_path / "smaller")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dropped_block_is_a_block_that_hands_its_inputs_on(tmp_path, name):
    config = {"gpt2": "n_layer"}.get(name, "num_hidden_layers")
    mixed = "layer_types" in CONFIGS[name]
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 2} if mixed else {}
    folder = make_model(tmp_path / "model", name, **{config: 4}, **layers)
    family, model, whole = FAMILIES[name], opened(folder), opened(folder)
    for number in (1, 2):
        blocks_of(whole, family)[number].forward = lambda states, *given, **named: states
    drop_blocks(model, family, [2, 1])
    assert torch.allclose(logits(model), logits(whole), atol=1e-5)
    again = same_after_saving(model, tmp_path / "smaller")
    assert len(blocks_of(again, family)) == 2


def shapes(layout):
    return {name: (*shape, size) for name, (shape, size) in layout.tensors.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layout_tells_every_tensor_of_the_smaller_model(host, tmp_path, name):
    folder, family = make_model(tmp_path / "model", name), FAMILIES[name]
    layout, model = facts(str(folder), host), opened(folder)
    heads, channels = units_of(model, family)
    blocks = len(blocks_of(model, family))
    keep = chosen(channels, channels - 16, blocks)[0]
    some = chosen(heads, heads - 1, blocks)[0] if heads else []
    keep_units(model, family, some, keep)
    drop_blocks(model, family, [0])
    model.save_pretrained(tmp_path / "smaller")
    told = narrower(layout, heads - 1 if heads else 0, channels - 16)
    told = without_blocks(told, 1, "here")
    saved = facts(str(tmp_path / "smaller"), host)
    assert shapes(told) == shapes(saved)
    assert told.layers == saved.layers
    assert saved.blocks == blocks - 1


@pytest.mark.parametrize("name", HEADS)
def test_what_a_unit_holds_is_summed_over_its_own_rows_and_columns(tmp_path, name):
    folder, family = make_model(tmp_path / "model", name), FAMILIES[name]
    model = opened(folder)
    rows, columns = {}, {}
    for block in range(len(blocks_of(model, family))):
        for linear in (linear for group in family.group_names(block) for linear in group):
            weight = model.get_submodule(linear).weight.detach().double().square()
            rows[linear], columns[linear] = weight.sum(dim=1), weight.sum(dim=0)
    of_heads, of_channels = unit_sums(model, family, rows, columns)
    for sums, which in ((of_heads, 0), (of_channels, 1)):
        for unit in range(len(sums[0])):
            smaller = opened(folder)
            keep = [[number for number in range(len(sums[0])) if number != unit]] * len(sums)
            keep_units(smaller, family, keep if which == 0 else [], keep if which == 1 else [])
            for block, each in enumerate(sums):
                lost = sum(
                    float(model.get_submodule(linear).weight.detach().double().square().sum())
                    - float(smaller.get_submodule(linear).weight.detach().double().square().sum())
                    for group in family.group_names(block)
                    for linear in group
                )
                assert math.isclose(float(each[unit]), lost, rel_tol=1e-6)


def test_one_block_stays(host, tmp_path):
    layout = facts(str(make_model(tmp_path / "model")), host)
    with pytest.raises(UserError, match="blocks is 2; this model has 2"):
        without_blocks(layout, 2, "here")
