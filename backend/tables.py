"""Embeddings and output head: a row for each token, compressed where a stage names them.

A stage reaches them by an `only` that matches no linear of a block, such as `model.embed_tokens` or
`lm_head`, with a method that needs no statistics. Where head and embedding are one tensor they stay one. What
a table is stored as is decoded into a plain one when the artifact is opened.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from backend.padding import applied
from backend.parts import Part, combined
from backend.recipe import Stage
from backend.registry import discover
from backend.report import relative_error
from backend.rules import table_stages
from backend.views import Layer, Statistics

if TYPE_CHECKING:
    from backend.pipeline import Walk


@dataclass
class Tables:
    """What the stages so far made of the tables, and the weights [tokens, d] float32 as they were."""

    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)

    def apply(self, walk: "Walk", stages: Sequence[tuple[int, Stage]], label: str) -> None:
        """Let the numbered stages of a walk work on the tables that they name; the model has them then."""
        for name in walk.layout.tables:
            chain = table_stages(stages, name, walk.layout.layers)
            if not chain:
                continue
            module: Any = walk.model.get_submodule(name)
            dtype = module.weight.dtype
            self.originals.setdefault(name, module.weight.detach().float())
            made = self._resumed(walk, label, name) or self._made(walk, chain, name, dtype)
            walk.checkpoints.save(f"{label}-{name}", 0, {name: made}, [])
            self.put(walk.model, name, made)
            walk.changes += [stage.model_dump_json() for _, stage in chain]

    def put(self, model: Any, name: str, parts: tuple[Part, ...]) -> None:
        """Take over what a table consists of now, and put it into the model."""
        self.parts[name] = parts
        weight = model.get_submodule(name).weight
        weight.copy_(combined(parts).to(weight.dtype))

    def _resumed(self, walk: "Walk", label: str, name: str) -> tuple[Part, ...]:
        return (walk.checkpoints.load(f"{label}-{name}", 0) or {}).get(name, ())

    def _made(
        self, walk: "Walk", chain: Iterable[tuple[int, Stage]], name: str, dtype: torch.dtype
    ) -> tuple[Part, ...]:
        methods, parts = discover().methods, self.parts.get(name, ())
        weight, nothing = self.originals[name], Statistics()
        for number, stage in chain:
            method = methods[stage.method]
            params = method.params.model_validate(stage.params).model_dump()
            layer = Layer(name, weight, parts, nothing, walk.rng(f"{name}|{number}"), dtype)
            with walk.report.timed(f"stage {number}, {stage.method}"):
                parts = applied(method, layer, params)
            now = combined(parts)
            if not bool(torch.isfinite(now).all()):
                raise RuntimeError(
                    f"stage {number}, {stage.method}: {name} came out with NaN or infinite values"
                )
            bits = sum(part.bits for part in parts) / math.prod(weight.shape)
            error, _ = relative_error(weight, now, nothing)
            notes = walk.report.notes.setdefault(f"stage {number}, {stage.method}", {})
            notes[f"{name}, bits a weight"], notes[f"{name}, relative squared error"] = bits, error
        return parts
