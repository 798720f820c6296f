"""What a run will weigh and take, from the headers of the model and from the runs before it."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from backend import plans
from backend.artifacts import speeds
from backend.effort import first_rates, work_units
from backend.experience import PastRun, learned_rates, past_runs, seconds_of_work, seconds_off
from backend.facts import ModelFacts, facts
from backend.host import Host
from backend.parameters import GROUPED_ROW, MIXTURE, PLAIN_BITS
from backend.positions import mask_bytes
from backend.recipe import Recipe, Stage
from backend.registry import Stored, discover
from backend.rules import check_layers, needs_of, overruled, table_stages
from backend.shrink import shrunk
from backend.sizes import FACTOR_GROUP, SCALE_BITS, Matrix, kept_by_pattern, low_rank_bytes
from backend.text import check_text

# Python with torch and transformers, before any model is open.
_RUNTIME_BYTES = 700_000_000
# Fewer past runs than this say nothing about the next one.
_FEWEST_RUNS = 3
# Weights of a matrix that stands for any.
_MANY = 1 << 20


@dataclass(frozen=True)
class Estimate:
    """Bytes are counted exactly as the artifact will store them, unless a plan decides each linear's share:
    then they are those of its mean; factors that stop at a share of the energy, and linears that are pruned
    twice, weigh at most that much.
    Seconds and peak memory are predictions.

    seconds_error   median relative error of such predictions for the past runs on this machine, each learned
                    from the others, or None
    peak_error      the same of the peak memory while compressing
    notes           what the model's folder holds that is not measured, and what a run leaves out
    """

    packed_bytes: int
    linears_bytes: int
    embeddings_bytes: int
    rest_bytes: int
    dense_bytes: int
    seconds: float
    seconds_error: float | None
    peak_bytes: int
    peak_error: float | None
    formula: str
    notes: tuple[str, ...] = ()


def estimate(recipe: Recipe, host: Host, history: pd.DataFrame | None = None) -> Estimate:
    """Sizes, time and peak memory of a run; UserError when the run cannot work, with the reason.

    `history` holds one row per past run and phase: run_id, model, recipe (JSON), phase, seconds, peak_bytes.
    """
    whole = facts(recipe.model, host)
    layout = shrunk(whole, recipe.stages)
    check_layers(recipe, layout.layers, layout.positions, layout.tables)
    check_text(recipe.evaluation.text, host)
    for text in recipe.texts if _reads_text(recipe) else ():
        check_text(text, host)
    linears, embeddings, rest, _, value_bits = _sizes(recipe, layout)
    dense = sum(size for _, size in whole.tensors.values())
    past, first = past_runs(history, host), first_rates(*speeds(whole, host))
    seconds = seconds_of_work(work_units(recipe, layout), learned_rates(past, first))
    return Estimate(
        linears + embeddings + rest, linears, embeddings, rest, dense, seconds,
        _median(seconds_off(past, first)), _peak(recipe, layout, dense, linears), _median(_peaks_off(past)),
        _formula(recipe, value_bits, layout.tables),
        (*whole.notes, *overruled(recipe), *_pruned_twice(recipe, layout)),
    )  # fmt: skip


def _pruned_twice(recipe: Recipe, layout: ModelFacts) -> list[str]:
    """What to say where two stages prune one linear: the second may take what the first took, or not."""
    methods = discover().methods
    for name in layout.layers:
        pruning = [f"stage {at}" for at, stage in recipe.stages_of(name) if methods[stage.method].keeps]
        if len(pruning) > 1:
            return [
                f"{' and '.join(pruning)} prune the same linears: counted is what the stricter leaves, and "
                "both together may leave less, so the bytes are at most these"
            ]
    return []


def _sizes(recipe: Recipe, layout: ModelFacts) -> tuple[int, int, int, int, int]:
    """Bytes of linears, embeddings, the rest, and the dense model; bits of one stored value."""
    linears = embeddings = rest = dense = 0
    value_bits = 16
    for name, (shape, size) in layout.tensors.items():
        dense += size
        owner = name.removesuffix(".weight")
        if owner in layout.layers:
            count = shape[0] * shape[1]
            value_bits = 8 * size // count
            if owner not in layout.emptied:
                linears += _chain_bytes(recipe.stages_of(owner), layout.layers[owner], value_bits)
        elif owner.startswith(layout.family.tables):
            embeddings += _table_bytes(recipe, layout, owner) if owner in layout.tables else size
        else:
            rest += size
    return linears, embeddings, rest, dense, value_bits


def _table_bytes(recipe: Recipe, layout: ModelFacts, table: str) -> int:
    """Bytes of an embedding or a head, as stages leave it that name it or are about heads."""
    (rows, inputs), size = layout.tables[table], layout.tensors[f"{table}.weight"][1]
    bits = 8 * size // (rows * inputs)
    if table == layout.family.head:
        for stage in recipe.stages:
            found = discover().methods[stage.method]
            if found.kind == "head" and found.stored:
                size = found.stored(Matrix(rows, inputs, rows * inputs, bits), stage.params)
    chain = table_stages(enumerate(recipe.stages, start=1), table, layout.layers)
    return _chain_bytes(chain, (rows, inputs), bits) if chain else size


def _chain_bytes(chain: Iterable[tuple[int, Stage]], shape: tuple[int, int], value_bits: int) -> int:
    """Bytes of what numbered stages make of a weight."""
    rows, inputs = shape
    count = kept = rows * inputs
    prunings = 0
    quantized = between = mixed = False
    grid = factors = beside = 0
    pattern = "free"
    planned: dict[str, Any] = {}
    for _, stage in chain:
        if discover().methods[stage.method].kind == "head":
            continue
        if aim := discover().methods[stage.method].planned(stage.params):
            # What a plan gives this linear is not known yet: the mean it aims at stands for it.
            planned[aim] = stage.params[aim]
            between = discover().methods[stage.method].tries is not None
            mixed = stage.params.get("over") == MIXTURE
            continue
        if mixed and plans.switches(stage.method):
            continue
        if discover().methods[stage.method].empties:
            return 0
        params = {**stage.params, **{key: planned[key] for key in planned if key in stage.params}}
        if keeps := discover().methods[stage.method].keeps:
            prunings += 1
            free = params["pattern"] == "free"
            left = keeps(rows, inputs, params) if free else kept_by_pattern(count, params["pattern"])
            if left < kept or not free:
                pattern = params["pattern"]
            kept = min(kept, left)
        if stored := discover().methods[stage.method].stored:
            matrix = Matrix(rows, inputs, kept, value_bits)
            if discover().methods[stage.method].inputs:
                beside += stored(matrix, params)
                continue
            quantized = True
            grid = _between(stored, matrix, params) if between else stored(matrix, params)
        if "rank" in params:
            factors += low_rank_bytes(Matrix(rows, inputs, kept, value_bits), params)
    mask = mask_bytes(count, kept, pattern) if prunings else 0
    if prunings > 1:
        # A pattern of which another stage takes more is none any more.
        mask = max(mask, mask_bytes(count, kept, "free"))
    return (grid if quantized else kept * value_bits // 8) + mask + factors + beside


def _between(stored: Stored, matrix: Matrix, params: Mapping[str, Any]) -> int:
    """Bytes at a mean number of bits, when single linears get whole numbers around it."""
    bits = params.get("bits")
    if bits is None:
        return stored(matrix, params)
    ends = [stored(matrix, {**params, "bits": end}) for end in (math.floor(bits), math.ceil(bits))]
    return round(ends[0] + (bits - math.floor(bits)) * (ends[1] - ends[0]))


def _reads_text(recipe: Recipe) -> bool:
    return bool(needs_of(recipe) - {"nothing"})


def _median(errors: Sequence[float]) -> float | None:
    return statistics.median(errors) if len(errors) >= _FEWEST_RUNS else None


def _peaks_off(past: Sequence[PastRun]) -> list[float]:
    found = []
    for run in past:
        if run.peak:
            linears, _, _, dense, _ = _sizes(run.recipe, run.layout)
            found.append(abs(_peak(run.recipe, run.layout, dense, linears) / run.peak - 1))
    return found


def _peak(recipe: Recipe, layout: ModelFacts, dense: int, linears: int) -> int:
    hidden = int(layout.config.get("hidden_size") or layout.config.get("n_embd") or 1024)
    states = recipe.calibration.samples * recipe.calibration.length * hidden * 2 if _reads_text(recipe) else 0
    widest = max(max(shape) for shape in layout.layers.values())
    # One block's second moments and the solver's copies, in float64.
    solver = 6 * 8 * widest**2
    scores = 64 * int(layout.config.get("vocab_size", 50_000)) * 4 * 8
    return _RUNTIME_BYTES + dense + linears + max(states * 2 + solver, scores)


def _mask(params: Mapping[str, Any]) -> str:
    pattern = params["pattern"]
    kept = 1 - params["sparsity"] if pattern == "free" else kept_by_pattern(_MANY, pattern) / _MANY
    bits = 8 * mask_bytes(_MANY, round(kept * _MANY), pattern) / _MANY
    return f"a mask of {bits:.2g} bit{'' if bits == 1 else 's'} a weight"


def _formula(recipe: Recipe, value_bits: int, tables: Iterable[str] = ()) -> str:
    terms: list[str] = []
    words: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("pattern", lambda p: f"{_mask(p)} + {value_bits} bits per kept weight"),
        ("bits", _codes),
        ("table", lambda p: f"codes into {p['table']} + a scale for each {p['group_size']} weights"),
        ("outliers", lambda p: f"{p['outliers']:g} of the weights at {value_bits} + 16 bits"),
        ("ratio", lambda p: f"two factors of {p['ratio']:g} of the weight's {value_bits} bits"),
        ("rank", lambda p: _factors(p, value_bits)),
    ]
    planned: dict[str, Any] = {}
    mixed = False
    for stage in recipe.stages:
        if aim := discover().methods[stage.method].planned(stage.params):
            planned[aim] = stage.params[aim]
            mixed = stage.params.get("over") == MIXTURE
            continue
        if discover().methods[stage.method].shrinks or (mixed and plans.switches(stage.method)):
            continue
        params = {**stage.params, **{key: planned[key] for key in planned if key in stage.params}}
        terms += [word(params) for name, word in words if name in params]
    if len(terms) > 1 and "kept" in terms[0] and any("per weight" in term for term in terms[1:]):
        terms[0] = f"{terms[0].split(' + ')[0]}, codes of kept weights only"
    if any(discover().methods[stage.method].empties for stage in recipe.stages):
        terms.append("nothing of what is left out")
    if any(discover().methods[stage.method].plans for stage in recipe.stages):
        terms.append("a plan spreads this over the linears, so the bytes are those of its mean")
    if recipe.plan:
        terms.append("the plan gives single linears their own values, counted one by one")
    body = "; ".join(terms) or f"{value_bits} bits per weight"
    named = any(stage.only and stage.covers(table) for stage in recipe.stages for table in tables)
    kept = "Embeddings and head as their stages say, norms" if named else "Embeddings, norms"
    return f"Linears: {body}. {kept} and biases stay as they are."


def _codes(params: Mapping[str, Any]) -> str:
    bits, group = params["bits"], params.get("group_size")
    if group is None:
        return f"{bits:g} bits on average + (2 x {SCALE_BITS})/inputs + 8/out per weight"
    shared = "inputs" if group == GROUPED_ROW else group
    return f"{bits:g} bits + ({SCALE_BITS}{_zero_term(params)})/{shared} per weight"


def _factors(params: Mapping[str, Any], value_bits: int) -> str:
    bits = params.get("factor_bits", PLAIN_BITS)
    each = f"{value_bits}" if bits == PLAIN_BITS else f"({bits} + {SCALE_BITS + bits}/{FACTOR_GROUP})"
    upto = "at most " if params.get("energy", 1.0) < 1 else ""
    return f"{upto}{each} bits x {params['rank']} x (out + in) per linear"


def _zero_term(params: Mapping[str, Any]) -> str:
    if params.get("symmetric") or "exponent_bits" in params:
        return ""
    whole = "norm" not in params and params.get("zero", "integer") == "integer"
    return f" + {params['bits'] if whole else SCALE_BITS}"
