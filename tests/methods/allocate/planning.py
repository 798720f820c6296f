"""A tiny model whose linears are to get bits, and work whose choices are tables of numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from backend.artifacts import read_parts
from backend.host import Host
from backend.pipeline import compress
from backend.progress import Update, silent
from backend.recipe import parse_recipe
from backend.views import Choices, Work
from tests.tiny import make_model, make_text

RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}


def run(
    host: Host, tmp_path: Any, *stages: dict[str, Any], name: str = "a",
    progress: Callable[[Update], None] = silent, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """{linear: its one part} of what the stages store of a tiny model."""
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")
    recipe = parse_recipe(
        {
            "model": str(folder),
            "stages": list(stages),
            "calibration": {"text": f"file:{text}", "samples": 6, "length": 64},
            "evaluation": {"text": f"file:{text}", "length": 64, "windows": 2},
            **changes,
        }
    )
    artifact = tmp_path / f"{name}.safetensors"
    compress(recipe, host, artifact, tmp_path / f"scratch-{name}", progress)
    return {linear: pieces[0] for linear, pieces in read_parts(artifact).items()}


def size(parts: dict[str, Any]) -> int:
    """Packed bytes of all linears."""
    return sum(part.bits for part in parts.values()) // 8


def work_of(
    level_bytes: Sequence[Sequence[int]],
    *,
    errors: Sequence[Sequence[float]] = (),
    losses: Sequence[Sequence[float]] = (),
    divergence: Callable[[Sequence[int], Sequence[int]], float] = lambda plan, windows: 0.0,
    seed: int = 0,
) -> Work:
    """Work on linears l0, l1, .. of so many bytes at each number of bits, and of these losses."""

    def choices(parameter: str, values: Sequence[int]) -> Choices:
        assert parameter == "bits"
        return Choices(
            tuple(f"l{number}" for number in range(len(level_bytes))),
            tuple(values), tuple({parameter: value} for value in values),
            tuple(map(tuple, level_bytes)), tuple(map(tuple, errors)), 8,
            lambda: [list(row) for row in losses], divergence, lambda done, total, words: None,
        )  # fmt: skip

    nothing: Any = None
    return Work(
        nothing, nothing, nothing, nothing, {}, torch.Generator().manual_seed(seed), {}, nothing, choices
    )


def planned(work: Work) -> list[int]:
    """Bits of each linear, in order."""
    return [work.plan[f"l{number}"]["bits"] for number in range(len(work.plan))]
