"""Learned clipping, scales and head matrices: the function stays, and more freedom loses less."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.artifacts import open_artifact, read_parts, tensor_sizes
from backend.coded import Grid, stored_scale
from backend.estimate import estimate
from backend.families import FAMILIES
from backend.parts import combined
from backend.solvers import clipping as method
from backend.solvers.clipping import _grid, _reach, _rounded
from backend.solvers.equivalent import Site, changed, fold
from backend.solvers.folding import Feed, feed_of, weight_of
from backend.text import calibration, evaluation
from tests.methods.models import IDS, apart, asked, logits, made
from tests.tiny import DIFFERENT, make_model

RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": -1}}
HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt")


def learned(shape="diagonal", **params):
    settings = {"bits": 3, "group_size": -1, "shape": shape, "epochs": 4, **params}
    return {"method": "quantize.affinequant", "params": settings}


def lost(model, artifact, host, tmp_path):
    """Mean KL in nats from the dense model on text that nothing was fitted on."""
    ids = evaluation(f"file:{tmp_path / 'text.txt'}", AutoTokenizer.from_pretrained(model), 64, 8, host).ids
    dense, now = (logits(one, host, ids).log_softmax(dim=-1) for one in (model, artifact))
    return float((dense.exp() * (dense - now)).sum(dim=-1).mean())


@pytest.fixture
def fits(monkeypatch):
    """The losses of every block that is fitted."""
    seen, fit = [], method.fit

    def watched(*given, **named):
        found = fit(*given, **named)
        seen.append(found)
        return found

    monkeypatch.setattr(method, "fit", watched)
    return seen


def test_the_grid_of_a_learned_range_is_that_of_rounding_when_all_of_the_range_is_kept():
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).double().float()
    wide = torch.full((6, 2), 60.0)
    scale, zero = _grid(weight, wide, wide, 3)
    for row in range(6):
        for group in range(2):
            part = weight[row, group * 16 : group * 16 + 16]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            step = float(stored_scale(torch.tensor((high - low) / 7)))
            assert float(scale[row, group]) == step
            assert float(zero[row, group]) == round(-low / step)
            for column, value in enumerate(part.tolist()):
                code = min(max(round(value / step) + round(-low / step), 0), 7)
                made = float(_rounded(weight, scale, zero, 3)[row, group, column])
                assert made == pytest.approx((code - round(-low / step)) * step, abs=1e-6)


def test_gradients_pass_rounding_as_if_it_were_not_there_and_reach_the_clipping():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    high, low = torch.full((4, 1), 1.0, requires_grad=True), torch.full((4, 1), 1.0, requires_grad=True)
    shifted = weight.clone().requires_grad_()
    scale, zero = _grid(shifted, high, low, 3)
    _rounded(shifted, scale.detach(), zero.detach(), 3).sum().backward()
    inside = ((weight / scale.detach()).round() + zero.detach()).ge(0) & (
        (weight / scale.detach()).round() + zero.detach()
    ).le(7)
    torch.testing.assert_close(shifted.grad, inside.float())
    scale, zero = _grid(weight, high, low, 3)
    (_rounded(weight, scale, zero, 3).view_as(weight) - weight).square().sum().backward()
    assert bool((high.grad.abs() + low.grad.abs() > 0).all())


def test_the_band_grows_from_the_diagonal_to_the_whole_matrix():
    assert [_reach(epoch, 5, 9) for epoch in range(5)] == [1, 3, 5, 7, 9]
    assert _reach(0, 1, 9) == 1
    site = Site(Feed("v", False, 4, 4), ("o",), 4)
    values = {"v:scale": torch.ones(4), "v:beside": torch.ones(1, 4, 4)}
    banded = site.matrices(values, 2, 0.1)[0]
    for i in range(4):
        for j in range(4):
            expected = 1.0 if i == j else 0.1 if abs(i - j) == 1 else 0.0
            assert float(banded[i, j]) == pytest.approx(expected)


@pytest.mark.parametrize("width", [1, 4])
def test_values_and_outputs_undo_each_other_with_shared_heads(width):
    """Two value heads of width 4 that four query heads share, an attention that only copies heads."""
    generator = torch.Generator().manual_seed(2)
    value, out = torch.randn(8, 12, generator=generator), torch.randn(5, 16, generator=generator)
    bias = torch.randn(8, generator=generator)
    scale = torch.rand(8, generator=generator) + 0.5
    site = Site(Feed("v", False, 8, 4), ("o",), width)
    values = {"v:scale": scale, "v:beside": torch.randn(2, 4, 4, generator=generator)}
    now, biases, _ = changed([site], {"v": value, "o": out}, {"v": bias, "o": None}, values, 4, 0.2)
    x = torch.randn(7, 12, generator=generator)
    results = []
    for v, b, o in ((value, bias, out), (now["v"], biases["v"], now["o"])):
        heads = (x @ v.T + b).view(7, 2, 4)
        results.append(heads.repeat_interleave(2, dim=1).reshape(7, 16) @ o.T)
    assert not torch.allclose(now["v"], value)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", DIFFERENT)
@pytest.mark.parametrize("shape", ["diagonal", "affine"])
def test_at_eight_bits_the_folded_model_is_the_dense_one(host, tmp_path, family, shape):
    model = make_model(tmp_path / "model", family)
    fine = learned(shape, bits=8, group_size=16, epochs=2, scale_rate=0.05, samples=4)
    artifact, _ = made(model, host, tmp_path, fine)
    rounded, _ = made(model, host, tmp_path, RTN | {"params": {"bits": 8, "group_size": 16}})
    before, after, plain = (logits(one, host) for one in (model, artifact, rounded))
    # Folding in the wrong place would be far off; what is left is the rounding to 8 bits.
    assert float((before - after).norm()) < 3 * float((before - plain).norm())


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("width", [1, 8])
def test_folding_alone_leaves_every_logit_where_it_was(tmp_path, family, width):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model", family)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        before = model(IDS).logits
        for block in range(2):
            for number, names in enumerate(FAMILIES[family].group_names(block)[:3]):
                feed = feed_of(model, FAMILIES[family], block, number)
                if feed is None:
                    continue
                here = width if number == 1 else 1
                matrix = torch.eye(here) + 0.2 * torch.rand(
                    feed.rows // here, here, here, generator=generator
                )
                moved = names if feed.norm else [feed.name, *names]
                weights = {name: weight_of(model, FAMILIES[family], name) for name in moved}
                written = fold(model, FAMILIES[family], Site(feed, tuple(names), here), matrix, weights)
                assert {name.rsplit(".", 1)[0] for name in written} == {feed.name, *names}
                for name, weight in weights.items():
                    torch.testing.assert_close(weight, weight_of(model, FAMILIES[family], name))
        after = model(IDS).logits
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())


def test_more_freedom_loses_less_than_less_and_all_lose_less_than_rounding(host, tmp_path):
    model = make_model(tmp_path / "model")
    kls = {"rtn": lost(model, made(model, host, tmp_path, RTN, samples=16)[0], host, tmp_path)}
    for shape in ("clipping", "diagonal", "affine"):
        artifact, _ = made(model, host, tmp_path, learned(shape, epochs=8), samples=16)
        kls[shape] = lost(model, artifact, host, tmp_path)
    assert kls["affine"] < kls["diagonal"] < kls["clipping"] < kls["rtn"]


def test_no_block_is_worse_than_at_its_start_and_matrices_begin_as_scales(host, tmp_path, fits):
    model = make_model(tmp_path / "model")
    for shape in ("clipping", "diagonal", "affine"):
        made(model, host, tmp_path, learned(shape))
    assert all(found.losses[found.best] == min(found.losses) <= found.losses[0] for found in fits)
    # In the first epoch a matrix is a diagonal one.
    for place in (0, 1):
        assert fits[4].losses[place] == pytest.approx(fits[2].losses[place], rel=1e-5)
    assert fits[4].losses[2] != pytest.approx(fits[2].losses[2], rel=1e-5)


def test_one_epoch_of_matrices_is_one_of_scales(host, tmp_path):
    model = make_model(tmp_path / "model")
    first, second = (
        read_parts(made(model, host, tmp_path, learned(shape, epochs=1))[0])
        for shape in ("diagonal", "affine")
    )
    for name, parts in first.items():
        torch.testing.assert_close(combined(parts), combined(second[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("input_bits", [0, 4], ids=["weights", "weights and activations"])
def test_what_is_stored_makes_the_loss_that_was_judged(host, tmp_path, fits, input_bits):
    model = make_model(tmp_path / "model")
    rounded = {"method": "quantize.activations", "params": {"input_bits": input_bits}}
    stages = (*([rounded] if input_bits else []), learned("affine", samples=4))
    artifact, report = made(model, host, tmp_path, *stages, samples=4)
    dense, small = AutoModelForCausalLM.from_pretrained(model).eval(), open_artifact(artifact, host).model
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = calibration(f"file:{tmp_path / 'text.txt'}", tokenizer, 4, 64, 0, host).ids
    states = []
    for one in (dense, small):
        seen = []
        for block in one.model.layers:
            block.register_forward_hook(
                lambda module, given, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
            )
        with torch.no_grad():
            one(ids)
        states.append(seen)
    for number, found in enumerate(fits):
        wanted, now = states[0][number], states[1][number]
        errors = [
            float((now[k] - wanted[k]).square().sum() / wanted[k].square().sum()) for k in range(len(ids))
        ]
        assert sum(errors) / len(ids) == pytest.approx(found.losses[found.best], rel=1e-3)
    assert {row["method"] for row in report.layers} == {stage["method"] for stage in stages}


def test_what_was_pruned_stays_zero_and_bytes_are_as_estimated(host, tmp_path):
    model = make_model(tmp_path / "model")
    stages = ({"method": "prune.magnitude", "params": {"sparsity": 0.5}}, learned("affine"))
    artifact, _ = made(model, host, tmp_path, *stages)
    for (part,) in read_parts(artifact).values():
        assert isinstance(part, Grid)
        assert float(part.kept().float().mean()) == pytest.approx(0.5, abs=0.02)
        assert bool((part.dense()[~part.kept()] == 0).all())
    packed = sum(tensor_sizes(artifact).values())
    assert estimate(asked(model, tmp_path, *stages), host).packed_bytes == packed


def test_outliers_dead_channels_and_sixteen_bits_do_no_harm(host, tmp_path):
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[5] = 0.0
        model.model.layers[0].mlp.up_proj.weight[:, 7] = 0.0
        model.model.layers[1].self_attn.q_proj.weight[3, 4] = 1e4
        model.model.layers[1].self_attn.o_proj.weight[2] = 0.25
    model.save_pretrained(folder)
    artifact, _ = made(folder, host, tmp_path, learned("affine", group_size=16))
    assert bool(torch.isfinite(logits(artifact, host)).all())


def test_a_later_stage_compensates_the_weight_that_the_changed_model_has(host, tmp_path):
    model = make_model(tmp_path / "model")
    eora = {"method": "compensate.eora", "params": {"rank": 16}}
    bare, _ = made(model, host, tmp_path, learned("affine"))
    helped, _ = made(model, host, tmp_path, learned("affine"), eora)
    assert lost(model, helped, host, tmp_path) < 0.5 * lost(model, bare, host, tmp_path)


def test_scales_learned_with_rounded_activations_lose_less_than_those_learned_without(host, tmp_path):
    """Of the paper's two settings the second, weights and activations of few bits."""
    model = make_model(tmp_path / "model")
    rounded = {"method": "quantize.activations", "params": {"input_bits": 3}}
    with_them, without = (
        lost(model, made(model, host, tmp_path, *stages, samples=16)[0], host, tmp_path)
        for stages in ((rounded, learned(epochs=8)), (learned(epochs=8), rounded))
    )
    assert with_them < without


def test_heads_behind_shifted_channels_are_not_mixed_so_that_the_function_stays(host, tmp_path):
    model = make_model(tmp_path / "model")
    shift = {"method": "quantize.activations", "params": {"per": "channel", "input_bits": 8}}
    scales, matrices = (
        made(model, host, tmp_path, shift, learned(shape, bits=8, samples=4, epochs=2), samples=4)[0]
        for shape in ("diagonal", "affine")
    )
    assert torch.equal(logits(scales, host), logits(matrices, host))
    assert apart(model, matrices, host) < 0.1
