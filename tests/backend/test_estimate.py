"""Bytes are exact, times are learned from the runs before, reasons are given."""

import pandas as pd
import pytest

from backend.errors import UserError
from backend.estimate import estimate
from backend.evaluate import Subject, evaluate
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from tests.tiny import make_model, make_text


@pytest.fixture
def make(tmp_path):
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")

    def recipe(*stages, samples=6):
        return parse_recipe(
            {
                "model": str(folder),
                "stages": list(stages),
                "calibration": {"text": f"file:{text}", "samples": samples, "length": 64},
                "evaluation": {"text": f"file:{text}", "length": 64, "windows": 2, "metrics": ["perplexity"]},
            }
        )

    return recipe


def stage(method, only=None, **params):
    return {"method": method, "params": params, **({"only": only} if only else {})}


CHAINS = [
    [],
    [stage("quantize.rtn", bits=3, group_size=16)],
    [stage("quantize.rtn", bits=5, group_size=-1, symmetric=True)],
    [stage("prune.magnitude", sparsity=0.37)],
    [stage("prune.magnitude", sparsity=0.37, scope="row")],
    [stage("prune.wanda", sparsity=0.37)],
    [stage("prune.sparsegpt", sparsity=0.37)],
    [stage("prune.wanda", pattern="4:8"), stage("quantize.gptq", bits=3, group_size=32)],
    [stage("quantize.gptq", bits=2, group_size=16), stage("compensate.eora", rank=40)],
    [stage("quantize.rtn", bits=3, group_size=16, zero="float")],
    [stage("prune.dsnot", sparsity=0.37), stage("quantize.hqq", bits=3, group_size=16)],
    [stage("quantize.codebook", table="nf3", group_size=16)],
    [stage("quantize.codebook", table="-1, 0, 0.5", group_size=16, double=True)],
    [stage("quantize.quantease", bits=2, group_size=-1, sweeps=2, outliers=0.05)],
    [stage("quantize.adadim", bits=3, group_size=16)],
    [stage("quantize.baq", bits=2.3)],
    [stage("quantize.llm_fp4", bits=3, group_size=16, search=4, rounds=1)],
    [stage("prune.wanda", sparsity=0.37), stage("quantize.llm_fp4", bits=4, group_size=-1, search=4)],
    [stage("prune.wanda", sparsity=0.37), stage("quantize.baq", bits=3)],
    [stage("prune.wanda", sparsity=0.37), stage("quantize.adadim", bits=2, group_size=16, groups="column")],
    [stage("quantize.hqq", bits=2, group_size=16), stage("compensate.lqer", rank=3)],
    [stage("quantize.hqq", bits=3, group_size=20)],
    [stage("quantize.hqq", bits=3, group_size=-1)],
    [stage("quantize.hqq", bits=3, group_size=20, axis="inputs")],
    [stage("prune.wanda", sparsity=0.37), stage("quantize.hqq", bits=3, group_size=20, round_zero=True)],
    [stage("quantize.hqq", bits=3, group_size=16, only="model.embed_tokens")],
    [stage("factorize.svd", ratio=0.6), stage("compensate.eora", rank=2)],
    [stage("factorize.svdllm", ratio=0.3)],
    [stage("prune.wanda", pattern="2:4"), stage("compensate.eora", rank=7, factor_bits=4)],
    [stage("quantize.rtn", bits=3, group_size=16), stage("compensate.lqer", rank=40, factor_bits=8)],
    [stage("prune.wanda", sparsity=0.37), stage("compensate.svd", rank=3, factor_bits=4)],
    [
        stage("prune.sparsegpt", pattern="2:4"),
        stage("quantize.rtn", bits=4, group_size=16, only="*.mlp.*"),
        stage("compensate.svd", rank=3),
    ],
]  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS, ids=range(len(CHAINS)))
def test_the_estimated_bytes_are_those_of_the_artifact(chain, make, host, tmp_path):
    recipe = make(*chain)
    predicted = estimate(recipe, host)
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    subject = Subject(recipe, host, artifact, tmp_path / "scratch", silent)
    found = {m.metric: m.value for m in evaluate("size", subject).measurements}
    assert predicted.packed_bytes == found["size.packed"]
    assert predicted.linears_bytes == found["size.linears"]
    assert predicted.embeddings_bytes == found["size.embeddings"]


def test_the_bytes_of_a_plan_are_those_of_its_mean(make, host):
    plan = stage("allocate.owl", sparsity=0.7)
    planned = estimate(make(plan, stage("prune.wanda", sparsity=0.2)), host)
    assert planned.packed_bytes == estimate(make(stage("prune.wanda", sparsity=0.7)), host).packed_bytes
    assert "bytes are those of its mean" in planned.formula


def test_a_narrower_model_is_told_to_store_whole_weights_not_factors(make, host):
    told = estimate(make(stage("prune.width", ratio=0.25)), host).formula
    assert told.startswith("Linears: 32 bits per weight")


def test_factors_that_stop_at_a_share_of_the_energy_weigh_at_most_the_estimate(make, host, tmp_path):
    recipe = make(stage("prune.wanda", pattern="2:4"), stage("compensate.eora", rank=16, energy=0.5))
    told = estimate(recipe, host)
    artifact = tmp_path / "artifact.safetensors"
    compress(recipe, host, artifact, tmp_path / "scratch", silent)
    subject = Subject(recipe, host, artifact, tmp_path / "scratch", silent)
    found = {m.metric: m.value for m in evaluate("size", subject).measurements}
    assert found["size.packed"] < told.packed_bytes
    assert "at most" in told.formula


@pytest.mark.parametrize("method", ["allocate.fisher", "allocate.dp", "allocate.evopress"])
def test_the_bytes_of_planned_bits_lie_on_the_line_between_whole_bits(make, host, method):
    gptq = stage("quantize.gptq", bits=8, group_size=16)
    two, three = (
        estimate(make(stage("quantize.gptq", bits=bits, group_size=16)), host).packed_bytes for bits in (2, 3)
    )
    planned = [estimate(make(stage(method, bits=bits), gptq), host).packed_bytes for bits in (2.0, 2.25, 3.0)]
    assert planned[0] == two
    assert planned[1] == pytest.approx(two + (three - two) / 4, abs=14)
    assert planned[2] == three
    assert "2.25 bits + " in estimate(make(stage(method, bits=2.25), gptq), host).formula


def test_a_search_takes_longer_by_what_it_tries_and_runs(make, host):
    gptq = stage("quantize.gptq", bits=3, group_size=16)

    def seconds(method, **params):
        return estimate(make(stage(f"allocate.{method}", **params), gptq), host).seconds

    plain = estimate(make(gptq), host).seconds
    assert plain < seconds("dp") < seconds("fisher") < seconds("evopress", generations=5)
    assert seconds("dp") < seconds("dp", reach=3)
    few, more = seconds("evopress", generations=5), seconds("evopress", generations=50)
    assert few < more < 10 * few + plain


def test_more_calibration_takes_longer_and_history_sets_the_rates(make, host):
    chain = [stage("quantize.gptq", bits=3, group_size=16)]
    first = estimate(make(*chain), host)
    assert estimate(make(*chain, samples=60), host).seconds > first.seconds
    rows = []
    for run in ("a", "b", "c"):
        for phase, seconds in (
            ("compress.load", 1.0), ("compress.statistics", 50.0), ("compress.outputs", 40.0),
            ("compress.stage 1, quantize.gptq", 100.0), ("perplexity", 30.0), ("size", 0.1),
        ):  # fmt: skip
            told = {"run_id": run, "recipe": make(*chain).to_json(), "phase": phase, "seconds": seconds}
            rows.append({**told, "peak_bytes": first.peak_bytes * 1.25})
    learned = estimate(make(*chain), host, pd.DataFrame(rows))
    assert learned.seconds == pytest.approx(221, rel=0.35)
    assert learned.seconds_error is not None
    assert learned.seconds_error < 0.35
    assert first.peak_error is None
    assert learned.peak_error == pytest.approx(0.2)


def test_a_run_that_cannot_work_is_refused_with_the_reason(make, host):
    with pytest.raises(UserError, match="does not divide"):
        estimate(make(stage("quantize.hlq", group_size=48)), host)


PRUNING = [
    stage("prune.magnitude", sparsity=0.37),
    stage("prune.wanda", sparsity=0.5),
    stage("prune.sparsegpt", sparsity=0.6),
    stage("prune.wanda", pattern="2:4"),
    stage("prune.magnitude", pattern="4:8"),
]


@pytest.mark.parametrize("then", [[], [stage("quantize.rtn", bits=4, group_size=16)]], ids=["", "rtn"])
@pytest.mark.parametrize("second", PRUNING, ids=lambda one: str(one["params"]))
@pytest.mark.parametrize("first", PRUNING, ids=lambda one: str(one["params"]))
def test_two_stages_that_prune_weigh_at_most_what_is_counted_and_that_is_said(
    make, host, tmp_path, first, second, then
):
    recipe = make(first, second, *then)
    found = estimate(recipe, host)
    compress(recipe, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)
    subject = Subject(recipe, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)
    sizes = {one.metric: one.value for one in evaluate("size", subject).measurements}
    assert 0.9 * found.packed_bytes < sizes["size.packed"] <= found.packed_bytes
    (note,) = found.notes
    assert note.startswith("stage 1 and stage 2 prune the same linears")
    assert estimate(make(first, *then), host).notes == ()
