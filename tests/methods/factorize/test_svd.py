import pytest
import torch

from backend.linear import CompressedLinear
from backend.methods.factorize.svd import svd
from backend.parts import LowRank, combined
from tests.layers import random_layer


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_is_the_truncated_svd_at_the_rank_that_the_ratio_pays_for(ratio):
    layer, _ = random_layer(rows=48, inputs=128)
    (part,) = svd(layer, ratio=ratio)
    rank = int(ratio * 48 * 128 / (48 + 128))
    u, s, vt = torch.linalg.svd(layer.weight.double())
    assert part.left.shape == (48, rank)
    assert torch.allclose(part.dense().double(), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-4)
    assert part.bits <= ratio * 48 * 128 * 32


def test_a_linear_of_factors_alone_computes_with_them():
    layer, x = random_layer(rows=48, inputs=128)
    parts = svd(layer, ratio=0.5)
    bias = torch.ones(48)
    module = CompressedLinear(parts, bias, torch.float32)
    assert isinstance(parts[0], LowRank)
    assert module.weight is None
    assert torch.allclose(module(x.float()), x.float() @ combined(parts).T + 1, rtol=1e-3, atol=1e-2)
