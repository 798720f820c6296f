import pytest
import torch

from backend.methods.prune.magnitude import magnitude
from backend.parts import combined
from tests.layers import after, layer_of, random_layer


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_drops_exactly_the_share_that_was_asked_even_with_equal_weights(sparsity):
    weight = torch.randint(-2, 3, (40, 64), generator=torch.Generator().manual_seed(0)).float() + 0.5
    layer = layer_of(weight, torch.eye(64, dtype=torch.float64))
    (part,) = magnitude(layer, sparsity=sparsity)
    assert int((~part.kept()).sum()) == int(40 * 64 * sparsity)


def test_no_kept_weight_is_smaller_than_a_dropped_one():
    layer, _ = random_layer()
    (part,) = magnitude(layer, sparsity=0.5)
    kept = part.kept()
    assert layer.weight[kept].abs().min() >= layer.weight[~kept].abs().max()
    assert torch.equal(part.dense()[kept], layer.weight[kept])


def test_by_row_each_row_loses_the_same_number():
    layer, _ = random_layer()
    (part,) = magnitude(layer, sparsity=0.4, scope="row")
    assert set((~part.kept()).sum(dim=1).tolist()) == {int(128 * 0.4)}


@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_patterns_keep_the_largest_of_each_run_of_inputs(pattern, keep, of):
    layer, _ = random_layer()
    (part,) = magnitude(layer, pattern=pattern)
    groups = layer.weight.abs().view(-1, of)
    expected = groups >= groups.topk(keep, dim=1).values[:, -1:]
    assert torch.equal(part.kept().view(-1, of), expected)


def test_pruning_twice_at_the_same_level_changes_nothing():
    layer, _ = random_layer()
    once = magnitude(layer, sparsity=0.5)
    assert torch.equal(combined(magnitude(after(layer, once), sparsity=0.5)), combined(once))
