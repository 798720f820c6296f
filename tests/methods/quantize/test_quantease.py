from itertools import pairwise

import pytest
import torch

from backend.methods.prune.wanda import wanda
from backend.methods.quantize.gptq import gptq
from backend.methods.quantize.quantease import quantease
from backend.methods.quantize.rtn import rtn
from backend.parts import Outliers, combined
from backend.solvers.descent import sweep_columns
from tests.layers import after, layer_of, output_error, random_layer


def nearest(grid):
    return lambda j, column: grid[(column[:, None] - grid).abs().argmin(dim=1)]


def textbook(weight, start, gram, grid, sweeps):
    """One column after the other, everything computed anew from the definition, in float64."""
    now, wanted, gram = start.double().clone(), weight.double(), gram.double()
    for _ in range(sweeps):
        for j in range(weight.shape[1]):
            others = [k for k in range(weight.shape[1]) if k != j]
            best = wanted[:, j] - (now[:, others] - wanted[:, others]) @ gram[others, j] / gram[j, j]
            now[:, j] = grid[(best[:, None] - grid).abs().argmin(dim=1)]
    return now


def test_descent_is_the_textbook_loop():
    layer, _ = random_layer(rows=6, inputs=20)
    grid = torch.linspace(-3, 3, 9)
    start = nearest(grid)(0, layer.weight.reshape(-1)).view(6, 20)
    ours = start
    for _ in range(3):
        ours = sweep_columns(layer.weight, ours, layer.statistics.gram, nearest(grid))
    plain = textbook(layer.weight, start, layer.statistics.gram, grid.double(), 3)
    assert torch.allclose(ours.double(), plain, atol=1e-6)


def test_no_sweep_raises_the_error_from_a_start_on_the_grid():
    layer, x = random_layer(rows=24, inputs=160)
    grid = torch.linspace(-3, 3, 7)
    start = nearest(grid)(0, layer.weight.reshape(-1)).view(24, 160)
    errors = [output_error(x, layer.weight, start)]
    now = start
    for _ in range(8):
        now = sweep_columns(layer.weight, now, layer.statistics.gram, nearest(grid))
        errors.append(output_error(x, layer.weight, now))
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("bits", [2, 3])
def test_started_from_gptq_it_ends_below_it_and_by_itself_below_rounding(bits):
    layer, x = random_layer(rows=48, inputs=128)
    found = {
        "rtn": rtn(layer, bits=bits, group_size=32),
        "gptq": gptq(layer, bits=bits, group_size=32),
        "after gptq": quantease(layer, bits=bits, group_size=32, start="gptq"),
        "alone": quantease(layer, bits=bits, group_size=32),
    }
    lost = {name: output_error(x, layer.weight, combined(parts)) for name, parts in found.items()}
    assert lost["after gptq"] < lost["gptq"] < lost["rtn"]
    assert lost["alone"] < lost["rtn"]


def test_independent_inputs_make_it_plain_rounding():
    layer = layer_of(random_layer()[0].weight, torch.diag(torch.linspace(0.1, 3, 128, dtype=torch.float64)))
    ours = combined(quantease(layer, bits=3, group_size=32))
    assert torch.allclose(ours, combined(rtn(layer, bits=3, group_size=32)), atol=1e-6)


def test_outliers_lower_the_error_of_rows_without_groups_and_are_as_many_as_asked():
    layer, x = random_layer(rows=32, inputs=128)
    weight = layer.weight.clone()
    weight[::3, 5] *= 8
    layer = layer_of(weight, x)
    plain = quantease(layer, bits=3, group_size=-1, sweeps=10)
    beside = quantease(layer, bits=3, group_size=-1, sweeps=10, outliers=0.01)
    assert output_error(x, weight, combined(beside)) < 0.6 * output_error(x, weight, combined(plain))
    assert isinstance(beside[1], Outliers)
    assert len(beside[1].values) == int(0.01 * 32 * 128)


def test_pruned_weights_stay_zero_with_outliers_too():
    layer, _ = random_layer()
    pruned = after(layer, wanda(layer, sparsity=0.5))
    now = combined(quantease(pruned, bits=3, group_size=32, sweeps=4, outliers=0.02))
    assert bool((now[~pruned.kept] == 0).all())


def test_the_start_is_taken_with_outliers_too():
    layer, _ = random_layer(rows=32, inputs=128)
    one, other = (
        quantease(layer, bits=3, group_size=32, sweeps=1, outliers=0.01, start=start)
        for start in ("weight", "gptq")
    )
    assert not torch.equal(combined(one), combined(other))
