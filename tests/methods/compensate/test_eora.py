import pytest
import torch

from backend.methods.compensate.eora import eora
from backend.methods.compensate.svd import svd
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.gptq import gptq
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from backend.solvers.lowrank import projected_error, truncated_error
from tests.layers import after, correlated_inputs, layer_of, output_error, random_layer, statistics_of


def bases(layer):
    yield wanda(layer, pattern="2:4")
    yield rtn(layer, bits=3, group_size=32)
    pruned = after(layer, wanda(layer, pattern="2:4"))
    yield gptq(pruned, bits=3, group_size=32)


@pytest.mark.parametrize(("rows", "inputs"), [(48, 128), (128, 64), (96, 96)])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_leaves_the_discarded_singular_values_of_the_output_error(rows, inputs, rank):
    layer, x = random_layer(rows=rows, inputs=inputs)
    for base in bases(layer):
        error = layer.weight.double() - combined(base).double()
        # The optimum from the outputs themselves: no second moment, no projection.
        optimum = float(torch.linalg.svdvals(x @ error.T)[rank:].square().sum())
        left, right = projected_error(error, layer.statistics, rank)
        remaining = float((x @ (error - left @ right).T).square().sum())
        assert remaining == pytest.approx(optimum, rel=1e-6)


@pytest.mark.parametrize("rank", [4, 16, 32])
def test_beats_plain_svd_at_equal_rank(rank):
    layer, x = random_layer()
    for base in bases(layer):
        compensated = after(layer, base)
        ours = output_error(x, layer.weight, combined(eora(compensated, rank=rank)))
        assert ours < output_error(x, layer.weight, combined(svd(compensated, rank=rank)))


@pytest.mark.parametrize(("rows", "inputs"), [(48, 128), (128, 64)])
def test_full_rank_restores_the_weight(rows, inputs):
    layer, _ = random_layer(rows=rows, inputs=inputs)
    base = after(layer, wanda(layer, pattern="2:4"))
    restored = combined(eora(base, rank=4096))
    assert torch.allclose(restored, layer.weight, atol=2e-5)


def test_rank_zero_changes_nothing():
    layer, _ = random_layer()
    base = rtn(layer, bits=3)
    assert torch.equal(combined(eora(after(layer, base), rank=0)), combined(base))


@pytest.mark.parametrize(("rows", "inputs"), [(48, 96), (96, 48)])
def test_is_plain_svd_when_inputs_are_white(rows, inputs):
    error = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    statistics = statistics_of(torch.eye(inputs, dtype=torch.float64).repeat(4, 1))
    ours, plain = projected_error(error, statistics, 8), truncated_error(error, 8)
    assert torch.allclose(ours[0] @ ours[1], plain[0] @ plain[1], atol=1e-9)


def test_both_forms_give_the_same_product_on_a_square_layer():
    x = correlated_inputs(2000, 64)
    error = torch.randn(64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    wide = projected_error(error, statistics_of(x), 8)
    tall = projected_error(torch.cat([error, torch.zeros(1, 64)]), statistics_of(x), 8)
    assert torch.allclose(wide[0] @ wide[1], (tall[0] @ tall[1])[:64], atol=1e-7)


def test_rotating_the_inputs_rotates_the_factors():
    x = correlated_inputs(2000, 64)
    error = torch.randn(96, 64, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    turn = torch.linalg.qr(
        torch.randn(64, 64, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    )[0]
    left, right = projected_error(error, statistics_of(x), 8)
    turned_left, turned_right = projected_error(error @ turn, statistics_of(x @ turn), 8)
    assert torch.allclose(left @ right @ turn, turned_left @ turned_right, atol=1e-7)


@pytest.mark.parametrize(("rows", "inputs"), [(64, 256), (256, 64)])
def test_scarce_text_does_not_blow_up_on_text_it_never_saw(rows, inputs):
    x = correlated_inputs(4096, inputs)
    layer = layer_of(torch.randn(rows, inputs, generator=torch.Generator().manual_seed(8)), x[: inputs // 4])
    base = after(layer, rtn(layer, bits=3, group_size=32))
    before = output_error(x[2048:], layer.weight, base.now)
    assert output_error(x[2048:], layer.weight, combined(eora(base, rank=16))) < before
