import itertools
import math

import pytest
import torch

from backend.errors import UserError
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.gptq import gptq
from backend.methods.quantize.rtn import rtn
from backend.methods.quantize.shiftadd import shiftadd
from backend.parts import combined, rebuild
from backend.planes import Planes
from backend.positions import mask_bytes
from backend.recipe import parse_recipe
from backend.sizes import Matrix
from backend.solvers.planes import Turn, block_order, once_more
from backend.views import Statistics
from tests.layers import after, layer_of, output_error, random_layer
from tests.methods.allocate.planning import run, size


def weights_alone(layer, **params):
    own = {"group_size": 32, "scales": "row", "objective": "weight", **params}
    return shiftadd(layer, **own)


def mean_error(layer, parts):
    return float((layer.weight - combined(parts)).double().square().mean())


def powers(value, terms):
    """The paper's rule for one number: the power nearest in the exponent, then the same for what is left."""
    total = 0.0
    for _ in range(terms):
        rest = value - total
        if abs(rest) < 1e-6 * abs(value) or rest == 0:
            break
        total += math.copysign(2.0 ** round(math.log2(abs(rest))), rest)
    return total


def by_hand(group, bits, terms, rounds):
    """Greedy start, then least squares, powers and nearest levels in turn, with Python loops in float64."""
    rest, scales = group.double().clone(), []
    for _ in range(bits):
        scales.append(float(rest.abs().mean()))
        rest -= torch.where(rest < 0, -1.0, 1.0) * scales[-1]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits)), dtype=torch.float64)
    best = math.inf
    for _ in range(rounds + 1):
        stored = torch.tensor([powers(scale, terms) for scale in scales], dtype=torch.float64)
        levels = signs @ stored
        codes = (group.double()[:, None] - levels).abs().argmin(dim=1)
        best = min(best, float((group.double() - levels[codes]).square().sum()))
        found = torch.linalg.lstsq(signs[codes], group.double()[:, None], driver="gelsd").solution[:, 0]
        scales = sorted(found.abs().tolist(), reverse=True)
    return best


def test_one_plane_is_the_mean_magnitude():
    layer, _ = random_layer(rows=16, inputs=64)
    (part,) = weights_alone(layer, bits=1, terms=6)
    means = layer.weight.view(16, 2, 32).abs().mean(dim=-1)
    expected = means[..., None] * layer.weight.view(16, 2, 32).sign()
    assert torch.allclose(part.dense().view(16, 2, 32), expected, rtol=1e-3)


@pytest.mark.parametrize(("bits", "terms"), [(2, 3), (3, 3), (2, 1)])
def test_groups_end_where_plain_loops_end(bits, terms):
    layer, _ = random_layer(rows=6, inputs=64)
    made = weights_alone(layer, bits=bits, terms=terms, rounds=20)
    ours = (layer.weight - combined(made)).double().square().view(-1, 32).sum(dim=1)
    plain = torch.tensor([by_hand(group, bits, terms, 20) for group in layer.weight.view(-1, 32)])
    # Where a level is left without weights the two may take different, equally good ways.
    assert float(((ours - plain).abs() < 1e-3 * plain).double().mean()) > 0.8
    assert float(ours.sum()) == pytest.approx(float(plain.sum()), rel=0.03)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_every_scale_is_a_sum_of_so_many_powers_of_two(terms):
    layer, _ = random_layer(rows=8, inputs=64)
    (part,) = weights_alone(layer, bits=2, terms=terms)
    for scale in part.coefficients().reshape(-1).tolist():
        assert scale > 0
        rest = scale
        for _ in range(terms):
            # The closest power in the mean of 2/3 and 4/3: the shortest sum there is.
            exponent = math.ceil(math.log2(abs(rest) * 0.75)) if rest else 0
            rest -= math.copysign(2.0**exponent, rest) if rest else 0.0
        assert rest == 0.0


@pytest.mark.parametrize(("terms", "worst"), [(1, 0.4143), (2, 0.11), (3, 0.0275)])
def test_powers_round_a_scale_within_the_known_bounds_and_nearly_reach_them(terms, worst):
    wanted = torch.linspace(1, 2, 4000)
    weight = wanted[:, None].repeat(1, 8) * torch.tensor([1.0, -1.0] * 4)
    layer = layer_of(weight, torch.eye(8, dtype=torch.float64))
    made = combined(weights_alone(layer, bits=1, terms=terms, group_size=-1)).abs()[:, 0]
    off = (made - wanted).abs() / wanted
    assert 0.9 * worst < float(off.max()) <= worst


def test_three_powers_cost_hardly_any_error_and_one_a_lot():
    layer, _ = random_layer(rows=96, inputs=256)
    one, three, six = (mean_error(layer, weights_alone(layer, bits=2, terms=terms)) for terms in (1, 3, 6))
    assert three < 1.005 * six
    assert one > 1.05 * six


@pytest.mark.parametrize("bits", [2, 3])
def test_rounds_lower_the_error_below_greedy_planes_and_uniform_grids(bits):
    layer, _ = random_layer(rows=48, inputs=256)
    lost = [mean_error(layer, weights_alone(layer, bits=bits, rounds=rounds)) for rounds in (0, 1, 3, 10)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 0.9 * lost[0]
    assert lost[-1] < mean_error(layer, rtn(layer, bits=bits, group_size=32))


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("scales", ["column", "block"])
def test_scales_per_column_lose_less_output_than_gptq_with_scales_per_row(bits, scales):
    layer, x = random_layer(rows=96, inputs=192)
    ours = combined(shiftadd(layer, bits=bits, group_size=-1, scales=scales))
    rowwise = combined(gptq(layer, bits=bits, group_size=-1, act_order=True))
    assert output_error(x, layer.weight, ours) < output_error(x, layer.weight, rowwise)


@pytest.mark.parametrize("scales", ["column", "block", "row"])
def test_the_output_objective_has_less_output_error_and_the_weight_objective_less_weight_error(scales):
    layer, x = random_layer(rows=48, inputs=128)
    output, weight = (
        shiftadd(layer, bits=2, group_size=32, scales=scales, objective=which)
        for which in ("output", "weight")
    )
    assert output_error(x, layer.weight, combined(output)) < 0.5 * output_error(
        x, layer.weight, combined(weight)
    )
    assert mean_error(layer, weight) < mean_error(layer, output)


def test_column_scales_come_from_the_column_as_it_is_when_its_turn_comes():
    layer, _ = random_layer(rows=24, inputs=40)
    (part,) = shiftadd(layer, bits=1, group_size=-1, scales="column", terms=6)
    gram = layer.statistics.gram
    order = gram.diagonal().argsort(descending=True)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    now = layer.weight.double()[:, order].clone()
    for j in range(40):
        column = now[:, j].clone()
        made = column.abs().mean() * torch.where(column < 0, -1.0, 1.0)
        assert float(part.coefficients()[order[j], 0]) == pytest.approx(float(column.abs().mean()), rel=2e-2)
        now[:, j:] -= ((column - made) / upper[j, j])[:, None] * upper[j, j:]


def test_blocks_are_visited_by_activity_and_stay_together():
    layer, _ = random_layer(inputs=44)
    order = block_order(layer.statistics, 8)
    assert sorted(order.tolist()) == list(range(44))
    sums = [float(layer.statistics.gram.diagonal()[order[at : at + 8]].sum()) for at in range(0, 40, 8)]
    assert sums == sorted(sums, reverse=True)
    assert all(order[at : at + 8].tolist() == list(range(order[at], order[at] + 8)) for at in range(0, 40, 8))
    assert order[40:].tolist() == [40, 41, 42, 43]


@pytest.mark.parametrize("scales", ["column", "block", "row"])
def test_zeros_constants_and_outliers_are_held(scales):
    layer, x = random_layer(rows=32, inputs=64)
    weight = layer.weight.clone()
    weight[:, 8:16], weight[4], weight[20, 3] = 0.0, 0.25, 1e4
    made = combined(shiftadd(layer_of(weight, x), group_size=32, scales=scales, objective="weight"))
    assert bool(torch.isfinite(made).all())
    assert bool((made[:4, 8:16].abs() < 0.5).all())
    assert float(made[20, 3]) == pytest.approx(1e4, rel=0.1)


@pytest.mark.parametrize("scales", ["column", "block", "row"])
def test_pruned_weights_have_no_bits_and_no_part_in_the_fit(scales):
    layer, _ = random_layer(rows=32, inputs=64)
    pruned = after(layer, wanda(layer, pattern="2:4"))
    (part,) = shiftadd(pruned, bits=2, group_size=32, scales=scales, objective="weight")
    assert bool((part.dense()[~pruned.kept] == 0).all())
    assert part.planes.numel() == 2 * 32 * 64 // 2 // 8
    assert float((part.dense() - pruned.now).square().sum() / pruned.now.square().sum()) < 0.15


@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("group", [32, 40, -1])
@pytest.mark.parametrize(("scales", "shape"), [("column", (50, 64)), ("block", (50, 60)), ("row", (50, 160))])
def test_the_estimate_counts_the_bytes_exactly(scales, shape, group, terms):
    if scales == "row" and group != -1 and shape[1] % group:
        return
    params = {"bits": 2, "group_size": group, "scales": scales, "terms": terms}
    (part,) = shiftadd(random_layer(*shape)[0], **params, rounds=1)
    counted = shiftadd.__dict__["method"]["stored"](
        Matrix(*shape, shape[0] * shape[1], 16), {**params, "incoherent": False}
    )
    assert counted * 8 == part.bits
    shared = {"column": shape[0], "block": shape[0], "row": shape[1]}[scales] if group == -1 else group
    ideal = shape[0] * shape[1] * (2 + 12 * terms / shared)
    assert 0.99 * ideal <= part.bits <= 1.25 * ideal


def spiky_layer(rows=96, inputs=144):
    """Rows and columns of very different size, as outlier channels make them."""
    layer, x = random_layer(rows=rows, inputs=inputs)
    weight = layer.weight * torch.rand(inputs, generator=torch.Generator().manual_seed(4)).mul(4).exp()
    weight[::7] *= 6
    return layer_of(weight, x), x


def test_turning_a_weight_keeps_the_output_error_and_turns_back():
    layer, _ = spiky_layer()
    gram = layer.statistics.gram
    turn = Turn.of(layer.weight, gram, layer.rng)
    turned, after_ = turn.weight(layer.weight).double(), turn.statistics(layer.statistics).gram
    weight = layer.weight.double()
    before = float((weight @ gram * weight).sum())
    assert float((turned @ after_ * turned).sum()) == pytest.approx(before, rel=1e-5)
    assert float(turned.abs().max() / turned.square().mean().sqrt()) < 0.4 * float(
        weight.abs().max() / weight.square().mean().sqrt()
    )
    # A plane for each value of a row holds any weight exactly: what is left is the way there and back.
    values = turned.float()
    levels = torch.stack([values.amin(dim=1), values.amax(dim=1) - values.amin(dim=1)], dim=1)
    plain = Planes.encode(values, levels.flip(1), (1, 144), False, True)
    back = turn.part(plain).dense().double()
    plain_error = plain.dense().double() - turned
    error = back - weight
    assert float((error @ gram * error).sum()) == pytest.approx(
        float((plain_error @ after_ * plain_error).sum()), rel=1e-3
    )


def test_a_turned_weight_with_many_planes_is_the_weight():
    layer, _ = spiky_layer()
    made = combined(shiftadd(layer, bits=8, terms=6, group_size=-1, objective="weight", incoherent=True))
    assert float((made - layer.weight).norm() / layer.weight.norm()) < 0.02


def test_with_outlier_channels_turned_columns_lose_least_and_gptq_most():
    layer, x = spiky_layer()
    turned, column = (
        combined(shiftadd(layer, bits=2, group_size=-1, scales="column", incoherent=flag))
        for flag in (True, False)
    )
    rowwise = combined(gptq(layer, bits=2, group_size=-1))
    lost = [output_error(x, layer.weight, made) for made in (turned, column, rowwise)]
    assert lost == sorted(lost)
    assert lost[0] < 0.5 * lost[1]


def rarely_active(tokens, seed):
    """Inputs of which the first 64 of 256 are active in one of 3,300 tokens, as behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 256, generator=generator, dtype=torch.float64)
    active = torch.rand(tokens, 64, generator=generator, dtype=torch.float64) < 1 / 3300
    x[:, :64] = x[:, :64].abs() * active
    return x


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_inputs_that_calibration_rarely_shows_are_not_blown_up_when_they_come(tokens):
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(1))
    layer, held_out = layer_of(weight, rarely_active(tokens, 2)), rarely_active(20_000, 3)
    never = layer.statistics.squares == 0
    assert int(never.sum()) > 5
    lost, column = (
        (weight - combined(shiftadd(layer, bits=3, scales="column", incoherent=turned))).double()
        for turned in (True, False)
    )
    assert float((held_out @ lost.T).norm()) < float((held_out @ column.T).norm())
    assert float(lost[:, never].norm() / weight[:, never].norm()) < 0.5 * tokens**0.25
    (told,) = layer.curves.values()
    assert told == [float(never.double().mean())]


def test_where_every_input_is_often_active_counting_it_once_more_changes_nearly_nothing():
    layer, _ = spiky_layer()
    gram, more = layer.statistics.gram, once_more(layer.statistics).gram
    strength = (layer.statistics.squares / layer.statistics.absolutes).square().median()
    torch.testing.assert_close(more - gram, strength * torch.eye(len(gram), dtype=gram.dtype))
    quiet = Statistics(9, gram=torch.zeros(4, 4, dtype=torch.float64))
    assert torch.equal(once_more(quiet).gram, torch.eye(4, dtype=torch.float64))
    shiftadd(layer, incoherent=True)
    assert not layer.curves


def test_a_turned_part_is_opened_again_bit_for_bit_and_counted_exactly():
    layer, _ = random_layer(rows=50, inputs=60)
    (part,) = shiftadd(layer, incoherent=True)
    again = rebuild(part.kind, part.settings(), part.tensors())
    assert torch.equal(again.dense(), part.dense())
    params = {"bits": 2, "group_size": -1, "scales": "block", "terms": 3, "incoherent": True}
    counted = shiftadd.__dict__["method"]["stored"](Matrix(50, 60, 3000, 16), params)
    assert counted * 8 == part.bits
    (plain,) = shiftadd(layer)
    assert part.bits - plain.bits == 56 + 64 + 16 * 60


def test_a_pruned_layer_is_not_turned_and_keeps_its_zeros():
    layer, _ = random_layer(rows=32, inputs=64)
    pruned = after(layer, wanda(layer, pattern="2:4"))
    (part,) = shiftadd(pruned, incoherent=True)
    assert torch.equal(part.dense(), combined(shiftadd(pruned)))
    params = {"bits": 2, "group_size": -1, "scales": "block", "terms": 3, "incoherent": True}
    counted = shiftadd.__dict__["method"]["stored"](Matrix(32, 64, 1024, 16), params)
    assert 8 * (counted + mask_bytes(32 * 64, 1024, "2:4")) == part.bits


def test_a_group_too_small_for_a_block_is_refused_in_one_sentence():
    stage = {"method": "quantize.shiftadd", "params": {"group_size": 4}}
    with pytest.raises(UserError, match="group_size is 4; allowed: -1"):
        parse_recipe({"model": "smollm2-135m-instruct", "stages": [stage]})


def test_bits_can_be_allocated_to_it_like_to_any_other(host, tmp_path):
    shift = {"method": "quantize.shiftadd", "params": {"bits": 3}}
    plan = {"method": "allocate.dp", "params": {"bits": 2.5}}
    parts, plain = run(host, tmp_path, plan, shift), run(host, tmp_path, shift, name="b")
    assert size(parts) <= size(plain)
    assert {len(part.planes) for part in parts.values()} >= {2, 3}
