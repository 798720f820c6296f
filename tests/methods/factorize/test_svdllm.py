import torch

from backend.methods.factorize.svd import svd
from backend.methods.factorize.svdllm import svdllm
from backend.parts import combined
from tests.layers import layer_of, output_error, random_layer


def test_leaves_exactly_the_singular_values_cut_off_after_whitening():
    for rows, inputs in ((48, 128), (128, 48)):
        layer, x = random_layer(rows, inputs)
        (part,) = svdllm(layer, ratio=0.5)
        rank = part.left.shape[1]
        whitened = layer.weight.double() @ torch.linalg.cholesky(layer.statistics.gram)
        expected = float(torch.linalg.svdvals(whitened)[rank:].square().sum())
        assert abs(output_error(x, layer.weight, part.dense()) / expected - 1) < 1e-4


def test_no_other_output_factor_does_better_on_the_same_inputs():
    layer, x = random_layer(rows=48, inputs=96)
    (part,) = svdllm(layer, ratio=0.4)
    thin = x @ part.right.double().T
    refitted = torch.linalg.lstsq(thin, x @ layer.weight.double().T).solution.T
    ours = output_error(x, layer.weight, part.dense())
    best = output_error(x, layer.weight, refitted @ part.right.double())
    assert abs(ours / best - 1) < 1e-4


def test_keeps_more_of_the_output_than_a_plain_svd_of_the_same_rank():
    layer, x = random_layer()
    ours, plain = (output_error(x, layer.weight, combined(made(layer, ratio=0.5))) for made in (svdllm, svd))
    assert ours < 0.8 * plain


def test_white_inputs_make_it_a_plain_svd():
    layer = layer_of(random_layer(rows=40, inputs=64)[0].weight, torch.eye(64, dtype=torch.float64))
    assert torch.allclose(combined(svdllm(layer, ratio=0.5)), combined(svd(layer, ratio=0.5)), atol=1e-5)
