"""Claims on the embedded model in a reduced form: two blocks, little text, divergence from the dense model.

`python app.py claims` is the whole. Of what is not here two blocks tell too little, or it takes minutes.
"""

import dataclasses
import shutil

import pytest

from backend.assets import EMBEDDED_MODEL, fetch
from backend.claims import Outcome, series_name, verdict
from backend.evaluate import Subject, evaluate
from backend.host import Host
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.registry import discover

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
    "compensate.completion": _EARLY,
    "compensate.eora": _EARLY,
    "factorize.svdllm": _EARLY,
    "prune.sparsegpt": _MIDDLE,
    "prune.wanda": _EARLY,
    "quantize.activations": _EARLY,
    "quantize.adadim": _EARLY,
    "quantize.awq": _EARLY,
    "quantize.baq": _MIDDLE,
    "quantize.codebook": _EARLY,
    "quantize.fdb": None,
    "quantize.hlq": _EARLY,
    "quantize.llm_fp4": _EARLY,
    "quantize.shiftadd": _MIDDLE,
    "transform.hadamard": _EARLY,
    "transform.smoothquant": _EARLY,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(stages) -> the outcome of a run, made once for all claims that share it."""
    home, own, done = tmp_path_factory.mktemp("home"), Host.from_environment(), {}
    fetch(own, silent)
    for folder in (own.assets, own.models):
        (home / folder.name).symlink_to(folder)
    host = dataclasses.replace(Host.at(home), device="cpu")

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
    better, worse = (
        measured([{**stage, "only": PLACES[name]} if PLACES[name] else stage for stage in stages])
        for stages in (claim.better, claim.worse)
    )
    assert verdict(better, worse, claim.more_bytes).word == "holds"
