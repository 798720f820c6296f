"""Every layer method on every kind of linear that models have: transposed views, odd sizes, float16."""

import dataclasses

import pytest
import torch

from backend.artifacts import tensor_sizes
from backend.estimate import estimate
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.rtn import rtn
from backend.padding import applied
from backend.parts import combined
from backend.pipeline import compress
from backend.progress import silent
from backend.registry import discover
from tests.layers import after, layer_of, output_error, random_layer
from tests.methods.models import asked, logits
from tests.tiny import make_model

LAYER_METHODS = [found for found in discover().methods.values() if found.shape == "layer"]
ids = [found.id for found in LAYER_METHODS]
SMALL = {"group_size": 32, "rank": 8}


def base(found, layer):
    if found.follows == "prune":
        return after(layer, wanda(layer, sparsity=0.5))
    return after(layer, rtn(layer, bits=3, group_size=-1)) if found.kind == "compensate" else layer


def made(found, layer, **more):
    given = {name: value for name, value in {**SMALL, **more}.items() if name in found.params.model_fields}
    return applied(found, base(found, layer), found.params.model_validate(given).model_dump())


def tensors(parts):
    return [tensor for part in parts for tensor in part.tensors().values()]


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
@pytest.mark.parametrize("pattern", ["free", "2:4"])
def test_a_view_of_a_transposed_weight_gives_what_its_copy_gives(found, pattern):
    plain, x = random_layer()
    view = layer_of(plain.weight, x)
    view.weight = plain.weight.T.contiguous().T
    assert not view.weight.is_contiguous()
    ours, expected = (made(found, layer, pattern=pattern) for layer in (view, plain))
    assert len(tensors(ours)) == len(tensors(expected))
    for mine, other in zip(tensors(ours), tensors(expected), strict=True):
        assert mine.is_contiguous()
        assert torch.equal(mine, other) or torch.allclose(mine.float(), other.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(combined(ours), combined(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
@pytest.mark.parametrize(("rows", "inputs"), [(15, 33), (33, 15), (7, 77)])
def test_odd_numbers_of_outputs_and_inputs_are_taken_by_whole_rows_and_by_groups_that_may_be_cut(
    found, rows, inputs
):
    layer, x = random_layer(rows=rows, inputs=inputs)
    sizes = [-1, 32] if found.pads else [-1]
    for size in sizes:
        now = combined(made(found, layer, group_size=size, rank=3))
        assert now.shape == (rows, inputs)
        assert output_error(x, layer.weight, now) <= output_error(x, layer.weight, 0 * layer.weight) * 1.001


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_float16_weights_are_stored_in_float16_and_lose_what_their_float32_copies_lose(found):
    plain, x = random_layer()
    half = plain.weight.half()
    parts = made(found, layer_of(half, x, torch.float16))
    for part in parts:
        assert all(torch.isfinite(tensor).all() for tensor in part.tensors().values())
        plainly = {"values", "left", "right", "weight"} & {field.name for field in dataclasses.fields(part)}
        for name in plainly:
            value = getattr(part, name)
            assert value.dtype in (torch.float16, torch.uint8), name
    lost, full = (
        output_error(x, half, combined(one)) for one in (parts, made(found, layer_of(half, x, torch.float32)))
    )
    whole = output_error(x, half, 0 * half)
    assert abs(lost - full) < 1e-3 * whole


# Transposed weights and biases; biases and heads of an odd size; odd numbers of inputs in float16.
MODELS = {
    "gpt2": (torch.float32, {}),
    "opt": (torch.float32, {"hidden_size": 28}),
    "qwen2": (torch.float16, {"head_dim": 6, "hidden_size": 27, "intermediate_size": 45}),
}
BEFORE = {"prune": "prune.wanda", "compensate": "quantize.rtn"}


def stage(id_):
    fields = discover().methods[id_].params.model_fields
    given = {"group_size": -1, "rank": 3}
    return {"method": id_, "params": {name: value for name, value in given.items() if name in fields}}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_every_method_goes_through_models_with_transposed_weights_biases_and_odd_heads(
    found, model, host, tmp_path
):
    dtype, changes = MODELS[model]
    folder = make_model(tmp_path / "model", model, dtype, **changes)
    before = found.follows or (found.kind if found.kind == "compensate" else "")
    only = {"only": "*.1.*"} if found.empties else {}
    stages = [*([stage(BEFORE[before])] if before else []), stage(found.id) | only]
    recipe = asked(folder, tmp_path, *stages)
    artifact = tmp_path / "made.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    assert torch.isfinite(logits(artifact, host)).all()
    assert estimate(recipe, host).packed_bytes == sum(tensor_sizes(artifact).values())
