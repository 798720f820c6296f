"""Rounded activations against plain loops, and what the file keeps of them."""

import json
import math

import pytest
import torch

from backend.artifacts import open_artifact, read_parts, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.export import export
from backend.inputs import Rounded
from backend.linear import CompressedLinear
from backend.methods.quantize.activations import activations
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.registry import discover
from backend.solvers.floats import largest, nearest
from tests.layers import layer_of, random_layer, statistics_of
from tests.methods.models import apart, asked, logits, made
from tests.tiny import make_model

ROUND = {"method": "quantize.activations"}
WANDA = ({"method": "prune.wanda", "params": {"sparsity": 0.5}},)
LQER = (*WANDA, {"method": "compensate.lqer", "params": {"rank": 4}})


def rounding(**options) -> Rounded:
    (_, found) = activations(random_layer(8, 16)[0], **options)
    return found


def values() -> torch.Tensor:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    x[1] = 0.0
    x[2, 4] = 1e4
    return x


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_token_is_rounded_to_its_own_centred_steps(bits):
    x = values()
    found = rounding(input_bits=bits)(x)
    most = 2 ** (bits - 1) - 1
    for token, now in zip(x.double().tolist(), found.tolist(), strict=True):
        step = max(abs(value) for value in token) / most
        expected = [round(value / step) * step if step else 0.0 for value in token]
        assert now == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert rounding(input_bits=bits)(found) == pytest.approx(found)


def test_a_range_that_is_not_centred_spends_no_code_on_what_is_not_there():
    x = values()[[0, 1, 3, 4]].abs()
    centred, free = (rounding(input_bits=4, symmetric=on)(x) for on in (True, False))
    assert float((free - x).square().sum()) < 0.5 * float((centred - x).square().sum())
    assert free[1].abs().max() == 0
    assert len(free[0].unique()) <= 16


def test_one_range_for_all_comes_from_the_calibration_text_and_is_stored():
    layer, x = random_layer(8, 16)
    found = activations(layer, per="tensor", input_bits=8)[-1]
    assert float(found.range) == pytest.approx(float(x.abs().max()))
    assert found.bits == 32
    assert rounding(input_bits=8).bits == 0
    beyond = found(torch.full((1, 16), 1e6))
    assert beyond.unique().tolist() == pytest.approx([float(found.range)])


def test_short_floats_keep_small_values_that_whole_steps_lose():
    x = torch.tensor([[1.0, 0.1, 0.03, -0.2] * 4])
    whole = rounding(input_bits=4)(x)
    short = rounding(input_bits=4, number="float", exponent_bits=2)(x)
    assert float((short - x).abs().sum()) < float((whole - x).abs().sum())
    # Two exponent bits and one mantissa bit: 0, 1, 2, 3, 4, 6, 8, 12 of twelve parts.
    levels = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12]) / 12
    assert all(float((levels - value.abs()).abs().min()) < 1e-6 for value in short.unique())


def test_the_product_is_that_of_the_rounded_inputs():
    layer, _ = random_layer(8, 16)
    parts = activations(layer, input_bits=4)
    linear = CompressedLinear(parts, torch.ones(8), torch.float32)
    x = values()
    torch.testing.assert_close(linear(x), parts[-1](x) @ layer.weight.T + 1)


def test_fewer_bits_lose_more_and_a_reopened_artifact_rounds_as_well(host, tmp_path):
    model = make_model(tmp_path / "model")
    lost = []
    for bits in (8, 6, 4, 3):
        artifact, report = made(model, host, tmp_path, ROUND | {"params": {"input_bits": bits}})
        lost.append(apart(model, artifact, host))
        assert {row["error"] for row in report.layers} == {0.0}
    assert lost == sorted(lost)
    assert lost[0] < 0.01 < lost[-1]
    kinds = {type(part).__name__ for part in read_parts(artifact)["model.layers.0.mlp.up_proj"]}
    assert kinds == {"Dense", "Rounded"}
    again = open_artifact(artifact, host, packed=True).model
    assert torch.equal(logits(artifact, host), again(torch.arange(48)[None] * 5 % 97 + 4).logits.double())


def test_a_plain_folder_cannot_hold_them_and_says_so(host, tmp_path):
    artifact, _ = made(make_model(tmp_path / "model"), host, tmp_path, ROUND)
    with pytest.raises(UserError, match="rounds its activations"):
        export(artifact, "transformers", tmp_path / "out", host)


def test_a_fixed_range_behind_a_rotation_is_refused(host, tmp_path):
    stages = ({"method": "transform.hadamard"}, ROUND | {"params": {"per": "tensor"}})
    with pytest.raises(UserError, match="not known behind a rotation; allowed: token"):
        made(make_model(tmp_path / "model"), host, tmp_path, *stages)


def test_channels_are_doubled_until_they_reach_the_range_and_the_weight_halves_as_often():
    layer, x = random_layer(8, 16)
    dense, change = activations(layer, per="channel", number="float", input_bits=4)
    seen = x.abs().amax(dim=0)
    expected = (seen.max() / seen).log2().round().clamp(0, 3)
    assert change.doublings.tolist() == expected.tolist()
    assert change.bits == 32 + 8 * 16
    torch.testing.assert_close(dense.dense(), layer.weight / expected.float().exp2())
    # The paper's identity: rounding the shifted channel is shifting the rounding with a shifted range.
    now = change(x.float())
    for channel in range(16):
        up = 2.0 ** float(expected[channel])
        alone = nearest(x[:, channel].float(), 2, 1, change.range / up / largest(1))
        torch.testing.assert_close(now[:, channel] / up, alone)


def by_channel(x: torch.Tensor, exponent_bits: int, mantissa_bits: int) -> list[list[float]]:
    """The paper's formula value by value: the exponent bias of a channel is that of the loudest one
    and a whole number, 0 to 2**E - 1, more."""
    loudest = [max(abs(value) for value in channel) for channel in x.T.tolist()]
    bias = [2**exponent_bits - math.log2(m) + math.log2(2 - 2.0**-mantissa_bits) - 1 for m in loudest]
    biases = [min(bias) + min(max(round(b - min(bias)), 0), 2**exponent_bits - 1) for b in bias]
    out = []
    for token in x.tolist():
        row = []
        for value, b in zip(token, biases, strict=True):
            most = 2.0 ** (2**exponent_bits - 1 - b) * (2 - 2.0**-mantissa_bits)
            size = min(abs(value), most)
            exponent = max(math.floor(math.log2(size) + b), 1) if size else 1
            step = 2.0 ** (exponent - b - mantissa_bits)
            row.append(math.copysign(round(size / step) * step, value))
        out.append(row)
    return out


@pytest.mark.parametrize("exponent_bits", [1, 2, 3])
def test_by_channel_the_loudest_keeps_its_range_and_values_are_those_of_the_papers_formula(exponent_bits):
    layer, x = random_layer(8, 32, tokens=60)
    options = {"per": "channel", "number": "float", "input_bits": 4, "exponent_bits": exponent_bits}
    change = activations(layer, **options)[-1]
    assert float(change.range) == pytest.approx(float(x.abs().max()))
    ours = change(x.float()) / change.doublings.float().exp2()
    expected = torch.tensor(by_channel(x, exponent_bits, 3 - exponent_bits), dtype=torch.float64)
    # Halfway between two values float32 and float64 may part.
    apart = (ours.double() - expected).abs() > 1e-4 * x.abs().amax(dim=0)
    assert float(apart.double().mean()) < 0.005
    assert 2 ** change.doublings.max() > 1


def test_integers_by_channel_keep_the_range_of_the_loudest_too():
    layer, x = random_layer(8, 32)
    for bits in (4, 8):
        change = activations(layer, per="channel", input_bits=bits)[-1]
        assert float(change.range) == pytest.approx(float(x.abs().max()))
        assert float((x.abs().amax(dim=0) * change.doublings.double().exp2()).max()) < 1.001 * float(
            change.range
        )


def test_shifted_channels_lose_several_times_less_than_one_range():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator)
    x[:, 5] *= 8
    layer = layer_of(torch.randn(48, 64, generator=generator), x)
    wanted = x.float() @ layer.weight.T
    lost = {}
    for per in ("tensor", "channel"):
        parts = activations(layer, per=per, number="float", input_bits=4)
        lost[per] = float((CompressedLinear(parts, None, torch.float32)(x.float()) - wanted).square().sum())
    assert lost["channel"] < lost["tensor"] / 3


def test_what_is_quantized_behind_shifted_channels_is_fitted_to_them(host, tmp_path):
    model = make_model(tmp_path / "model")
    shift = ROUND | {"params": {"per": "channel", "number": "float", "input_bits": 6}}
    gptq = {"method": "quantize.gptq", "params": {"bits": 4, "group_size": 16}}
    artifact, report = made(model, host, tmp_path, shift, gptq)
    plain, _ = made(model, host, tmp_path, shift)
    alone, rows = made(model, host, tmp_path, gptq)
    assert torch.isfinite(logits(artifact, host)).all()
    assert apart(model, artifact, host) < 2 * (apart(model, alone, host) + apart(model, plain, host))
    last = [row["error"] for row in report.layers if row["stage"] == 2]
    assert sum(last) < 2 * sum(row["error"] for row in rows.layers)
    with pytest.raises(UserError, match="allowed: put this stage first"):
        made(model, host, tmp_path, gptq, shift)


def linear_loss(layer, x, **params):
    """Squared error of the outputs on the inputs themselves."""
    made = CompressedLinear(activations(layer, **params), None, torch.float32)(x.float())
    return float((made - x.float() @ layer.weight.T).square().sum())


@pytest.mark.parametrize("per", ["token", "tensor", "channel"])
@pytest.mark.parametrize("number", ["integer", "float"])
def test_a_searched_range_is_the_best_of_those_tried_and_never_worse_than_the_whole(per, number):
    layer, x = random_layer(rows=24, inputs=32, tokens=400)
    fixed = {"per": per, "number": number, "input_bits": 4, "exponent_bits": 2}
    found = activations(layer, search=9, **fixed)[-1]
    ours = linear_loss(layer, x, search=9, **fixed)
    assert ours <= linear_loss(layer, x, **fixed)
    shares = (2.0 ** -torch.linspace(0, 2, 9)).tolist()
    if per == "token":
        tried = [linear_loss(layer, x, clip=share, **fixed) for share in shares]
        assert found.clip == pytest.approx(shares[tried.index(min(tried))])
        assert ours == pytest.approx(min(tried))
    else:
        whole = activations(layer, **fixed)[-1].range
        assert min(abs(float(found.range / whole) - share) for share in shares) < 1e-6


def test_zero_exponent_bits_try_every_split_and_take_the_best():
    layer, x = random_layer(rows=24, inputs=32, tokens=400)
    fixed = {"per": "tensor", "number": "float", "input_bits": 4}
    lost = {split: linear_loss(layer, x, exponent_bits=split, **fixed) for split in (1, 2, 3)}
    found = activations(layer, exponent_bits=0, **fixed)[-1]
    assert found.exponent_bits == min(lost, key=lost.get)
    assert len(set(lost.values())) == 3


def test_a_narrower_range_doubles_the_quiet_channels_less_often():
    layer, x = random_layer(rows=24, inputs=32, tokens=400)
    # Loud channels that nothing hears are worth cutting off.
    layer.weight[:, x.abs().amax(dim=0).argsort()[-12:]] = 0
    fixed = {"per": "channel", "number": "float", "input_bits": 4, "exponent_bits": 3}
    whole, narrow = (activations(layer, **fixed, **more)[-1] for more in ({}, {"search": 5}))
    assert float(narrow.range) < float(whole.range)
    assert (narrow.doublings <= whole.doublings).all()
    assert (narrow.doublings < whole.doublings).any()


def test_only_a_search_asks_for_the_inputs_themselves():
    asks = discover().methods["quantize.activations"].asks
    assert asks({}) == asks({"number": "float"}) == "norms"
    assert asks({"search": 4}) == asks({"number": "float", "exponent_bits": 0}) == "inputs"


@pytest.mark.parametrize("before", [(), ({"method": "transform.hadamard"},)], ids=["plain", "turned"])
def test_a_search_in_a_run_narrows_ranges_linear_by_linear_also_behind_a_rotation(host, tmp_path, before):
    model = make_model(tmp_path / "model")
    search = ROUND | {"params": {"input_bits": 3, "search": 8}}
    artifact, _ = made(model, host, tmp_path, *before, search)
    clips = [
        part.clip for parts in read_parts(artifact).values() for part in parts if isinstance(part, Rounded)
    ]
    assert len(clips) == 14
    assert before or len(set(clips)) > 1
    assert min(clips) < 0.9


@pytest.mark.parametrize(
    "plan",
    [
        {"search": 8},
        {"per": "tensor", "number": "float", "exponent_bits": 0},
        {"per": "channel", "exponent_bits": 0},
    ],
    ids=str,
)
def test_a_plan_may_ask_for_a_search_of_one_linear(host, tmp_path, plan):
    model = make_model(tmp_path / "model")
    name, three = "model.layers.1.self_attn.q_proj", ROUND | {"params": {"input_bits": 3}}
    recipe = parse_recipe({**json.loads(asked(model, tmp_path, three).to_json()), "plan": {name: plan}})
    artifact = tmp_path / "planned.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    plain, _ = made(model, host, tmp_path, three)
    ours, theirs = (read_parts(file)[name][-1] for file in (artifact, plain))
    assert (ours.clip, ours.number, ours.doublings is None) != (theirs.clip, theirs.number, True)


@pytest.mark.parametrize("per", ["token", "tensor", "channel"])
@pytest.mark.parametrize(
    "later", [(), ({"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}},)]
)
def test_the_estimate_counts_ranges_and_shifts_to_the_byte(host, tmp_path, per, later):
    model = make_model(tmp_path / "model")
    stages = (ROUND | {"params": {"per": per}}, *later)
    artifact, _ = made(model, host, tmp_path, *stages)
    packed = sum(tensor_sizes(artifact).values())
    assert estimate(asked(model, tmp_path, *stages), host).packed_bytes == packed


def test_more_ranges_take_more_time_in_the_estimate(host, tmp_path):
    model = make_model(tmp_path / "model")
    few, many = (
        estimate(asked(model, tmp_path, ROUND | {"params": {"search": search}}), host).seconds
        for search in (1, 200)
    )
    assert many > few


def test_integers_by_channel_try_every_reach_of_the_shifts():
    layer, _ = random_layer(rows=24, inputs=32, tokens=400)
    found = activations(layer, per="channel", exponent_bits=0, input_bits=4)[-1]
    assert found.doublings.max() > 0


@pytest.mark.parametrize("later", [WANDA, LQER], ids=["wanda", "lqer"])
def test_methods_that_ask_for_channels_see_the_shifted_ones(host, tmp_path, later):
    model = make_model(tmp_path / "model")
    shift = ROUND | {"params": {"per": "channel", "input_bits": 8}}
    artifact, _ = made(model, host, tmp_path, shift, *later)
    plain, _ = made(model, host, tmp_path, *later)
    # Eight bits change little, and what the shifts do to a channel its weight undoes.
    assert apart(model, artifact, host) == pytest.approx(apart(model, plain, host), rel=0.05)


def test_statistics_behind_shifted_channels_are_those_of_the_shifted_inputs():
    layer, x = random_layer(8, 16)
    change = activations(layer, per="channel", input_bits=8)[-1]
    now = layer.statistics.through((change,))
    wanted = statistics_of(x * change.doublings.double().exp2())
    for name in ("squares", "gram", "sums", "magnitudes", "absolutes", "largest", "sample"):
        torch.testing.assert_close(getattr(now, name), getattr(wanted, name))
