import pytest
import torch

from backend.methods.prune.magnitude import magnitude
from backend.methods.prune.wanda import wanda
from backend.parts import combined
from tests.layers import layer_of, output_error, random_layer


def test_scores_are_weight_times_input_norm_within_a_row():
    layer, x = random_layer()
    (part,) = wanda(layer, sparsity=0.25)
    scores = layer.weight.double().abs() * x.norm(dim=0)
    for row in range(8):
        dropped = scores[row].argsort()[:32]
        assert set((~part.kept()[row]).nonzero()[:, 0].tolist()) == set(dropped.tolist())


def test_is_row_wise_magnitude_when_all_inputs_are_alike():
    layer = layer_of(random_layer()[0].weight, torch.eye(128, dtype=torch.float64))
    assert torch.equal(wanda(layer)[0].kept(), magnitude(layer, scope="row")[0].kept())


def test_rescaling_inputs_against_weights_leaves_the_mask():
    layer, x = random_layer()
    scale = torch.linspace(0.1, 10, 128)
    moved = layer_of(layer.weight * scale, x / scale)
    assert torch.equal(wanda(layer)[0].kept(), wanda(moved)[0].kept())
    assert not torch.equal(magnitude(layer)[0].kept(), magnitude(moved)[0].kept())


@pytest.mark.parametrize("params", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "4:8"}])
def test_loses_less_output_than_magnitude(params):
    layer, x = random_layer()
    ours = output_error(x, layer.weight, combined(wanda(layer, **params)))
    assert ours < output_error(x, layer.weight, combined(magnitude(layer, **params)))


def test_kept_weights_are_the_original_ones():
    layer, _ = random_layer()
    (part,) = wanda(layer, sparsity=0.5)
    assert torch.equal(part.dense()[part.kept()], layer.weight[part.kept()])
