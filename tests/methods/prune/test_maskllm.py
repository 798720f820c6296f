"""Learned N:M masks: what they start from, what they keep, and that they lose less than their start."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.artifacts import open_artifact, read_parts, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.families import family_of
from backend.pipeline import compress
from backend.solvers.blockwise import split
from backend.solvers.masks import keep_pattern, wanted_shares
from backend.text import calibration, evaluation
from tests.methods.models import asked, logits, made
from tests.tiny import DIFFERENT, make_model

WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
SPARSEGPT = {"method": "prune.sparsegpt", "params": {"pattern": "2:4"}}
OBJECTIVES = ["blocks", "text"]
PAPER = {"objective": "text", "start": "mask", "noise": 1.0, "reward": 1e-5}


class Stopped(Exception):
    pass


def learn(**params):
    return {"method": "prune.maskllm", "params": {"samples": 16, "epochs": 4, **params}}


def run(model, host, tmp_path, *stages):
    return made(model, host, tmp_path, *stages, samples=16)


def masks(artifact):
    return {name: part.kept() for name, (part,) in read_parts(artifact).items()}


def loss(model, ids, host):
    """Mean loss of the next token in nats, from the logits of a folder or an artifact."""
    said = logits(model, host, ids)[:, :-1].log_softmax(dim=-1)
    return -float(said.gather(2, ids[:, 1:, None]).mean())


def lost(objective, model, artifact, host, ids):
    """What the objective is about: mean KL in nats from a random dense model, or the loss on text."""
    if objective == "text":
        return loss(artifact, ids, host)
    dense, now = (logits(one, host, ids).log_softmax(dim=-1) for one in (model, artifact))
    return float((dense.exp() * (dense - now)).sum(dim=-1).mean())


def unseen(model, host, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    return evaluation(f"file:{tmp_path / 'text.txt'}", tokenizer, 64, 16, host).ids


def judging(model, host, tmp_path):
    """The samples of the calibration text that nothing is learned from."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return calibration(f"file:{tmp_path / 'text.txt'}", tokenizer, 16, 64, 0, host).ids[split(16)[1]]


def dense_weights(model, family):
    opened = AutoModelForCausalLM.from_pretrained(model)
    transposed = family_of(family, "m").transposed
    return lambda name: (
        opened.get_submodule(name).weight.T if transposed else opened.get_submodule(name).weight
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_learned_masks_lose_less_than_the_masks_that_they_start_from_at_the_same_bytes(
    host, tmp_path, objective
):
    model = make_model(tmp_path / "model")
    before, _ = run(model, host, tmp_path, WANDA)
    after, _ = run(model, host, tmp_path, WANDA, learn(objective=objective))
    ids = unseen(model, host, tmp_path)
    first, last = (lost(objective, model, artifact, host, ids) for artifact in (before, after))
    assert last < 0.8 * first
    assert tensor_sizes(after) == tensor_sizes(before)


def test_the_setting_of_the_paper_learns_too(host, tmp_path):
    model = make_model(tmp_path / "model")
    before, _ = run(model, host, tmp_path, WANDA)
    after, report = run(model, host, tmp_path, WANDA, learn(**PAPER, learning_rate=0.01))
    ids = unseen(model, host, tmp_path)
    assert loss(after, ids, host) < 0.8 * loss(before, ids, host)
    curve = report.notes["stage 2, prune.maskllm"]["held-out loss, nats a token"]
    assert min(curve) < 0.8 * curve[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", DIFFERENT)
def test_every_family_keeps_two_of_four_dense_weights_and_zeroes_the_others(
    host, tmp_path, family, objective
):
    model = make_model(tmp_path / "model", family)
    artifact, _ = run(model, host, tmp_path, learn(objective=objective, epochs=2))
    dense, small = dense_weights(model, family), open_artifact(artifact, host).model
    parts = read_parts(artifact)
    assert parts
    for name, (part,) in parts.items():
        kept = part.kept()
        assert bool((kept.view(-1, 4).sum(dim=1) == 2).all())
        assert torch.equal(part.dense()[kept], dense(name)[kept])
        assert bool((part.dense()[~kept] == 0).all())
        assert torch.equal(small.get_submodule(name).weight, part.dense())


@pytest.mark.parametrize("start", ["scores", "mask"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_at_rate_zero_the_masks_are_those_of_the_earlier_stage(host, tmp_path, objective, start):
    model = make_model(tmp_path / "model")
    before, _ = run(model, host, tmp_path, SPARSEGPT)
    still = learn(objective=objective, start=start, learning_rate=0.0, epochs=1)
    after, _ = run(model, host, tmp_path, SPARSEGPT, still)
    wanted, dense = masks(before), dense_weights(model, "llama")
    for name, (part,) in read_parts(after).items():
        assert torch.equal(part.kept(), wanted[name])
        # SparseGPT moved the weights; the learned mask goes with the dense ones.
        assert torch.equal(part.dense(), dense(name) * wanted[name])


@pytest.mark.parametrize("prior", ["wanda", "magnitude"])
def test_without_an_earlier_stage_the_start_is_that_of_the_scores(host, tmp_path, prior):
    model = make_model(tmp_path / "model")
    plain = {"method": f"prune.{prior}", "params": {"pattern": "2:4"}}
    # On the inputs of the dense model, as the start is.
    before, _ = made(model, host, tmp_path, plain, samples=16, order="dense")
    after, _ = run(model, host, tmp_path, learn(prior=prior, learning_rate=0.0, epochs=1))
    wanted = masks(before)
    assert all(torch.equal(mask, wanted[name]) for name, mask in masks(after).items())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_learning_spoils_is_not_kept(host, tmp_path, objective):
    model = make_model(tmp_path / "model")
    start, report = run(model, host, tmp_path, WANDA, learn(objective=objective))
    harm = learn(objective=objective, epochs=1, learning_rate=10.0, start="mask")
    after, worse = run(model, host, tmp_path, WANDA, learn(objective=objective), harm)
    told = worse.notes["stage 3, prune.maskllm"]
    ids = judging(model, host, tmp_path)
    if objective == "text":
        curve = told["held-out loss, nats a token"]
        assert max(curve[1:]) > curve[0]
        assert loss(after, ids, host) <= loss(start, ids, host) + 1e-6
    else:
        first, last = told.values()
        assert all(b <= a for a, b in zip(first, last, strict=True))
    assert report.notes["stage 2, prune.maskllm"]


def test_the_curve_tells_the_loss_of_the_masks_chosen_without_noise_on_the_judging_samples(host, tmp_path):
    model = make_model(tmp_path / "model")
    before, _ = run(model, host, tmp_path, WANDA)
    after, report = run(model, host, tmp_path, WANDA, learn(objective="text"))
    ids = judging(model, host, tmp_path)
    told = report.notes["stage 2, prune.maskllm"]
    curve = told["held-out loss, nats a token"]
    assert len(curve) == len(told["after so many steps"]) == 11
    assert curve[0] == pytest.approx(loss(before, ids, host), rel=1e-4)
    assert min(curve) == pytest.approx(loss(after, ids, host), rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(host, tmp_path, objective):
    model = make_model(tmp_path / "model")
    stage = learn(objective=objective, noise=1.0)
    whole, told = run(model, host, tmp_path, WANDA, stage)
    recipe = asked(model, tmp_path, WANDA, stage, samples=16)
    seen = []

    def watch(update):
        if update.stage == "prune.maskllm" and ("step" in update.detail or "epoch" in update.detail):
            seen.append(update.detail)
            if len(seen) == 40:
                raise Stopped

    artifact, scratch = tmp_path / "again.safetensors", tmp_path / "scratch-again"
    full = 56 if objective == "text" else 2 * (56 + 5 * 2)
    with pytest.raises(Stopped):
        compress(recipe, host, artifact, scratch, watch)
    # Of a block that is begun nothing is kept: stop in the second one.
    again = compress(recipe, host, artifact, scratch, watch)
    assert len(seen) < full + 40
    assert again.notes == told.notes
    wanted = masks(whole)
    assert all(torch.equal(mask, wanted[name]) for name, mask in masks(artifact).items())


def test_only_the_linears_of_the_stage_get_masks(host, tmp_path):
    model = make_model(tmp_path / "model")
    for objective in OBJECTIVES:
        artifact, _ = run(model, host, tmp_path, learn(objective=objective, epochs=1) | {"only": "*.1.mlp.*"})
        assert set(read_parts(artifact)) == {
            f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_the_estimate_counts_the_bytes_that_are_stored(host, tmp_path, pattern, dtype):
    model = make_model(tmp_path / "model", dtype=dtype)
    stage = learn(pattern=pattern, epochs=1)
    artifact, _ = run(model, host, tmp_path, stage)
    assert estimate(asked(model, tmp_path, stage, samples=16), host).packed_bytes == sum(
        tensor_sizes(artifact).values()
    )
    keep = int(pattern[0])
    for mask in masks(artifact).values():
        assert bool((mask.view(-1, 4).sum(dim=1) == keep).all())


def test_inputs_that_were_turned_are_seen_as_they_come(host, tmp_path):
    model = make_model(tmp_path / "model")
    turned = {"method": "transform.hadamard"}
    for objective in OBJECTIVES:
        before, _ = run(
            model, host, tmp_path, turned, learn(objective=objective, epochs=1, learning_rate=0.0)
        )
        after, _ = run(model, host, tmp_path, turned, learn(objective=objective))
        ids = unseen(model, host, tmp_path)
        first, last = (lost(objective, model, artifact, host, ids) for artifact in (before, after))
        assert last < 0.9 * first


def test_a_quantizer_after_it_codes_the_kept_weights_alone(host, tmp_path):
    model = make_model(tmp_path / "model")
    rtn = {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}}
    wanted = masks(run(model, host, tmp_path, learn())[0])
    for name, (part,) in read_parts(run(model, host, tmp_path, learn(), rtn)[0]).items():
        assert part.kind == "grid"
        assert torch.equal(part.kept(), wanted[name])


@pytest.mark.parametrize("params", [{"sparsity": 0.5}, {"pattern": "4:8"}])
def test_a_mask_of_another_pattern_is_refused_with_what_is_allowed(host, tmp_path, params):
    model = make_model(tmp_path / "model")
    with pytest.raises(
        UserError, match=r"prune\.maskllm: an earlier stage left other than 2:4 of .* allowed"
    ):
        run(model, host, tmp_path, {"method": "prune.magnitude", "params": params}, learn())


@pytest.mark.parametrize("mask", ["own", "other", "nothing scored"])
def test_shares_sum_to_n_and_want_most_what_the_mask_keeps(mask):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 16, generator=generator)
    kept = keep_pattern(scores if mask == "own" else torch.rand(6, 16, generator=generator), "2:4")
    if mask == "nothing scored":
        scores[:] = 0
        scores[0, 0] = 1e4
    shares = wanted_shares(scores, kept, 4)
    torch.testing.assert_close(shares.view(-1, 4).sum(dim=1), torch.full((24,), 2.0))
    assert bool((shares >= 0).all())
    assert torch.equal(keep_pattern(shares, "2:4"), kept)
    if mask == "own":
        group = scores.view(-1, 4)
        torch.testing.assert_close(shares.view(-1, 4), 2 * group / group.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_masks_of_one_text_are_carried_over_to_another(host, tmp_path, objective):
    model = make_model(tmp_path / "model")
    other = tmp_path / "other.txt"
    other.write_text(" ".join(str(7 * number % 90) + "?!" for number in range(6000)))
    general, special = learn(objective=objective), learn(objective=objective, text=f"file:{other}")
    start, _ = run(model, host, tmp_path, WANDA, general)
    carried, report = run(model, host, tmp_path, WANDA, general, special)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = calibration(f"file:{other}", tokenizer, 16, 64, 0, host).ids
    first, last = (lost(objective, model, artifact, host, ids) for artifact in (start, carried))
    assert last < 0.95 * first
    assert any("other.txt" in words for words in report.calibration)
    same, _ = run(model, host, tmp_path, WANDA, general, learn(objective=objective))
    assert last < lost(objective, model, same, host, ids)
