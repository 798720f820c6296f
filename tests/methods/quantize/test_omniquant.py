"""OmniQuant is what AffineQuant is without its matrices, and learned scales beat clipping alone."""

import pytest
import torch

from backend.registry import discover
from tests.methods.models import logits, made
from tests.tiny import make_model


def learned(method, **params):
    return {"method": f"quantize.{method}", "params": {"bits": 3, "group_size": -1, "epochs": 3, **params}}


@pytest.mark.parametrize(("scales", "shape"), [(True, "diagonal"), (False, "clipping")])
def test_it_is_affinequant_without_matrices_to_the_bit(host, tmp_path, scales, shape):
    model = make_model(tmp_path / "model")
    ours, _ = made(model, host, tmp_path, learned("omniquant", scales=scales))
    theirs, _ = made(model, host, tmp_path, learned("affinequant", shape=shape, mask_factor=1.0))
    assert torch.equal(logits(ours, host), logits(theirs, host))


def test_by_default_affinequant_learns_matrices_and_omniquant_scales(host, tmp_path):
    model = make_model(tmp_path / "model")
    ours, matrices = (made(model, host, tmp_path, learned(one))[0] for one in ("omniquant", "affinequant"))
    assert not torch.equal(logits(ours, host), logits(matrices, host))
    diagonal, _ = made(model, host, tmp_path, learned("affinequant", shape="diagonal"))
    assert torch.equal(logits(ours, host), logits(diagonal, host))


def test_the_two_claim_different_papers():
    methods = discover().methods
    omni, affine = methods["quantize.omniquant"], methods["quantize.affinequant"]
    assert (omni.paper, affine.paper) == ("arXiv:2308.13137", "arXiv:2403.12544")
    assert affine.claim.worse[0]["method"] == "quantize.omniquant"
    assert affine.params().shape == "affine"
