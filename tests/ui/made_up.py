"""A handful of runs with plausible, made-up numbers, for pages to show."""

from typing import Any

from backend.recipe import parse_recipe
from store import measurements, runs
from store.database import Database

MODEL = "smollm2-135m-instruct"
STAMP = {
    "text": "wikipedia-en", "split": "test", "digest": "0" * 16, "join": "\n\n", "bos": "none",
    "window": 1024, "stride": 1024, "windows": 8, "tokens": 8184,
    "tokenizer": "0" * 12,
    "loss_dtype": "float32",
}  # fmt: skip


def stage(method: str, **params: Any) -> dict[str, Any]:
    return {"method": method, "params": params}


# (stages, perplexity, KL, agreement, packed MB, why it is broken)
RUNS: tuple[tuple[list[dict[str, Any]], float, float, float, float, str | None], ...] = (
    ([], 22.41, 0.0, 1.0, 269.0, None),
    ([stage("quantize.rtn", bits=4)], 24.02, 0.071, 0.861, 117.4, None),
    ([stage("quantize.gptq", bits=3)], 27.35, 0.193, 0.782, 103.7, None),
    ([stage("quantize.rtn", bits=3)], 36.9, 0.512, 0.688, 103.7, None),
    ([stage("prune.wanda", pattern="2:4")], 52.6, 0.88, 0.607, 176.1, None),
    ([stage("prune.sparsegpt", pattern="2:4")], 38.3, 0.561, 0.673, 176.1, None),
    (
        [stage("prune.wanda", pattern="2:4"), stage("compensate.eora", rank=64)],
        35.7, 0.49, 0.692, 196.8, None,
    ),
    (
        [
            stage("prune.sparsegpt", pattern="2:4"),
            stage("quantize.gptq", bits=4),
            stage("compensate.eora", rank=32),
        ],
        34.1, 0.45, 0.7, 121.9, None,
    ),
    ([stage("quantize.gptq", bits=2)], 61.2, 1.14, 0.561, 89.9, None),
    ([stage("quantize.rtn", bits=2)], 48211.0, 9.7, 0.011, 89.9, "perplexity 48211 is worse than guessing"),
)  # fmt: skip


def number(
    metric: str, value: float, protocol: dict[str, Any], stderr: float | None = None
) -> dict[str, Any]:
    return {
        "metric": metric, "text": protocol.get("text"), "value": value, "stderr": stderr, "n": 8, "unit": "",
        "lower_is_better": metric != "divergence.agreement", "protocol": protocol, "seconds": 1.0,
    }  # fmt: skip


def add_run(database: Database, row: tuple[Any, ...], status: str = "done", **asked: Any) -> str:
    """Put one run into the store as a worker leaves it; its id."""
    stages, perplexity, kl, agreement, packed, broken = row
    stamp = asked.pop("stamp", STAMP)
    decode, speed_stamp = asked.pop("decode", (11.3, {}))
    recipe = parse_recipe(
        {
            "model": MODEL,
            "stages": stages,
            "evaluation": {"length": 1024, "windows": 8},
            **asked.pop("recipe", {}),
        }
    )
    ending = {key: asked.pop(key) for key in ("error", "error_kind", "suggestion") if key in asked}
    run_id, ticket, _ = runs.create_run(
        database, digest=recipe.digest("made-up"), name=recipe.chain(), recipe=recipe.to_json(), model=MODEL,
        chain=recipe.chain(), **asked,
    )  # fmt: skip
    if status == "queued":
        return run_id
    runs.start_run(database, run_id, ticket, "local")
    if status == "running":
        return run_id
    if status == "failed":
        runs.finish_run(database, run_id, ticket, "local", "failed", **ending)
        return run_id
    numbers = [
        number("perplexity", perplexity, stamp, perplexity / 60),
        number("divergence.kl", kl, stamp, kl / 30),
        number("divergence.kl_p99", kl * 9, stamp),
        number("divergence.agreement", agreement, stamp, 0.006),
        number("divergence.flips", 1 - agreement, stamp, 0.006),
    ]
    sizes = {
        "size.packed": packed * 1e6, "size.embeddings": 56.6e6, "size.linears": (packed - 56.7) * 1e6,
        "size.rest": 70e3, "size.file": packed * 1e6 + 41_000,
        "size.bits_per_weight": (packed - 56.7) / 13.27,
        "size.bits_per_parameter": packed / 16.8, "memory.peak": packed * 3.1e6, "speed.prefill": 911.0,
        "speed.decode": decode, "sanity.repetition": 0.04, "sanity.finite": 1.0,
    }  # fmt: skip
    layers = [
        {
            "layer": f"model.layers.{block}.self_attn.{projection}", "stage": 1, "block": block,
            "projection": projection, "method": stages[0]["method"], "error": 0.02 + 0.003 * block,
            "bits": 3.5, "bytes": 145_000, "sparsity": 0.0, "rank": 0,
        }
        for block in range(6) for projection in ("q_proj", "o_proj")
    ] if stages else []  # fmt: skip
    measurements.save_compression(
        database,
        run_id,
        artifact=f"{run_id}.safetensors",
        layers=layers,
        seconds={"compress": 31.5},
        report={},
    )
    numbers += [
        number(name, value, speed_stamp if name == "speed.decode" else {}) for name, value in sizes.items()
    ]
    measurements.save_measurements(
        database, run_id, measurements=numbers,
        series=[], seconds={"perplexity": 9.8, "divergence": 12.1}, broken=broken,
    )  # fmt: skip
    runs.finish_run(database, run_id, ticket, "local", "done")
    return run_id


def fill(database: Database) -> list[str]:
    """All of RUNS, in order; their ids."""
    return [add_run(database, row) for row in RUNS]
