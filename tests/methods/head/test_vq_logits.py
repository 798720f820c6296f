"""Tokens share rows of the head; what is shared, counted and computed is what the formula says."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import load_tokenizer, open_artifact, read_parts, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.export import export
from backend.shared import SharedHead, SharedRows
from backend.solvers.clusters import k_means, means
from backend.text import calibration
from tests.methods.models import IDS, apart, asked, logits, made
from tests.tiny import DIFFERENT, make_model


def stage(**params):
    return {"method": "head.vq_logits", "params": {"codes": 64, "epochs": 0, **params}}


def silent(step):
    pass


def numbers(artifact):
    return read_parts(artifact)["lm_head"][0].numbers()


@pytest.mark.parametrize("count", [2, 3, 255, 256, 257, 2048, 5000])
def test_codes_of_any_width_come_back(count):
    rng = torch.Generator().manual_seed(count)
    codes = torch.randint(0, count, (7001,), generator=rng)
    part = SharedRows.of(torch.randn(count, 8, generator=rng), codes, torch.bfloat16)
    assert torch.equal(part.numbers(), codes)
    width = max(1, (count - 1).bit_length())
    assert 7001 * width <= part.bits - count * 8 * 16 < 7001 * width + 16
    assert torch.equal(part.dense(), part.rows.float()[codes])


def test_the_head_computes_what_a_dense_one_of_the_same_rows_does():
    rng = torch.Generator().manual_seed(0)
    part = SharedRows.of(
        torch.randn(40, 16, generator=rng), torch.randint(0, 40, (300,), generator=rng), torch.float32
    )
    x, bias = torch.randn(5, 7, 16, generator=rng), torch.randn(300, generator=rng)
    torch.testing.assert_close(SharedHead(part, bias)(x), x @ part.dense().T + bias, atol=1e-5, rtol=1e-5)


def test_clusters_of_points_that_lie_in_heaps_are_the_heaps():
    rng = torch.Generator().manual_seed(1)
    heaps = torch.arange(200) % 8
    points = 20 * torch.randn(8, 6, generator=rng)[heaps] + 0.1 * torch.randn(200, 6, generator=rng)
    best = min(
        (k_means(points, 8, 30, torch.Generator().manual_seed(seed), silent) for seed in range(20)),
        key=lambda found: float((points - means(points, found, 8)[found]).square().sum()),
    )
    for heap in range(8):
        assert len(best[heaps == heap].unique()) == 1
    assert len(best.unique()) == 8


def test_lloyds_steps_never_lose_more_and_no_cluster_is_empty():
    points = torch.randn(500, 5, generator=torch.Generator().manual_seed(2))
    points[:100] = points[0]
    lost = []
    for steps in range(1, 12):
        found = k_means(points, 60, steps, torch.Generator().manual_seed(3), silent)
        assert len(found.unique()) == 60
        centres = torch.stack([points[found == number].double().mean(dim=0) for number in range(60)])
        torch.testing.assert_close(means(points, found, 60), centres.float())
        lost.append(float((points - centres[found].float()).square().sum()))
    assert lost[-1] < lost[0]
    assert all(later <= before * 1.02 for before, later in pairwise(lost))


@pytest.mark.parametrize("which", ["frequent", "activation", "plain"])
def test_as_many_codes_as_tokens_are_the_head_itself(host, tmp_path, which):
    folder = make_model(tmp_path / "model")
    artifact, _ = made(folder, host, tmp_path, stage(codes=260, tokens=which))
    assert torch.equal(logits(artifact, host), logits(folder, host))


@pytest.mark.parametrize("name", DIFFERENT)
def test_tokens_of_a_code_are_equally_likely_and_bytes_are_those_of_the_estimate(host, tmp_path, name):
    folder = make_model(tmp_path / "model", name)
    recipe = asked(folder, tmp_path, stage())
    artifact, _ = made(folder, host, tmp_path, stage())
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    told, codes = logits(artifact, host)[0], numbers(artifact)
    assert len(codes.unique()) == 64
    for code in range(64):
        same = told[:, codes == code]
        assert torch.equal(same, same[:, :1].expand_as(same))
    embedding = {
        name: tensor for name, tensor in tensor_sizes(artifact).items() if "embed" in name or "wte" in name
    }
    assert embedding


def test_frequent_and_special_tokens_keep_their_own_rows(host, tmp_path):
    folder = make_model(tmp_path / "model")
    artifact, report = made(folder, host, tmp_path, stage(codes=40, singles=0.5))
    codes, tokenizer = numbers(artifact), load_tokenizer(str(folder), host)
    ids = calibration(f"file:{tmp_path / 'text.txt'}", tokenizer, 8, 64, 0, host).ids
    counts = torch.bincount(ids.flatten(), minlength=260)
    alone = torch.bincount(codes)[codes] == 1
    special = tokenizer.all_special_ids
    assert bool(alone[special].all())
    counts[special] = 0
    frequent = counts.argsort(descending=True, stable=True)[: 20 - len(special)]
    assert bool(alone[frequent].all())
    dense = AutoModelForCausalLM.from_pretrained(folder)
    opened = open_artifact(artifact, host).model
    assert torch.allclose(opened.lm_head.weight[frequent], dense.lm_head.weight[frequent], atol=1e-7)
    assert report.notes["stage 1, head.vq_logits"]["tokens that have a row of their own"] >= 20


def test_clusters_by_activation_lose_less_logit_error_than_plain_ones(host, tmp_path):
    """The states of this model lie in few directions, which plain distances know nothing of."""
    folder = make_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.where(torch.arange(32) < 4, 6.0, 0.05))
    model.save_pretrained(folder)
    lost = {}
    for which in ("activation", "plain"):
        artifact, _ = made(folder, host, tmp_path, stage(tokens=which, steps=30))
        lost[which] = float((logits(artifact, host) - logits(folder, host)).square().mean())
    assert lost["activation"] < lost["plain"] / 2


def test_tuning_lowers_the_divergence_at_the_same_bytes(host, tmp_path):
    folder = make_model(tmp_path / "model")
    before, _ = made(folder, host, tmp_path, stage())
    after, report = made(folder, host, tmp_path, stage(epochs=6, learning_rate=0.03))
    assert tensor_sizes(before) == tensor_sizes(after)
    assert torch.equal(numbers(before), numbers(after))
    assert apart(folder, after, host) < apart(folder, before, host)
    losses = report.notes["stage 1, head.vq_logits"]["loss of the codes on samples to judge, nats"]
    assert min(losses) < losses[0]


def test_the_loss_of_tuning_is_the_cross_entropy_of_the_dense_head(host, tmp_path):
    """With codes for all tokens it is, up to rounding, the entropy of the dense model's predictions."""
    folder = make_model(tmp_path / "model")
    _, report = made(folder, host, tmp_path, stage(codes=260, epochs=1, samples=8))
    start = report.notes["stage 1, head.vq_logits"]["loss of the codes on samples to judge, nats"][0]
    ids = calibration(f"file:{tmp_path / 'text.txt'}", load_tokenizer(str(folder), host), 8, 64, 0, host).ids
    told = logits(folder, host, ids[7:8])[0].log_softmax(dim=-1)
    assert start == pytest.approx(float(-(told.exp() * told).sum(dim=1).mean()), abs=2e-4)


def test_it_stacks_generates_and_exports_plain(host, tmp_path):
    folder = make_model(tmp_path / "model")
    artifact, _ = made(
        folder, host, tmp_path, stage(), {"method": "quantize.gptq", "params": {"group_size": 16}}
    )
    opened = open_artifact(artifact, host).model
    told = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    assert opened.generate(IDS[:, :8], **told).shape == (1, 16)
    export(artifact, "transformers", tmp_path / "plain", host)
    assert torch.allclose(logits(tmp_path / "plain", host), logits(artifact, host), atol=1e-4)


def test_too_many_codes_are_refused_in_one_sentence(host, tmp_path):
    with pytest.raises(UserError, match="codes is 70000; allowed: a whole number from 2 to 65536"):
        asked(tmp_path, tmp_path, stage(codes=70000))
