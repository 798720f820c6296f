"""What holds for each method of the registry, whoever wrote it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.coded import Codebook, Grid
from backend.floating import Float
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.rtn import rtn
from backend.mixed import Mixed
from backend.packing import unpack
from backend.parts import Dense, Input, LowRank, Outliers, Sparse, combined, rebuild
from backend.planes import Planes
from backend.registry import discover
from backend.views import Layer, Statistics
from tests.layers import after, layer_of, output_error, random_layer

METHODS = discover().methods
LAYER_METHODS = [found for found in METHODS.values() if found.shape == "layer"]
# From mild to hard, for every parameter that has a direction; the first value must lose almost nothing.
LADDERS = {
    "sparsity": [0.01, 0.3, 0.6, 0.9],
    "bits": [8, 5, 3, 2],
    "rank": [48, 24, 8, 0],
}
ids = [found.id for found in LAYER_METHODS]


def base(found, layer: Layer) -> Layer:
    """A layer that the method has something to do on."""
    if found.follows == "prune":
        return after(layer, wanda(layer, sparsity=0.5))
    return after(layer, rtn(layer, bits=2, group_size=32)) if found.kind == "compensate" else layer


def run(found, layer: Layer, **params):
    values = found.params.model_validate({**small(found), **params}).model_dump()
    return tuple(found.fn(layer, **values))


def small(found) -> dict:
    defaults = {"group_size": 32, "rank": 8}
    return {name: value for name, value in defaults.items() if name in found.params.model_fields}


def ladder(found):
    return next(((name, LADDERS[name]) for name in found.params.model_fields if name in LADDERS), None)


@pytest.mark.parametrize("found", METHODS.values(), ids=list(METHODS))
def test_has_a_docstring_a_paper_and_a_test_file(found):
    assert len(found.doc.strip().splitlines()) >= 4
    assert found.paper.startswith(("arXiv:", "https://"))
    assert found.paper.removeprefix("arXiv:") in found.doc.replace("arXiv ", "")
    assert (Path(__file__).parent / "methods" / found.kind / f"test_{found.name}.py").is_file()


@pytest.mark.parametrize("found", METHODS.values(), ids=list(METHODS))
def test_a_claim_says_whose_it_is_and_one_of_ours_what_the_paper_claims(found):
    claim = found.claim
    if claim is None:
        return
    assert claim.whose in ("paper", "ours")
    assert bool(claim.paper_says) == (claim.whose == "ours")
    assert not claim.text.endswith(".")
    if claim.paper_says:
        assert claim.paper_says.endswith(".")
        assert len(claim.paper_says) < 120


@pytest.mark.parametrize("found", METHODS.values(), ids=list(METHODS))
def test_every_parameter_says_what_it_is(found):
    for name, schema in found.params.model_json_schema()["properties"].items():
        assert schema.get("description"), name


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_says_what_a_linear_costs_and_by_which_parameters_as_they_are_by_default(found):
    assert found.cost or found.passes
    if found.cost:
        defaults = found.params().model_dump()
        assert found.cost.by == {name: defaults[name] for name in found.cost.by}


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
@pytest.mark.parametrize(("rows", "inputs"), [(48, 128), (1, 64), (160, 32)])
def test_keeps_shapes_and_leaves_its_input_alone(found, rows, inputs):
    layer = base(found, random_layer(rows=rows, inputs=inputs)[0])
    weight, gram = layer.weight.clone(), layer.statistics.gram.clone()
    before = [tensor.clone() for part in layer.parts for tensor in part.tensors().values()]
    parts = run(found, layer)
    assert combined(parts).shape == (rows, inputs)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.statistics.gram, gram)
    after_ = [tensor for part in layer.parts for tensor in part.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after_, strict=True))


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_the_same_seed_gives_the_same_tensors(found):
    first, second = (run(found, base(found, random_layer()[0])) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_bits_equal_an_independent_count_from_the_format(found):
    layer = base(found, random_layer(rows=48, inputs=128)[0])
    for part in run(found, layer):
        rows, inputs = part.shape
        if isinstance(part, Input):
            assert part.bits == 0
            continue
        if isinstance(part, Sparse):
            expected = rows * inputs + 32 * int(part.kept().sum())
        elif isinstance(part, Grid):
            kept = rows * inputs if part.kept() is None else int(part.kept().sum())
            groups = (inputs if part.transposed else rows) * part.scales.shape[1]
            expected = kept * part.width + groups * 16
            whole = part.zeros is not None and part.zeros.dtype == torch.uint8
            expected += 0 if part.zeros is None else groups * (part.width if whole else 16)
            expected += 0 if part.kept() is None else rows * inputs
        elif isinstance(part, Codebook):
            groups = rows * part.scales.shape[1]
            expected = rows * inputs * part.width + 32 * len(part.table)
            expected += groups * 16 if part.steps is None else groups * 8 + 32 * (1 + -(-groups // 256))
        elif isinstance(part, Float):
            expected = rows * inputs * part.width + 16 * rows * part.scales.shape[1]
        elif isinstance(part, Mixed):
            expected = int(rows * inputs * found.params().bits) + rows * 32 + inputs * 8
        elif isinstance(part, Dense):
            expected = rows * inputs * 32
        elif isinstance(part, Outliers):
            expected = len(part.values) * (32 + 16) + 32 * (rows + 1)
        elif isinstance(part, Planes):
            blocks = -(-rows // part.tall) * -(-inputs // part.wide)
            each = 6 * part.terms if part.terms else 16
            expected = rows * inputs * len(part.planes) + blocks * (len(part.planes) + part.offset) * each
        else:
            assert isinstance(part, LowRank)
            expected = 32 * part.left.shape[1] * (rows + inputs)
        # Each packed tensor is filled up to a whole byte.
        assert expected <= part.bits < expected + 8 * len(part.tensors())


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_what_is_saved_and_opened_decodes_bit_for_bit(found, tmp_path):
    for number, part in enumerate(run(found, base(found, random_layer()[0]))):
        save_file(part.tensors(), tmp_path / f"{number}.safetensors")
        settings = json.loads(json.dumps(part.settings()))
        again = rebuild(part.kind, settings, load_file(tmp_path / f"{number}.safetensors"))
        assert torch.equal(again.dense(), part.dense())
        assert again.bits == part.bits


@pytest.mark.parametrize(
    "found", [f for f in LAYER_METHODS if ladder(f)], ids=[f.id for f in LAYER_METHODS if ladder(f)]
)
def test_mild_settings_lose_almost_nothing_and_harder_ones_never_lose_less(found):
    layer, x = random_layer(rows=48, inputs=128)
    name, values = ladder(found)
    full = output_error(x, layer.weight, torch.zeros_like(layer.weight))
    lost = [
        output_error(x, layer.weight, combined(run(found, base(found, layer), **{name: value}))) / full
        for value in values
    ]
    assert lost[0] < 1e-3
    assert lost == sorted(lost)


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_survives_dead_inputs_constant_rows_and_a_singular_gram(found):
    layer, x = random_layer(rows=16, inputs=64, tokens=12)
    x[:, 5] = 0
    weight = layer.weight.clone()
    weight[3] = 0.25
    weight[4] = 0
    parts = run(found, base(found, layer_of(weight, x)))
    assert bool(torch.isfinite(combined(parts)).all())


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_survives_inputs_that_were_never_active(found):
    layer = layer_of(random_layer(rows=8, inputs=32)[0].weight, torch.zeros(10, 32, dtype=torch.float64))
    assert bool(torch.isfinite(combined(run(found, base(found, layer)))).all())


@pytest.mark.parametrize("found", LAYER_METHODS, ids=ids)
def test_stores_values_in_the_type_of_the_model(found):
    layer, x = random_layer()
    half = layer_of(layer.weight.bfloat16(), x, torch.bfloat16)
    parts = run(found, base(found, half))
    for part in parts:
        values = (
            [part.values] if isinstance(part, Sparse) else [part.left] if isinstance(part, LowRank) else []
        )
        assert all(value.dtype == torch.bfloat16 for value in values)
    assert bool(torch.isfinite(combined(parts)).all())


@pytest.mark.parametrize("pattern", ["free", "2:4"])
@pytest.mark.parametrize(
    "found",
    [f for f in LAYER_METHODS if f.kind in ("quantize", "prune")],
    ids=[f.id for f in LAYER_METHODS if f.kind in ("quantize", "prune")],
)
def test_pruned_weights_stay_exactly_zero_under_a_later_stage(found, pattern):
    layer, _ = random_layer()
    pruned = after(layer, wanda(layer, pattern=pattern))
    now = combined(run(found, pruned))
    assert bool((now[~pruned.kept] == 0).all())


@pytest.mark.parametrize("first", [0.3, 0.7])
@pytest.mark.parametrize(
    "found", [f for f in LAYER_METHODS if f.kind == "prune" and not f.empties], ids=lambda f: f.id
)
def test_pruning_twice_keeps_what_both_kept(found, first):
    layer, _ = random_layer()
    once = after(layer, wanda(layer, sparsity=first))
    twice = after(layer, run(found, once, sparsity=0.5))
    assert not bool((twice.kept & ~once.kept).any())
    assert float(twice.kept.float().mean()) <= 0.51


COMPENSATE = [found for found in LAYER_METHODS if found.kind == "compensate"]


@pytest.mark.parametrize("found", [f for f in COMPENSATE if f.follows], ids=lambda f: f.id)
def test_compensation_that_moves_kept_values_leaves_the_mask_and_the_size_of_the_base(found):
    layer, _ = random_layer()
    start = base(found, layer)
    first = run(found, start)[0]
    assert torch.equal(first.kept(), start.kept)
    assert first.bits == start.parts[0].bits


@pytest.mark.parametrize("found", [f for f in COMPENSATE if not f.follows], ids=lambda f: f.id)
def test_compensation_leaves_the_stored_base_untouched(found):
    layer, _ = random_layer()
    start = base(found, layer)
    parts = run(found, start)
    assert parts[: len(start.parts)] == start.parts


def test_only_what_a_method_asked_for_is_needed():
    for found in LAYER_METHODS:
        layer, x = random_layer()
        allowed = {
            "nothing": Statistics(),
            "norms": dataclasses.replace(layer.statistics, gram=None, sample=None, _cache={}),
            "gram": dataclasses.replace(layer.statistics, sample=None, _cache={}),
            "inputs": layer.statistics,
        }[found.needs]
        start = base(found, layer)
        lean = Layer(start.name, start.weight, start.parts, allowed, start.rng, start.dtype)
        assert combined(run(found, lean)).shape == layer.weight.shape, found.id
        assert x.shape[1] == layer.weight.shape[1]


def test_codes_use_the_whole_grid():
    layer, _ = random_layer()
    (part,) = rtn(layer, bits=3, group_size=64)
    assert set(unpack(part.codes, 3, 48 * 128).tolist()) == set(range(8))


def test_a_folder_of_methods_that_would_not_be_found_is_said(monkeypatch, tmp_path):
    (tmp_path / "prune").mkdir()
    (tmp_path / "prune" / "forgotten.py").write_text('"""A method."""\n')
    monkeypatch.setattr("backend.methods.__path__", [str(tmp_path)])
    with pytest.raises(RuntimeError, match=r"prune has no __init__\.py"):
        discover.__wrapped__()
