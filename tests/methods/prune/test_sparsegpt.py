import pytest
import torch

from backend.methods.prune.magnitude import magnitude
from backend.methods.prune.sparsegpt import sparsegpt
from backend.methods.prune.wanda import wanda
from backend.parts import combined
from backend.solvers.columns import inverse_root, solve_columns
from backend.views import Statistics
from tests.layers import after, layer_of, output_error, random_layer


def test_removing_one_weight_is_the_optimal_brain_surgeon_step():
    layer, _ = random_layer(rows=6, inputs=64)
    inverse = torch.linalg.inv(layer.statistics.gram)
    expected = layer.weight.double() - layer.weight[:, :1].double() / inverse[0, 0] * inverse[0]
    upper = inverse_root(layer.statistics, 0.0)
    solved, _ = solve_columns(layer.weight, upper, lambda j, column: column * 0 if j == 0 else column)
    assert torch.allclose(solved.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "params", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "4:8"}, {"sparsity": 0.7}]
)
def test_loses_less_than_wanda_and_wanda_less_than_magnitude(params):
    layer, x = random_layer()
    lost = [
        output_error(x, layer.weight, combined(fn(layer, **params))) for fn in (sparsegpt, wanda, magnitude)
    ]
    assert lost[0] < lost[1] < lost[2]


def test_lies_between_least_squares_on_its_mask_and_its_mask_without_update():
    layer, x = random_layer(rows=12)
    (part,) = sparsegpt(layer, sparsity=0.5, damping=0.0)
    kept, gram = part.kept(), layer.statistics.gram
    best = torch.zeros(12, 128, dtype=torch.float64)
    for row in range(12):
        chosen = kept[row].nonzero()[:, 0]
        wanted = gram[chosen] @ layer.weight[row].double()
        best[row, chosen] = torch.linalg.solve(gram[chosen][:, chosen], wanted)
    ours = output_error(x, layer.weight, part.dense())
    assert output_error(x, layer.weight, best) < ours < output_error(x, layer.weight, layer.weight * kept)


def test_kept_weights_do_not_move_when_inputs_are_independent():
    layer = layer_of(random_layer()[0].weight, torch.eye(128, dtype=torch.float64))
    (part,) = sparsegpt(layer, damping=0.0)
    assert torch.equal(part.dense()[part.kept()], layer.weight[part.kept()])


@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_patterns_are_exact_in_every_group(pattern, keep, of):
    layer, _ = random_layer()
    (part,) = sparsegpt(layer, pattern=pattern)
    assert bool((part.kept().view(-1, of).sum(dim=1) == keep).all())


def test_sparsity_is_exact_in_every_block_of_columns():
    layer, _ = random_layer(rows=48, inputs=320)
    (part,) = sparsegpt(layer, sparsity=0.6)
    for start, stop in ((0, 128), (128, 256), (256, 320)):
        dropped = int((~part.kept()[:, start:stop]).sum())
        assert dropped == int(48 * (stop - start) * 0.6)


def test_what_an_earlier_stage_pruned_stays_pruned():
    layer, _ = random_layer()
    first = after(layer, magnitude(layer, sparsity=0.3))
    (part,) = sparsegpt(first, sparsity=0.6)
    assert not bool((part.kept() & ~first.kept).any())
    assert int((~part.kept()).sum()) == int(48 * 128 * 0.6)


def test_a_singular_hessian_is_damped():
    layer, _ = random_layer(tokens=10)
    layer.statistics = Statistics(10, layer.statistics.squares, layer.statistics.gram)
    assert bool(torch.isfinite(combined(sparsegpt(layer, damping=0.0))).all())
