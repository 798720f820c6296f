"""What compressing took and left behind, for the run's row and the map of its layers."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backend.parts import Factors, Part
from backend.resident import peak_bytes
from backend.views import Layer, Statistics


@dataclass
class Report:
    """What compressing took and left: a row per linear and stage, seconds per phase, peak resident bytes.

    notes   {stage: what its method tells of its work}: words to plain values or lists of them
    plan    what the stages that plan gave to single linears, empty without such a stage
    """

    device: torch.device
    layers: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    calibration: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _within: float = 0.0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take over the rows of the linears of some stages; notes get the mean of their curves."""
        found: dict[tuple[str, str], list[list[float]]] = {}
        for one in rows:
            for words, values in one.get("curves", {}).items():
                found.setdefault((f"stage {one['stage']}, {one['method']}", words), []).append(values)
        for (stage, words), curves in found.items():
            means = [sum(column) / len(curves) for column in zip(*curves, strict=True)]
            self.notes.setdefault(stage, {})[words] = means
        self.layers += [{key: value for key, value in one.items() if key != "curves"} for one in rows]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase; what a phase within it took is that one's alone."""
        start, before = time.perf_counter(), self._within
        self._within = 0.0
        yield
        taken = time.perf_counter() - start
        self.seconds[phase] = self.seconds.get(phase, 0.0) + taken - self._within
        self._within = before + taken
        self.peak_bytes = peak_bytes(self.device)

    def told(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "layers": self.layers, "seconds": self.seconds, "peak_bytes": self.peak_bytes,
            "calibration": self.calibration, "notes": self.notes, "plan": self.plan,
        }  # fmt: skip


def row(
    made: Layer, place: tuple[int, str], number: int, method: str, parts: Sequence[Part], seconds: float
) -> dict[str, Any]:
    """What is told of a linear after stage `number`, which made it of `parts`; `place`: (block, projection).

    Raises RuntimeError when a value of the weight is not finite.
    """
    now, kept = made.now, made.kept
    if not bool(torch.isfinite(now).all()):
        raise RuntimeError(f"stage {number}, {method}: {made.name} came out with NaN or infinite values")
    error, seen = relative_error(made.weight, now, made.statistics)
    bits = sum(part.bits for part in parts)
    return {
        "layer": made.name,
        "block": place[0],
        "projection": place[1],
        "stage": number,
        "method": method,
        "error": error,
        "error_kind": seen,
        "bits": bits / made.weight.numel(),
        "sparsity": 0.0 if kept is None else 1 - float(kept.float().mean()),
        "rank": sum(part.rank for part in parts if isinstance(part, Factors)),
        "bytes": bits // 8,
        "seconds": seconds,
    }


def relative_error(weight: Tensor, now: Tensor, statistics: Statistics) -> tuple[float, str]:
    """Squared error of a linear relative to its size, and as seen by what: output, norms or weight.

    output: tr(D C Dᵀ) / tr(W C Wᵀ) with D = W - Ŵ; norms: with the diagonal of C alone; weight: with C = I.
    """
    lost, whole = weight - now, weight
    if statistics.gram is not None:
        gram = statistics.once("single", lambda: statistics.gram.float())  # type: ignore[union-attr]
        sizes = [float((m @ gram).mul_(m).sum(dtype=torch.float64)) for m in (lost, whole)]
        seen = "output"
    elif statistics.squares is not None:
        sizes = [float((m.double().square() @ statistics.squares).sum()) for m in (lost, whole)]
        seen = "norms"
    else:
        sizes = [float(m.square().sum(dtype=torch.float64)) for m in (lost, whole)]
        seen = "weight"
    return (sizes[0] / sizes[1] if sizes[1] > 0 else math.nan if sizes[0] > 0 else 0.0), seen
