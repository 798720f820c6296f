"""Fill a store with made-up runs, to time pages on: python bench/fill_store.py DATABASE_URL [RUNS].

Nothing in it was measured: each run's source is `made-up` and its name begins with it.
"""

import hashlib
import json
import random
import sys
import time

from store import measurements as found
from store import results, runs
from store.database import Database, open_database

SOURCE = "made-up"
_BLOCKS = 30
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_STAMP = {
    **{"text": "wikipedia-en", "split": "test", "digest": "0" * 16, "join": "\n\n", "bos": "none"},
    **{
        "window": 2048,
        "stride": 2048,
        "windows": 24,
        "tokens": 49128,
        "tokenizer": "0" * 12,
        "loss_dtype": "float32",
    },
}


def fill(database: Database, number: int, seed: int = 0) -> None:
    """Add `number` runs with all that a real run leaves: numbers, windows, layers (on every tenth), logs."""
    rng = random.Random(seed)
    for index in range(number):
        bits, method, group = rng.choice((2, 3, 4, 8)), rng.choice(("rtn", "gptq")), rng.choice((32, 64, 192))
        chain = f"{method} {bits}-bit g{group}"
        params = {"bits": bits, "group_size": group, "damping": round(rng.random(), 3)}
        stages = [{"method": f"quantize.{method}", "params": params}]
        if rng.random() < 0.5:
            sparsity = round(rng.random(), 2)
            stages = [{"method": "prune.wanda", "params": {"sparsity": sparsity}}, *stages]
            chain = f"wanda {sparsity} → {chain}"
        recipe = {"model": "smollm2-135m-instruct", "stages": stages, "note": f"{SOURCE} {index}"}
        digest = hashlib.sha256(f"{seed} {index}".encode()).hexdigest()
        run_id, ticket, _ = runs.create_run(
            database,
            **{"digest": digest, "name": f"{SOURCE} {index}", "recipe": json.dumps(recipe)},
            **{"model": recipe["model"], "chain": chain, "source": SOURCE, "user": f"user {index % 7}"},
        )
        runs.start_run(database, run_id, ticket, SOURCE)
        perplexity = 14 + 60 * 2.0**-bits * rng.lognormvariate(0, 0.4)
        packed = 270e6 * (bits + rng.random()) / 16
        numbers = {
            **{
                "perplexity": perplexity,
                "divergence.kl": perplexity / 60,
                "divergence.kl_median": perplexity / 90,
            },
            **{"divergence.kl_p99": perplexity / 9, "divergence.kl_reverse": perplexity / 55},
            **{"divergence.kl_reverse_median": perplexity / 80, "divergence.kl_reverse_p99": perplexity / 8},
            **{"divergence.agreement": 9 / perplexity, "divergence.flips": 1 - 9 / perplexity},
        }
        sizes = {
            **{
                "size.packed": packed,
                "size.embeddings": 56e6,
                "size.linears": packed - 60e6,
                "size.rest": 4e6,
            },
            **{
                "size.file": packed + 4e4,
                "size.bits_per_weight": bits + 0.5,
                "size.bits_per_parameter": bits + 1.5,
            },
            **{"memory.peak": packed * 4, "speed.prefill": 900.0, "speed.decode": 11.0},
            **{"sanity.repetition": rng.random(), "sanity.finite": 1.0},
        }
        found.save_measurements(
            database,
            run_id,
            measurements=[_measurement(name, value, _STAMP) for name, value in numbers.items()]
            + [_measurement(name, value, {}) for name, value in sizes.items()],
            series=[
                {
                    "name": "perplexity.windows",
                    "protocol": _STAMP,
                    "values": [rng.gauss(2.7, 0.2) for _ in range(24)],
                }
            ],
            seconds={"compress": 20 + 40 * rng.random(), "perplexity": 30.0},
        )
        if index % 10 == 0:
            found.save_compression(
                database,
                run_id,
                artifact=f"/nowhere/{digest}.safetensors",
                layers=[
                    {
                        **{
                            "layer": f"model.layers.{block}.{projection}",
                            "block": block,
                            "projection": projection,
                        },
                        **{"method": method, "error": rng.random() / 5, "bits": bits + 0.5, "bytes": 10**6},
                    }
                    for block in range(_BLOCKS)
                    for projection in _PROJECTIONS
                ],
                seconds={"compress": 42.0},
                report={},
            )
        runs.append_log(database, run_id, [f"{SOURCE} line {line}" for line in range(5)])
        if index >= number - 20:
            continue
        runs.finish_run(database, run_id, ticket, SOURCE, "failed" if index % 50 == 49 else "done")


def _measurement(metric: str, value: float, protocol: dict[str, object]) -> dict[str, object]:
    return {
        **{"metric": metric, "text": protocol.get("text"), "value": value, "stderr": value / 50, "n": 24},
        **{"unit": "", "lower_is_better": True, "protocol": protocol, "seconds": 1.0},
    }


def main() -> None:
    """Fill, then time the queries that pages ask, cold and again."""
    database = open_database(sys.argv[1])
    began = time.perf_counter()
    fill(database, int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
    print(f"filled in {time.perf_counter() - began:.1f} s")
    some = [str(run_id) for run_id in results.runs(database, limit=4)["id"]]
    queries = {
        "points": lambda: results.points(database),
        "runs": lambda: results.runs(database),
        "runs, 50": lambda: results.runs(database, limit=50),
        "queue": lambda: results.queue(database),
        "measurements of 4": lambda: results.measurements(database, some),
        "series of 4": lambda: results.series(database, some, "perplexity.windows"),
        "layers": lambda: results.layers(database, some[0]),
        "log_tail": lambda: results.log_tail(database, some[0]),
        "recent_seconds": lambda: results.recent_seconds(database),
        "data_version": lambda: results.data_version(database),
    }
    for name, query in queries.items():
        cold = time.perf_counter()
        rows = query()
        warm = time.perf_counter()
        query()
        again = time.perf_counter()
        size = f", {len(rows)} rows" if hasattr(rows, "__len__") else ""
        print(f"{name}: {1000 * (warm - cold):.1f} ms, again {1000 * (again - warm):.1f} ms{size}")


if __name__ == "__main__":
    main()
