import pytest
import torch

from backend.factors import CodedFactors
from backend.methods.compensate.eora import eora
from backend.methods.compensate.lqer import lqer
from backend.methods.compensate.svd import svd
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.gptq import gptq
from backend.methods.quantize.rtn import rtn
from backend.parts import Dense, combined
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


@pytest.mark.parametrize(("rows", "inputs"), [(48, 96), (96, 48)])
def test_is_the_svd_scaled_by_channel_when_inputs_are_uncorrelated(rows, inputs):
    x = torch.diag(torch.logspace(0, -3, inputs, dtype=torch.float64)).repeat(4, 1)
    layer = layer_of(torch.randn(rows, inputs, generator=torch.Generator().manual_seed(5)), x)
    base = after(layer, wanda(layer, pattern="2:4"))
    ours, scaled = combined(eora(base, rank=8)), combined(lqer(base, rank=8, scale="rms"))
    assert torch.allclose(ours, scaled, atol=1e-4)


@pytest.mark.parametrize(("rows", "inputs"), [(48, 96), (96, 48)])
def test_a_cholesky_factor_of_the_moments_gives_the_same_product(rows, inputs):
    x = correlated_inputs(2000, inputs)
    error = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    root = torch.linalg.cholesky(x.T @ x)
    u, s, vt = torch.linalg.svd(error @ root, full_matrices=False)
    expected = torch.linalg.solve(root.T, ((u[:, :8] * s[:8]) @ vt[:8]).T).T
    left, right = projected_error(error, statistics_of(x), 8)
    assert torch.allclose(left @ right, expected, atol=1e-6)


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


@pytest.mark.parametrize(("rows", "inputs"), [(48, 128), (128, 64)])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_left_factor_is_fitted_to_the_right_one_as_stored(rows, inputs, bits):
    layer, x = random_layer(rows=rows, inputs=inputs)
    base = after(layer, wanda(layer, pattern="2:4"))
    error = (layer.weight - base.now).double()
    part = eora(base, rank=8, factor_bits=bits)[-1]
    right = part.factors()[1].double()
    # Least squares on the inputs themselves: X Eᵀ = (X Aᵀ) Bᵀ.
    best = torch.linalg.lstsq(x @ right.T, x @ error.T).solution.T
    again = CodedFactors.of(best, right, bits).factors()[0]
    left = float((x @ (error - part.dense().double()).T).square().sum())
    wanted = float((x @ (error - again.double() @ right).T).square().sum())
    assert left == pytest.approx(wanted, rel=1e-3)
    plain = CodedFactors.of(*projected_error(error, layer.statistics, 8), bits).dense().double()
    assert left < float((x @ (error - plain).T).square().sum())


def test_short_factors_buy_more_rank_that_repairs_more_at_no_more_bytes():
    layer, x = random_layer(rows=128, inputs=192)
    base = after(layer, wanda(layer, pattern="2:4"))
    error, size = {}, {}
    for bits, rank in ((16, 8), (8, 15), (4, 29)):
        parts = eora(base, rank=rank, factor_bits=bits)
        error[bits] = output_error(x, layer.weight, combined(parts))
        size[bits] = parts[-1].bits * (1 if bits < 16 else 0.5)
    # The plain factors are float32 here and would be half as long in a model of 16 bits.
    assert size[4] <= size[16] >= size[8]
    assert error[4] < error[8] < error[16]


@pytest.mark.parametrize(("rows", "inputs"), [(48, 128), (128, 64)])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_the_rank_is_the_least_that_repairs_the_share_of_energy(rows, inputs, share):
    layer, x = random_layer(rows=rows, inputs=inputs)
    base = after(layer, wanda(layer, pattern="2:4"))
    values = torch.linalg.svdvals(x @ (layer.weight - base.now).double().T).square()
    repaired = values.cumsum(0) / values.sum()
    wanted = next(rank for rank, part in enumerate(repaired.tolist(), start=1) if part >= share)
    assert eora(base, rank=4096, energy=share)[-1].rank == wanted
    assert eora(base, rank=wanted - 1, energy=share)[-1].rank == wanted - 1


def test_nothing_to_repair_takes_no_rank():
    layer, _ = random_layer()
    whole = after(layer, (Dense((48, 128), layer.weight),))
    assert eora(whole, rank=8, energy=0.5)[-1].rank == 0
    assert eora(whole, rank=8)[-1].rank == 8


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_hard_layers_come_out_finite_and_no_worse_than_before(bits):
    x = correlated_inputs(512, 64)
    x[:, 5] = 0
    for weight in (
        torch.full((48, 64), 0.25),
        torch.randn(1, 64, generator=torch.Generator().manual_seed(1)),
        torch.randn(48, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(0, 4, 64),
    ):
        layer = layer_of(weight.bfloat16(), x, torch.bfloat16)
        base = after(layer, wanda(layer, pattern="2:4"))
        made = eora(base, rank=16, factor_bits=bits)
        assert made[: len(base.parts)] == base.parts
        error = output_error(x, layer.weight, combined(made))
        assert error <= output_error(x, layer.weight, base.now)


@pytest.mark.parametrize(("rows", "inputs"), [(48, 128), (128, 64)])
def test_what_is_left_at_each_rank_is_told_as_the_outputs_themselves_show_it(rows, inputs):
    layer, x = random_layer(rows=rows, inputs=inputs)
    base = after(layer, wanda(layer, pattern="2:4"))
    eora(base, rank=32)
    (curve,) = base.curves.values()
    energy = torch.linalg.svdvals(x @ (layer.weight.double() - base.now.double()).T).square()
    expected = [float(energy[rank:].sum() / energy.sum()) for rank in range(33)]
    assert curve == pytest.approx(expected, rel=1e-6)
    whole = after(layer, (Dense((rows, inputs), layer.weight),))
    eora(whole, rank=8)
    assert whole.curves == {}
