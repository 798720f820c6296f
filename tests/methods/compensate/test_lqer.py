import pytest
import torch

from backend.factors import CodedFactors
from backend.methods.compensate.eora import eora
from backend.methods.compensate.lqer import lqer
from backend.methods.compensate.svd import svd
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from tests.layers import after, layer_of, output_error, random_layer


def quantized(layer):
    return after(layer, rtn(layer, bits=2, group_size=32))


@pytest.mark.parametrize("scale", ["mean_abs", "rms"])
def test_equals_the_truncated_svd_of_the_scaled_error_written_out(scale):
    layer, x = random_layer(rows=40, inputs=64)
    start = quantized(layer)
    left, right = lqer(start, rank=6, scale=scale)[-1].tensors().values()
    sizes = x.abs().mean(dim=0) if scale == "mean_abs" else x.square().mean(dim=0).sqrt()
    error = (layer.weight - combined(start.parts)).double()
    u, s, vt = torch.linalg.svd(error * sizes)
    expected = (u[:, :6] * s[:6]) @ vt[:6] / sizes
    assert torch.allclose(left.double() @ right.double(), expected, atol=1e-4)


def test_lies_between_plain_svd_and_eora_in_output_error():
    layer, x = random_layer(rows=64, inputs=96)
    start = quantized(layer)
    plain, scaled, exact = (
        output_error(x, layer.weight, combined(made))
        for made in (svd(start, rank=16), lqer(start, rank=16, scale="rms"), eora(start, rank=16))
    )
    assert exact <= scaled < plain


def test_nothing_leaves_less_of_the_weights_themselves_than_plain_svd():
    layer, _ = random_layer(rows=64, inputs=96)
    start = quantized(layer)
    plain, scaled, exact = (
        float((layer.weight - combined(made)).square().sum())
        for made in (svd(start, rank=16), lqer(start, rank=16), eora(start, rank=16))
    )
    assert plain < min(scaled, exact)


@pytest.mark.parametrize("bits", [4, 8])
def test_short_factors_are_fitted_in_the_weighted_error(bits):
    layer, x = random_layer(rows=64, inputs=96)
    start = quantized(layer)
    sizes = x.square().mean(dim=0).sqrt()

    def missed(now):
        return float(((layer.weight - now).double() * sizes).square().sum())

    plain = lqer(start, rank=16, scale="rms")
    short = lqer(start, rank=16, scale="rms", factor_bits=bits)
    rounded = CodedFactors.of(*plain[-1].factors(), bits).dense()
    assert missed(combined(plain)) < missed(combined(short)) < missed(start.now + rounded)


def test_equal_channels_make_it_plain_svd():
    layer = layer_of(random_layer(rows=40, inputs=64)[0].weight, torch.eye(64, dtype=torch.float64))
    start = quantized(layer)
    ours, plain = (combined(made) for made in (lqer(start, rank=8), svd(start, rank=8)))
    assert torch.allclose(ours, plain, atol=1e-5)


def test_full_rank_restores_the_weight():
    layer, _ = random_layer(rows=40, inputs=64)
    assert torch.allclose(combined(lqer(quantized(layer), rank=40)), layer.weight, atol=1e-4)
