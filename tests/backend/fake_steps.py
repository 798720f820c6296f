"""Stands in for backend.steps in the tests of queue and child process: no model, every way to end."""

import errno
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.errors import UserError
from backend.progress import Progress, Update


def compress(
    recipe_json: str, digest: str, home: str, progress: Progress, history: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Do what the recipe's model name says, and note the call."""
    _note(home, "compress", digest)
    (Path(home) / f"told-{digest[:12]}.json").write_text(json.dumps([row["run_id"] for row in history]))
    _behave(json.loads(recipe_json)["model"], "compress", Path(home) / f"go-{digest[:12]}", progress)
    artifact = Path(home) / "artifacts" / f"{digest}.safetensors"
    artifact.parent.mkdir(exist_ok=True)
    artifact.write_bytes(b"packed")
    layers = [
        {"layer": "model.layers.0.q_proj", "block": 0, "projection": "q_proj", "stage": 1, "error": 0.1}
    ]
    seconds = {"load": 0.1, "compress": 2.0}
    return {"artifact": str(artifact), "layers": layers, "seconds": seconds, "peak_bytes": 1000}


def measure(recipe_json: str, digest: str, metric: str, home: str, progress: Progress) -> dict[str, Any]:
    """One made-up number."""
    _note(home, metric, digest)
    _behave(json.loads(recipe_json)["model"], metric, Path(home) / f"go-{digest[:12]}", progress)
    stamp = {"text": "t", "digest": "d", "window": 8}
    row = {"metric": metric, "text": "t", "value": 2.0, "stderr": None, "n": 3, "unit": "", "seconds": 0.1}
    series = {"name": f"{metric}.windows", "protocol": stamp, "values": [1.0, 2.0, 3.0]}
    return {
        "measurements": [{**row, "lower_is_better": True, "protocol": stamp}],
        "series": [series],
        "broken": "collapse" if metric == "sanity" and "/broken" in recipe_json else None,
    }


def generate(
    model: str, artifact: str | None, prompt: str, settings: dict[str, Any], home: str, progress: Progress
) -> dict[str, Any]:
    """Count up to the prompt's number, slowly."""
    said = ""
    for number in range(int(prompt)):
        said += f"{number} "
        progress(Update("generate", number, int(prompt), said))
        time.sleep(0.05)
    return {"text": said, "tokens": [[number, f"{number} "] for number in range(int(prompt))]}


def surgery(model: str, home: str, progress: Progress, answer: int = 0) -> dict[str, Any]:
    """A quick task that ends as the model's name says."""
    _note(home, "surgery", f"answer-{answer}")
    _behave(model, "compress", Path(home) / f"go-{answer}", progress)
    return {"answer": answer, "model": Path(model).name}


def levels(model: str, home: str, progress: Progress, answer: int = 0) -> dict[str, Any]:
    """A long task: it stands in line with runs."""
    _note(home, "levels", f"levels-{answer}")
    _behave(model, "compress", Path(home) / f"go-{answer}", progress)
    return {"pid": os.getpid()}


def echo(value: object, progress: Progress) -> dict[str, Any]:
    """Say it, tell it, return it."""
    print(f"echo {value}")
    progress(Update("echo", 1, 1, str(value)))
    return {"value": value, "pid": os.getpid()}


def _note(home: str, step: str, digest: str) -> None:
    with (Path(home) / "calls.txt").open("a") as calls:
        calls.write(f"{step} {digest[:12]} {os.getpid()}\n")


def _behave(model: str, step: str, go: Path, progress: Progress) -> None:
    name = Path(model).name
    if name == f"slow-{step}":
        while not go.exists():
            progress(Update(step, 1, 4, "waiting", share=0.25))
            time.sleep(0.02)
    if name == "counted-perplexity" and step == "perplexity":
        tokens = 0
        while not go.exists():
            progress(Update("evaluate", 1, 4, "window", tokens))
            time.sleep(0.05)
            tokens += 100
    if name == "deaf-compress" and step == "compress":
        time.sleep(60)
    if name == "user-error" and step == "compress":
        raise UserError("group 48 does not divide 576")
    if name == "bug" and step == "compress":
        raise ZeroDivisionError("a bug")
    if name == "full-disk" and step == "compress":
        raise OSError(errno.ENOSPC, "No space left on device")
    if name == "killed" and step == "compress":
        os.kill(os.getpid(), signal.SIGKILL)
