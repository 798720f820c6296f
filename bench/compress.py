"""What compressing takes: python app.py bench compress, or python -m bench.compress METHOD ...

Each method with its defaults on the whole embedded model, 16 x 512 tokens of calibration text, one after the
other in processes of their own, and how often that is the time of rounding. What only works on top of another
method is put on 3-bit rounding, whose time is taken off. Nothing is evaluated.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backend.assets import EMBEDDED_MODEL
from backend.host import Host
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.registry import discover

BASE = "quantize.rtn"
_ROOT = Path(__file__).parent.parent
_SAMPLES = 16
_FIRST = {"method": BASE, "params": {"bits": 3}}


def chain(name: str) -> list[dict[str, Any]]:
    """The stages of a method's bench."""
    found = discover().methods[name]
    stage = {"method": name}
    if found.kind in ("compensate", "recover"):
        before = {"method": "prune.wanda", "params": {"pattern": "2:4"}} if found.follows else _FIRST
        return [before, stage]
    if found.plans:
        later = {"bits": "quantize.gptq", "sparsity": "prune.wanda", "rank": "compensate.eora"}[found.plans]
        return [*([_FIRST] if found.plans == "rank" else []), stage, {"method": later}]
    return [stage]


def seconds(name: str) -> float:
    """Seconds of the stage itself and, for what needs it, of its share of gathering statistics."""
    stages = chain(name)
    recipe = parse_recipe(
        {"model": EMBEDDED_MODEL, "stages": stages, "calibration": {"samples": _SAMPLES}, "seed": 1}
    )
    with tempfile.TemporaryDirectory() as folder:
        report = compress(
            recipe, Host.from_environment(), Path(folder) / "made.safetensors", Path(folder), silent
        )
    number = 1 + next(at for at, stage in enumerate(stages) if stage["method"] == name)
    needs = discover().methods[name].needs != "nothing"
    shared = sum(report.seconds.get(phase, 0.0) for phase in ("statistics", "outputs")) if needs else 0.0
    return report.seconds[f"stage {number}, {name}"] + shared


def main() -> None:
    """A line of JSON for each method."""
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(seconds(sys.argv[2]))
        return
    wanted = sys.argv[1:] or list(discover().methods)
    base = 0.0
    for name in [BASE, *(name for name in wanted if name != BASE)]:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "bench.compress", "--one", name],
            capture_output=True, text=True, check=False, cwd=_ROOT,
        )  # fmt: skip
        if done.returncode:
            print(json.dumps({"method": name, "failed": done.stderr.strip().splitlines()[-1]}), flush=True)
            continue
        taken = float(done.stdout.strip().splitlines()[-1])
        base = base or taken
        told = {"method": name, "seconds": round(taken, 1), "times rounding": round(taken / base, 1)}
        print(json.dumps(told | {"whole run": round(time.perf_counter() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
