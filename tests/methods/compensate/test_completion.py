from itertools import pairwise

import pytest
import torch

from backend.errors import UserError
from backend.methods.compensate.completion import completion
from backend.methods.compensate.eora import eora
from backend.methods.compensate.svd import svd
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from backend.recipe import parse_recipe
from backend.solvers.completion import completed
from tests.layers import after, correlated_inputs, layer_of, output_error, random_layer

WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}


def pruned(layer, **params):
    return after(layer, wanda(layer, **(params or {"pattern": "2:4"})))


def missed(matrix, factors, wanted):
    return float((matrix - factors[0] @ factors[1])[wanted].square().sum())


def svd_start(matrix, wanted, rank):
    u, s, vt = torch.linalg.svd(torch.where(wanted, matrix, 0.0), full_matrices=False)
    return u[:, :rank] * s[:rank], vt[:rank]


def low_rank(rows=300, inputs=400, rank=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, inputs, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize(("share", "most"), [(0.15, 1e-3), (0.2, 1e-5), (0.3, 1e-5)])
def test_a_matrix_of_low_rank_is_recovered_from_few_of_its_entries(share, most):
    matrix = low_rank()
    wanted = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(1)) < share
    start = svd_start(matrix / share, wanted, 10)
    assert (start[0] @ start[1] - matrix).norm() > 0.3 * matrix.norm()
    left, right = completed(matrix, wanted, start, 60)
    assert (left @ right - matrix).norm() < most * matrix.norm()


def test_a_step_solves_each_column_by_least_squares_and_no_half_sweep_raises_the_objective():
    matrix = torch.randn(40, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = torch.rand(40, 50, generator=torch.Generator().manual_seed(3)) < 0.5
    start = svd_start(matrix, wanted, 4)
    right = torch.stack(
        [
            torch.linalg.lstsq(start[0][where], column[where][:, None]).solution[:, 0]
            for column, where in zip(matrix.T, wanted.T, strict=True)
        ],
        dim=1,
    )
    left = torch.stack(
        [
            torch.linalg.lstsq(right.T[where], row[where][:, None]).solution[:, 0]
            for row, where in zip(matrix, wanted, strict=True)
        ]
    )
    ours = completed(matrix, wanted, start, 1)
    assert torch.allclose(ours[0] @ ours[1], left @ right, atol=1e-4)
    left_over = [missed(matrix, completed(matrix, wanted, start, sweeps), wanted) for sweeps in range(8)]
    assert all(later < earlier for earlier, later in pairwise(left_over))


def test_with_every_entry_known_it_comes_to_the_truncated_svd():
    matrix = low_rank(40, 50, 8) + 0.1 * low_rank(40, 50, 40, seed=5)
    wanted = torch.ones(40, 50, dtype=torch.bool)
    generator = torch.Generator().manual_seed(4)
    start = (
        torch.randn(40, 6, generator=generator, dtype=torch.float64),
        torch.zeros(6, 50, dtype=torch.float64),
    )
    best = float(torch.linalg.svdvals(matrix)[6:].square().sum())
    assert missed(matrix, completed(matrix, wanted, start, 200), wanted) == pytest.approx(best, rel=1e-6)


def test_columns_with_fewer_places_than_ranks_stay_bounded():
    matrix = low_rank(30, 40, 5)
    wanted = torch.zeros(30, 40, dtype=torch.bool)
    wanted[:3] = True
    wanted[:, 7] = False
    left, right = completed(matrix, wanted, svd_start(matrix, wanted, 8), 20)
    assert float((left @ right).abs().max()) < 10 * float(matrix.abs().max())
    assert missed(matrix, (left, right), wanted) < 1e-6 * float(matrix[wanted].square().sum())


@pytest.mark.parametrize("weighting", ["none", "rms"])
@pytest.mark.parametrize("pattern", ["2:4", "free"])
@pytest.mark.parametrize(("rows", "inputs"), [(96, 64), (48, 128)])
def test_pruned_positions_are_fitted_better_than_by_the_svd_of_the_error(rows, inputs, pattern, weighting):
    layer, x = random_layer(rows=rows, inputs=inputs)
    start = pruned(layer, pattern=pattern)
    sizes = x.square().mean(dim=0).sqrt() if weighting == "rms" else torch.ones(inputs).double()
    error = (layer.weight - start.now).double() * sizes
    for rank in (2, 8, 24):
        ours = combined(completion(start, rank=rank, weighting=weighting))
        best_svd = torch.linalg.svdvals(error)[rank:].square().sum()
        own = ((layer.weight - ours).double() * sizes).square().sum()
        assert float(own) < 0.99 * float(best_svd)


def test_kept_weights_come_out_as_they_were_and_the_mask_stays():
    layer, _ = random_layer()
    start = pruned(layer)
    sparse, low = completion(start, rank=8)
    assert torch.equal(sparse.kept(), start.kept)
    assert torch.allclose(combined((sparse, low))[start.kept], layer.weight[start.kept], atol=1e-6)
    assert sparse.bits == start.parts[0].bits


def test_it_repairs_more_output_than_plain_svd_and_less_than_eora():
    layer, x = random_layer(rows=96, inputs=128)
    start = pruned(layer)
    for rank in (8, 24):
        ours, plain, best = (
            output_error(x, layer.weight, combined(made))
            for made in (completion(start, rank=rank), svd(start, rank=rank), eora(start, rank=rank))
        )
        assert best < ours < plain


@pytest.mark.parametrize("bits", [8, 4])
def test_what_rounding_the_factors_does_at_kept_positions_is_absorbed(bits):
    layer, _ = random_layer()
    start = pruned(layer)
    parts = completion(start, rank=8, factor_bits=bits)
    assert torch.allclose(combined(parts)[start.kept], layer.weight[start.kept], atol=1e-6)
    assert parts[1].bits < completion(start, rank=8)[1].bits


def test_ranks_zero_and_full_are_the_base_and_the_weight():
    layer, _ = random_layer(rows=48, inputs=64)
    start = pruned(layer)
    assert torch.equal(combined(completion(start, rank=0)), start.now)
    assert torch.allclose(combined(completion(start, rank=4096)), layer.weight, atol=1e-4)


def test_hard_layers_come_out_finite():
    x = correlated_inputs(512, 64)
    x[:, 5] = 0
    for weight in (
        torch.full((48, 64), 0.25),
        torch.zeros(8, 64),
        torch.randn(1, 64, generator=torch.Generator().manual_seed(1)),
        torch.randn(48, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(0, 4, 64),
    ):
        layer = layer_of(weight.bfloat16(), x, torch.bfloat16)
        start = pruned(layer)
        now = combined(completion(start, rank=16))
        assert bool(torch.isfinite(now).all())
        assert output_error(x, layer.weight, now) <= 1.01 * output_error(x, layer.weight, start.now)


def test_nothing_pruned_or_values_on_a_grid_are_refused():
    layer, _ = random_layer()
    for start in (layer, after(layer, rtn(layer)), after(pruned(layer), rtn(pruned(layer)))):
        with pytest.raises(UserError, match="right after a prune stage"):
            completion(start)


@pytest.mark.parametrize(
    "chain",
    [
        [],
        [{"method": "quantize.rtn"}],
        [WANDA, {"method": "quantize.rtn"}],
        [WANDA, {"method": "compensate.eora"}],
    ],
)
def test_a_recipe_where_it_does_not_come_right_after_pruning_is_refused(chain):
    ours = {"method": "compensate.completion"}
    with pytest.raises(UserError, match="works on what a prune stage leaves"):
        parse_recipe({"model": "m", "stages": [*chain, ours]})
    assert parse_recipe({"model": "m", "stages": [WANDA, ours, {"method": "compensate.eora"}]})
