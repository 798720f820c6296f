"""At its defaults every layer method does what its name says: it beats the baseline that it refines by a
stated share of the error that it is about, on a layer whose inputs are as unequal as those of real models."""

from collections.abc import Callable
from functools import cache

import pytest

from backend.parts import Part, combined
from backend.registry import discover
from tests.layers import after, real_like_layer

METHODS = discover().methods
LAYER_METHODS = [found.id for found in METHODS.values() if found.shape == "layer"]
PRUNED = {"pattern": "2:4"}
Parts = tuple[Part, ...]


def made(id_: str, base: Parts = (), **params) -> Parts:
    found, layer = METHODS[id_], after(real_like_layer(), base)
    return tuple(found.fn(layer, **found.params.model_validate(params).model_dump()))


@cache
def pruned() -> Parts:
    return made("prune.wanda", **PRUNED)


def lost(parts: Parts):
    """What is missing of the weight [out, in] float64."""
    return (real_like_layer().weight - combined(parts)).double()


def output_error(parts: Parts) -> float:
    error, gram = lost(parts), real_like_layer().statistics.gram
    return float(((error @ gram) * error).sum())


def mean_error(parts: Parts) -> float:
    """How far the mean outputs move, on average."""
    statistics = real_like_layer().statistics
    return float((lost(parts) @ (statistics.sums / statistics.tokens)).abs().mean())


def weight_error(parts: Parts) -> float:
    return float(lost(parts).square().sum())


def sparse_error(parts: Parts) -> float:
    """HQQ's norm of the error, with p = 0.7."""
    return float(lost(parts).abs().pow(0.7).sum())


Error = Callable[[Parts], float]
# What a method refines at the same setting, the error that it is about, and the most of the baseline's error
# that it may leave.
REFINES: dict[str, tuple[Callable[[], Parts], Error, float]] = {
    "compensate.completion": (lambda: made("compensate.svd", pruned()), output_error, 0.9),
    "compensate.eora": (lambda: made("compensate.svd", pruned()), output_error, 0.9),
    "compensate.lqer": (lambda: made("compensate.svd", pruned()), output_error, 0.95),
    "compensate.svd": (pruned, weight_error, 0.9),
    "factorize.svdllm": (lambda: made("factorize.svd"), output_error, 0.5),
    "prune.dsnot": (lambda: made("prune.wanda", sparsity=0.6), mean_error, 0.5),
    "prune.sparsegpt": (lambda: made("prune.wanda"), output_error, 0.8),
    "prune.wanda": (lambda: made("prune.magnitude"), output_error, 0.8),
    "quantize.adadim": (lambda: made("quantize.gptq", bits=3), output_error, 0.9),
    "quantize.baq": (lambda: made("quantize.gptq", bits=2, group_size=-1), output_error, 0.8),
    "quantize.codebook": (lambda: made("quantize.rtn", symmetric=True), weight_error, 0.8),
    "quantize.fdb": (lambda: made("quantize.rtn", bits=2), weight_error, 0.9),
    "quantize.gptq": (lambda: made("quantize.rtn"), output_error, 0.6),
    "quantize.hlq": (lambda: made("quantize.gptq", bits=2), output_error, 0.9),
    "quantize.hqq": (lambda: made("quantize.hqq", rounds=0), sparse_error, 0.98),
    "quantize.llm_fp4": (lambda: made("quantize.rtn", symmetric=True), output_error, 0.8),
    "quantize.quantease": (lambda: made("quantize.gptq"), output_error, 0.95),
    "quantize.shiftadd": (lambda: made("quantize.gptq", bits=2, group_size=-1), output_error, 0.6),
}
# These refine nothing: each is the baseline of others, or changes what comes in rather than the weight.
PLAIN = {"factorize.svd", "prune.linears", "prune.magnitude", "quantize.activations", "quantize.rtn"}


def test_every_layer_method_says_what_it_refines_or_that_it_refines_nothing():
    assert set(LAYER_METHODS) == set(REFINES) | PLAIN
    assert not set(REFINES) & PLAIN


@pytest.mark.parametrize("id_", REFINES)
def test_at_its_defaults_a_method_leaves_less_of_its_error_than_what_it_refines(id_):
    baseline, error, most = REFINES[id_]
    base = pruned() if METHODS[id_].kind == "compensate" else ()
    assert error(made(id_, base)) < most * error(baseline())


@pytest.mark.parametrize("id_", sorted(PLAIN - {"quantize.activations"}))
def test_at_its_defaults_a_baseline_changes_weights_and_saves_bytes(id_):
    parts = made(id_)
    assert weight_error(parts) > 1e-4 * weight_error(made("prune.linears"))
    assert sum(part.bits for part in parts) < 16 * real_like_layer().weight.numel()


def test_at_its_defaults_rounded_activations_move_a_little():
    x = real_like_layer().statistics.sample
    change = made("quantize.activations")[-1]
    apart = float((change(x) - x).square().sum() / x.square().sum())
    assert 1e-6 < apart < 1e-2


def test_at_its_defaults_dsnot_swaps_half_a_percent_to_five_percent_of_wandas_mask():
    ours, wandas = made("prune.dsnot")[0], made("prune.wanda", sparsity=0.6)[0]
    assert 0.005 < float((ours.kept() != wandas.kept()).float().mean()) < 0.05


def test_at_its_defaults_hqq_groups_along_outputs_and_loses_less_than_along_a_row():
    along_rows = made("quantize.rtn", zero="float")
    assert output_error(made("quantize.hqq")) < 0.6 * output_error(along_rows)
