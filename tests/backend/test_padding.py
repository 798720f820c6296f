"""Groups that do not divide a row: the last one is shorter, and nothing is stored for what it lacks."""

import json

import pytest
import torch

from backend.artifacts import read_parts, tensor_sizes
from backend.coded import Grid
from backend.errors import UserError
from backend.estimate import estimate
from backend.padding import applied
from backend.parts import Outliers, combined
from backend.registry import discover
from backend.solvers.tunable import decoder, retuned, tunable
from tests.layers import after, output_error, random_layer
from tests.methods.models import asked, logits, made
from tests.tiny import make_model

METHODS = discover().methods
PADS = [found for found in METHODS.values() if found.pads]


def run(found, layer, **params):
    along = {"axis": "inputs"} if "axis" in found.params.model_fields else {}
    values = found.params.model_validate({"group_size": 20, **along, **params}).model_dump()
    return applied(found, layer, values)


def nearest(weight, bits, size):
    """Plain asymmetric rounding in groups of `size`, the last one as long as it is."""
    out, highest = torch.zeros_like(weight), 2**bits - 1
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            group = weight[row, start : start + size]
            low, high = min(0.0, float(group.min())), max(0.0, float(group.max()))
            scale = float(torch.tensor((high - low) / highest).half())
            zero = round(-low / scale)
            codes = ((group / scale).round() + zero).clamp(0, highest)
            out[row, start : start + size] = (codes - zero) * scale
    return out


def test_rounding_is_that_of_groups_of_which_the_last_is_shorter():
    layer, _ = random_layer(rows=12, inputs=50)
    (part,) = run(METHODS["quantize.rtn"], layer, bits=4)
    assert part.scales.shape == (12, 3)
    torch.testing.assert_close(part.dense(), nearest(layer.weight, 4, 20), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("found", PADS, ids=[found.id for found in PADS])
@pytest.mark.parametrize("inputs", [50, 19, 21])
def test_nothing_is_stored_for_what_a_group_lacks(found, inputs):
    layer, x = random_layer(rows=12, inputs=inputs)
    parts = run(found, layer)
    codes = [part for part in parts if not isinstance(part, Outliers)]
    for part in codes:
        groups = 12 * -(-inputs // 20)
        assert part.shape == (12, inputs)
        assert part.mask is None
        assert 8 * part.codes.numel() - 12 * inputs * part.width in range(8)
        assert part.scales.numel() == groups
    lost = output_error(x, layer.weight, combined(parts))
    assert lost < 0.05 * output_error(x, layer.weight, torch.zeros_like(layer.weight))


@pytest.mark.parametrize("found", PADS, ids=[found.id for found in PADS])
def test_where_groups_divide_nothing_is_another(found):
    layer, _ = random_layer(rows=12, inputs=60)
    values = found.params.model_validate({"group_size": 20}).model_dump()
    for mine, plain in zip(applied(found, layer, values), found.fn(layer, **values), strict=True):
        assert all(torch.equal(mine.tensors()[name], tensor) for name, tensor in plain.tensors().items())


@pytest.mark.parametrize("found", PADS, ids=[found.id for found in PADS])
def test_what_was_pruned_stays_pruned(found):
    layer, _ = random_layer(rows=12, inputs=50)
    pruned = after(layer, METHODS["prune.magnitude"].fn(layer, sparsity=0.5, pattern="free", scope="row"))
    parts = run(found, pruned)
    kept = pruned.kept
    assert bool((combined(parts)[~kept] == 0).all())
    codes = next(part for part in parts if not isinstance(part, Outliers))
    assert torch.equal(codes.kept(), kept)


def test_more_columns_do_not_change_what_feedback_does_to_the_others():
    """With rows that one group covers, a longer group is the same grid but for what it lacks."""
    layer, _ = random_layer(rows=12, inputs=50)
    found = METHODS["quantize.gptq"]
    long = found.params.model_validate({"group_size": 64, "bits": 3}).model_dump()
    whole = found.params.model_validate({"group_size": -1, "bits": 3}).model_dump()
    (mine,), (row,) = applied(found, layer, long), found.fn(layer, **whole)
    assert float((mine.dense() != row.dense()).float().mean()) < 0.02


@pytest.mark.parametrize("zero", ["integer", "float"])
def test_short_groups_can_be_tuned_and_their_codes_moved(zero):
    layer, _ = random_layer(rows=12, inputs=50)
    (part,) = run(METHODS["quantize.rtn"], layer, bits=3, zero=zero)
    assert isinstance(part, Grid)
    values = tunable(part, layer.weight)
    torch.testing.assert_close(decoder(part)(values), part.dense(), atol=1e-6, rtol=1e-5)
    values["codes"] = (values["codes"] + 1).clamp(0, 7)
    torch.testing.assert_close(retuned(part, values).dense(), decoder(part)(values), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("found", PADS, ids=[found.id for found in PADS])
def test_bytes_are_those_of_the_estimate_and_the_model_runs(host, tmp_path, found):
    folder = make_model(tmp_path / "model")
    stages = [{"method": found.id, "params": {"group_size": 24}}]
    recipe = asked(folder, tmp_path, *stages)
    artifact, _ = made(folder, host, tmp_path, *json.loads(recipe.to_json())["stages"])
    assert sum(tensor_sizes(artifact).values()) == estimate(recipe, host).packed_bytes
    assert torch.isfinite(logits(artifact, host)).all()
    assert all(pieces[0].shape[1] in (32, 64) for pieces in read_parts(artifact).values())


def test_a_method_whose_groups_must_divide_says_so(host, tmp_path):
    folder = make_model(tmp_path / "model")
    with pytest.raises(UserError, match="group_size is 24, which does not divide the 64 inputs"):
        estimate(asked(folder, tmp_path, {"method": "quantize.hlq", "params": {"group_size": 24}}), host)
