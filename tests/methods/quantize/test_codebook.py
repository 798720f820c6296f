import pytest
import torch

from backend.errors import UserError
from backend.methods.quantize.codebook import codebook, levels
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from backend.recipe import parse_recipe
from tests.layers import layer_of

PUBLISHED_NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


def normal_layer(rows=64, inputs=512):
    weight = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))
    return layer_of(weight, torch.eye(inputs, dtype=torch.float64))


def lost(layer, parts):
    return float((layer.weight - combined(parts)).double().square().mean())


def test_nf4_is_the_published_table():
    assert torch.allclose(torch.tensor(levels("nf4")), torch.tensor(PUBLISHED_NF4), atol=1e-6)


@pytest.mark.parametrize("table", ["nf4", "e2m1", "-1, -0.25, 0.5"])
def test_each_weight_gets_the_nearest_level_of_its_group(table):
    layer = normal_layer(8, 128)
    made = combined(codebook(layer, table=table, group_size=32)).view(8, 4, 32)
    tops = layer.weight.view(8, 4, 32).abs().amax(dim=-1).half().float()
    choices = torch.tensor(levels(table)) * tops[..., None, None]
    gaps = (layer.weight.view(8, 4, 32, 1) - choices).abs()
    expected = choices.expand_as(gaps).gather(-1, gaps.argmin(dim=-1, keepdim=True))[..., 0]
    assert torch.allclose(made, expected, atol=1e-6)


def test_errors_on_normal_weights_are_the_known_ones():
    layer = normal_layer(256, 2048)
    found = {
        table: lost(layer, codebook(layer, table=table, group_size=64)) for table in ("nf4", "e2m1", "fp4")
    }
    assert found["nf4"] == pytest.approx(0.00848, rel=0.02)
    assert found["e2m1"] == pytest.approx(0.01117, rel=0.02)
    assert found["fp4"] == pytest.approx(0.0149, rel=0.02)
    assert found["nf4"] < lost(layer, rtn(layer, bits=4, group_size=64, symmetric=True))


def test_quantized_scales_cost_a_quarter_bit_less_and_hardly_any_error():
    layer = normal_layer()
    (plain,), (double,) = (codebook(layer, group_size=64, double=flag) for flag in (False, True))
    assert lost(layer, (double,)) == pytest.approx(lost(layer, (plain,)), rel=0.01)
    assert plain.bits - double.bits == 512 * 8 - 32 - 32 * 2


def test_the_largest_weight_of_a_group_and_zero_stay():
    layer = layer_of(torch.tensor([[0.0, 0.5, -2.0, 1.0] * 8]), torch.eye(32, dtype=torch.float64))
    made = combined(codebook(layer, group_size=32))
    assert made[0, 0] == 0.0
    assert made[0, 2] == -2.0


@pytest.mark.parametrize("table", ["nf5", "1", "0, 0", "1, two", ""])
def test_a_table_that_is_none_is_refused_in_one_sentence(table):
    stage = {"method": "quantize.codebook", "params": {"table": table}}
    with pytest.raises(UserError, match=r"table is .*; allowed: .*nf2, nf3, nf4, e2m1, fp4"):
        parse_recipe({"model": "smollm2-135m-instruct", "stages": [stage]})
