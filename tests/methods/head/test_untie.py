"""A head of its own is the same head, at the price of its bytes."""

import torch

from backend.artifacts import open_artifact, tensor_sizes
from backend.estimate import estimate
from tests.methods.models import asked, logits, made
from tests.tiny import make_model

UNTIE = {"method": "head.untie"}


def test_nothing_changes_but_the_bytes(host, tmp_path):
    folder = make_model(tmp_path / "model")
    plain, _ = made(folder, host, tmp_path)
    artifact, _ = made(folder, host, tmp_path, UNTIE)
    assert torch.equal(logits(artifact, host), logits(plain, host))
    head = 260 * 32 * 4
    assert sum(tensor_sizes(artifact).values()) == sum(tensor_sizes(plain).values()) + head
    assert estimate(asked(folder, tmp_path, UNTIE), host).packed_bytes == sum(tensor_sizes(artifact).values())


def test_a_stage_can_name_the_head_alone_afterwards(host, tmp_path):
    folder = make_model(tmp_path / "model")
    stages = [UNTIE, {"method": "factorize.svd", "params": {"ratio": 0.5}, "only": "lm_head"}]
    artifact, _ = made(folder, host, tmp_path, *stages)
    opened = open_artifact(artifact, host).model
    assert torch.linalg.matrix_rank(opened.lm_head.weight) == 14
    assert torch.linalg.matrix_rank(opened.model.embed_tokens.weight) == 32
    recipe = asked(folder, tmp_path, *stages)
    assert estimate(recipe, host).packed_bytes == sum(tensor_sizes(artifact).values())


def test_a_head_that_is_not_tied_stays_as_it_is(host, tmp_path):
    folder = make_model(tmp_path / "model", "qwen2")
    plain, _ = made(folder, host, tmp_path)
    artifact, _ = made(folder, host, tmp_path, UNTIE)
    assert tensor_sizes(artifact) == tensor_sizes(plain)
    assert torch.equal(logits(artifact, host), logits(plain, host))
