import pytest
import torch

from backend.methods.prune.wanda import wanda
from backend.methods.quantize.llm_fp4 import llm_fp4
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from backend.solvers.floats import float_values
from tests.layers import after, layer_of, output_error, random_layer


def lost(layer, x, **params):
    return output_error(x, layer.weight, combined(llm_fp4(layer, **params)))


def levels_at(exponent_bits, mantissa_bits):
    return float_values(torch.arange(2 ** (1 + exponent_bits + mantissa_bits)), exponent_bits, mantissa_bits)


def brute(weight, scale, exponent_bits, mantissa_bits):
    """The nearest of all written-out values times a scale for each row."""
    choices = levels_at(exponent_bits, mantissa_bits).double() * scale.double()[:, None, None]
    gaps = (weight.double()[..., None] - choices).abs()
    return choices.expand_as(gaps).gather(-1, gaps.argmin(dim=-1, keepdim=True))[..., 0]


@pytest.mark.parametrize("exponent_bits", [1, 2, 3])
def test_without_a_search_the_largest_weight_of_a_group_sets_the_scale(exponent_bits):
    layer, _ = random_layer(rows=6, inputs=64)
    (part,) = llm_fp4(layer, bits=4, group_size=-1, exponent_bits=exponent_bits, search=0)
    top = 2 - 2.0 ** -(3 - exponent_bits)
    scale = (layer.weight.abs().amax(dim=1) / top).half()
    assert torch.equal(part.scales[:, 0], scale)
    assert torch.allclose(part.dense().double(), brute(layer.weight, scale, exponent_bits, 3 - exponent_bits))


@pytest.mark.parametrize("exponent_bits", [1, 2])
def test_a_row_gets_the_best_of_all_scales_tried(exponent_bits):
    layer, x = random_layer(rows=12, inputs=64)
    (part,) = llm_fp4(layer, bits=3, group_size=-1, exponent_bits=exponent_bits, search=24)
    mantissa_bits = 2 - exponent_bits
    start = (layer.weight.abs().amax(dim=1) / (2 - 2.0**-mantissa_bits)).half()
    tried = [start] + [(start.float() * 2**-t).half() for t in torch.linspace(-0.3, 2.0, 24).tolist()]
    errors = []
    for scale in tried:
        left = layer.weight.double() - brute(layer.weight, scale, exponent_bits, mantissa_bits)
        errors.append((x.double() @ left.T).square().sum(dim=0))
    best = torch.stack(errors).amin(dim=0)
    ours = (x.double() @ (layer.weight - part.dense()).double().T).square().sum(dim=0)
    assert torch.allclose(ours, best, rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("size", [16, 64, -1])
def test_the_search_never_loses_more_than_it_started_from(bits, size):
    layer, x = random_layer(rows=48, inputs=128)
    for exponent_bits in range(1, min(bits, 6)):
        params = {"bits": bits, "group_size": size, "exponent_bits": exponent_bits}
        plain = lost(layer, x, search=0, **params)
        once = lost(layer, x, rounds=1, **params)
        assert once <= plain * (1 + 1e-4)
        assert lost(layer, x, rounds=4, **params) <= once * (1 + 1e-4)
        assert once < 0.95 * plain or bits == 6


def test_the_search_takes_the_other_groups_into_account():
    """Two groups whose inputs are one and the same: their errors can cancel, and alone each cannot know."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(300, 16, generator=generator, dtype=torch.float64)
    x = torch.cat([half, half], dim=1)
    layer = layer_of(torch.randn(64, 32, generator=generator), x)
    aware = lost(layer, x, bits=3, group_size=16, search=40)
    error = 0.0
    for place in (slice(0, 16), slice(16, 32)):
        alone = layer_of(layer.weight[:, place].contiguous(), half)
        made = combined(llm_fp4(alone, bits=3, group_size=16, search=40))
        error = error + (layer.weight[:, place] - made).double() @ half.T
    assert aware < 0.9 * float(error.square().sum())


@pytest.mark.parametrize("bits", [3, 4])
def test_the_split_with_the_least_loss_is_kept(bits):
    layer, x = random_layer(rows=48, inputs=128)
    (part,) = llm_fp4(layer, bits=bits)
    each = {split: lost(layer, x, bits=bits, exponent_bits=split) for split in range(1, bits)}
    assert each[part.exponent_bits] == min(each.values())
    assert output_error(x, layer.weight, part.dense()) == min(each.values())


def test_even_weights_take_a_uniform_grid_and_weights_of_many_sizes_take_exponents():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 128, generator=generator, dtype=torch.float64)
    even = torch.rand(32, 128, generator=generator) * 2 - 1
    sizes = torch.randn(32, 128, generator=generator).sign() * 2.0 ** -torch.randint(
        0, 7, (32, 128), generator=generator
    )
    for weight, expected in ((even, 1), (sizes, 3)):
        (part,) = llm_fp4(layer_of(weight, x), bits=4, group_size=-1)
        assert part.exponent_bits == expected
        assert part.width == 4


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("size", [32, -1])
@pytest.mark.parametrize("seed", range(3))
def test_loses_less_than_symmetric_integers_of_the_same_bytes(bits, size, seed):
    layer, x = random_layer(rows=48, inputs=128, seed=seed)
    (ours,), (plain,) = (
        llm_fp4(layer, bits=bits, group_size=size),
        rtn(layer, bits=bits, group_size=size, symmetric=True),
    )
    assert ours.bits == plain.bits
    assert output_error(x, layer.weight, ours.dense()) < 0.9 * output_error(x, layer.weight, plain.dense())


def test_pruned_weights_stay_zero_and_take_no_codes():
    layer, _ = random_layer()
    pruned = after(layer, wanda(layer, pattern="2:4"))
    (part,) = llm_fp4(pruned, bits=3, group_size=32)
    assert torch.equal(part.kept(), pruned.kept)
    assert bool((part.dense()[~pruned.kept] == 0).all())
    assert part.codes.numel() == 48 * 64 * 3 // 8


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_hard_weights_come_out_finite_in_the_bytes_foretold(bits):
    layer, x = random_layer(rows=16, inputs=64, tokens=300)
    x[:, 5] = 0
    weight = layer.weight.bfloat16().float()
    weight[0], weight[1], weight[2, 5], weight[3, :32] = 0.25, 0.0, 1e4, 0.0
    (part,) = llm_fp4(layer_of(weight, x), bits=bits, group_size=32)
    made = part.dense()
    assert bool(torch.isfinite(made).all())
    assert bool((made[1] == 0).all())
    assert bool((made[3, :32] == 0).all())
    # The dead input does not count for the loss, and so the outlier on it may be cut off.
    assert float((made - weight)[4:].norm() / weight[4:].norm()) < 0.75
    assert part.bits == 16 * 64 * bits + 32 * 16
    one = combined(llm_fp4(layer_of(weight[6:7], x), bits=bits, group_size=32))
    assert one.shape == (1, 64)
    assert float((one - weight[6:7]).norm() / weight[6:7].norm()) < 0.75
