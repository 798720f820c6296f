"""Claims on the embedded model in a reduced form: two blocks, little text, divergence from the dense model.

`python app.py claims` is the whole. Of what is not here two blocks tell too little, or it takes minutes.
"""

import dataclasses
import shutil

import pytest
import torch

from backend.artifacts import load_model
from backend.assets import EMBEDDED_MODEL, fetch
from backend.claims import Outcome, series_name, verdict
from backend.evaluate import Subject, evaluate
from backend.facts import facts
from backend.host import Host
from backend.methods.prune.dsnot import dsnot
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.gptq import gptq
from backend.methods.quantize.hqq import hqq
from backend.methods.quantize.quantease import quantease
from backend.methods.quantize.rtn import rtn
from backend.parts import combined
from backend.pipeline import Walk, compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.registry import discover
from backend.report import Report

pytestmark = pytest.mark.slow

METRIC = "divergence.kl"
CONDITIONS = {
    "model": EMBEDDED_MODEL,
    # In the dense order all runs share the statistics.
    "calibration": {"text": "wikipedia-en", "samples": 16, "length": 512, "order": "dense"},
    "evaluation": {"text": "wikipedia-en", "windows": 4, "length": 512, "metrics": ["divergence"]},
}
_EARLY, _MIDDLE = "model.layers.[23].*", "model.layers.1[45].*"
# The linears that are compressed; None where all or a claim's own are.
PLACES = {
    "compensate.eora": _EARLY,
    "factorize.svdllm": _EARLY,
    "prune.dsnot": _MIDDLE,
    "prune.wanda": _EARLY,
    "quantize.affinequant": None,
    "quantize.omniquant": None,
    "quantize.activations": _EARLY,
    "quantize.adadim": _EARLY,
    "quantize.awq": _EARLY,
    "quantize.baq": _MIDDLE,
    "quantize.codebook": _EARLY,
    "quantize.fdb": None,
    "quantize.hlq": _EARLY,
    "quantize.hqq": _EARLY,
    "quantize.llm_fp4": _EARLY,
    "quantize.shiftadd": _MIDDLE,
    "transform.hadamard": _EARLY,
    "transform.smoothquant": _EARLY,
}


_FLOATS = {"number": "float", "per": "channel", "exponent_bits": 0, "search": 12}
# What two blocks can show in place of a claim whose baseline is another kind of model, or needs all blocks.
OTHERS: dict[str, tuple[list[dict], list[dict]]] = {
    "factorize.svdllm": (
        [{"method": "factorize.svdllm", "params": {"ratio": 0.8}}],
        [{"method": "factorize.svd", "params": {"ratio": 0.8}}],
    ),
    "quantize.activations": (
        [
            {"method": "quantize.activations", "params": {**_FLOATS, "input_bits": 4}},
            {"method": "quantize.llm_fp4", "params": {"bits": 4, "group_size": -1}},
        ],
        [
            {"method": "quantize.activations", "params": {"input_bits": 4}},
            {"method": "quantize.rtn", "params": {"bits": 4, "group_size": -1, "symmetric": True}},
        ],
    ),
    "quantize.awq": (
        [{"method": "quantize.awq", "params": {"bits": 3, "group_size": 64}}],
        [{"method": "quantize.rtn", "params": {"bits": 3, "group_size": 64}}],
    ),
    "quantize.hlq": (
        [{"method": "quantize.hlq", "params": {"bits": 2, "group_size": 64}}],
        [{"method": "quantize.gptq", "params": {"bits": 2, "group_size": 64}}],
    ),
    "quantize.shiftadd": (
        [{"method": "quantize.shiftadd", "params": {"bits": 2, "group_size": -1}}],
        [{"method": "quantize.gptq", "params": {"bits": 2, "group_size": 64}}],
    ),
    "transform.hadamard": (
        [{"method": "transform.hadamard"}, {"method": "quantize.activations", "params": {"input_bits": 4}}],
        [{"method": "quantize.activations", "params": {"input_bits": 4}}],
    ),
}
# Those of them that buy it with bytes.
DEARER = ("quantize.activations", "quantize.hlq", "transform.hadamard")

# What takes minutes otherwise.
LESS = {name: {"samples": 4, "epochs": 4} for name in ("quantize.affinequant", "quantize.omniquant")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data home of its own with the embedded model and texts."""
    home, own = tmp_path_factory.mktemp("home"), Host.from_environment()
    fetch(own, silent)
    for folder in (own.assets, own.models):
        (home / folder.name).symlink_to(folder)
    return home


@pytest.fixture(scope="module")
def measured(home):
    """(stages) -> the outcome of a run, made once for all claims that share it."""
    host, done = dataclasses.replace(Host.at(home), device="cpu"), {}

    def measure(stages):
        recipe = parse_recipe({**CONDITIONS, "stages": stages})
        if recipe.to_json() not in done:
            folder = home / "run"
            artifact = folder / "made.safetensors"
            folder.mkdir()
            compress(recipe, host, artifact, folder, silent)
            subject = Subject(recipe, host, artifact, folder, silent)
            found = [evaluate(name, subject) for name in ("divergence", "size")]
            windows = {series.name: series.values for result in found for series in result.series}
            numbers = {one.metric: one.value for result in found for one in result.measurements}
            broken = next((result.broken for result in found if result.broken), None)
            shutil.rmtree(folder)
            done[recipe.to_json()] = Outcome(
                windows[series_name(METRIC)], int(numbers["size.packed"]), broken
            )
        return done[recipe.to_json()]

    return measure


@pytest.mark.parametrize("name", PLACES)
def test_a_claim_holds_on_the_embedded_model(name, measured):
    claim = discover().methods[name].claim
    pair = OTHERS.get(name, (claim.better, claim.worse))
    only = {"only": PLACES[name]} if PLACES[name] else {}
    better, worse = (
        measured(
            [
                {**stage, **only, "params": {**stage.get("params", {}), **LESS.get(name, {})}}
                for stage in stages
            ]
        )
        for stages in pair
    )
    assert verdict(better, worse, name in DEARER if name in OTHERS else claim.more_bytes).word == "holds"


@pytest.fixture(scope="module")
def linears(home, tmp_path_factory):
    """The linears of block 2 with the statistics of their inputs."""
    host = dataclasses.replace(Host.at(home), device="cpu")
    recipe = parse_recipe({**CONDITIONS, "stages": []})
    layout = facts(EMBEDDED_MODEL, host)
    opened, report = load_model(layout, host), Report(torch.device("cpu"))
    walk = Walk(recipe, layout, opened, host, tmp_path_factory.mktemp("walk"), silent, report)
    with torch.inference_mode():
        return next(list(layers) for block, layers in walk.survey("look", "gram") if block == 2)


def output_error(layer, parts):
    lost = (layer.weight - combined(parts)).double()
    return float(((lost @ layer.statistics.gram) * lost).sum())


def test_gptq_and_then_coordinate_descent_lower_the_output_error_of_every_linear(linears):
    for layer in linears:
        rounded = output_error(layer, rtn(layer, bits=3, group_size=64))
        fed_back = output_error(layer, gptq(layer, bits=3, group_size=64))
        descended = output_error(layer, quantease(layer, bits=3, group_size=64, start="gptq"))
        assert descended < fed_back < rounded, layer.name


def test_hqq_lowers_the_norm_that_it_is_about_in_every_linear(linears):
    for layer in linears:
        still = {
            "inputs": rtn(layer, bits=3, group_size=64, zero="float"),
            "outputs": hqq(layer, bits=3, group_size=64, rounds=0),
        }
        for axis, rounded in still.items():
            moved = hqq(layer, bits=3, group_size=64, axis=axis)
            norms = [
                float((layer.weight - combined(parts)).abs().double().pow(0.7).sum())
                for parts in (moved, rounded)
            ]
            assert norms[0] < norms[1], (layer.name, axis)


def test_hqq_along_outputs_spares_the_values_and_dsnot_swaps_a_few_hundredths_of_the_mask(linears):
    for layer in linears:
        if layer.name.endswith("v_proj"):
            along = {
                axis: output_error(layer, hqq(layer, bits=3, axis=axis)) for axis in ("inputs", "outputs")
            }
            assert along["outputs"] < 0.6 * along["inputs"]
        swapped, start = dsnot(layer, sparsity=0.6)[0].kept(), wanda(layer, sparsity=0.6)[0].kept()
        assert 0.005 < float((swapped != start).float().mean()) < 0.05, layer.name
