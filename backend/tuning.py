"""Go through the blocks of a model with gradients.

What a compressed block makes of the states as the compressed blocks before it leave them is to come near what
the dense block makes of the dense blocks' states.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backend.artifacts import replace_module
from backend.feed import Feed
from backend.parts import Input, gone, inputs_of
from backend.progress import Update
from backend.recipe import Stage
from backend.views import Block, Layer, Statistics

if TYPE_CHECKING:
    from backend.pipeline import Walk


def blocks(walk: "Walk", number: int, stage: Stage, samples: int, batch: int) -> Iterator[Block]:
    """The blocks that stage `number` has not finished; its label is the walk's latest one afterwards."""
    label, before, count = str(number), walk.latest, walk.layout.blocks
    kept = walk.checkpoints
    if not all(kept.has(label, block) for block in range(count)):
        dense = Feed(walk.opened, walk.tokens[:samples], walk.progress, batch=batch)
        mine = dense.forked()
        for block in range(count):
            inputs = mine.states
            dense.advance(block)
            if not kept.has(label, block):
                opened = _opened(walk, number, stage, block, dense, inputs)
                if opened.layers:
                    yield opened
                _keep(walk, number, stage.method, before, opened)
            else:
                walk.put(kept.changed(label, block))
            if block + 1 < count:
                with walk.swapped(kept.load(label, block) or {}):
                    mine.advance(block)
    else:
        for block in range(count):
            walk.put(kept.changed(label, block))
    for block in range(count):
        walk.turned |= {
            name
            for name, parts in (kept.load(label, block) or {}).items()
            if any(change.moves for change in inputs_of(parts))
        }
    walk.report.layers += [row for block in range(count) for row in kept.rows(label, block)]
    walk.latest = label


def _opened(walk: "Walk", number: int, stage: Stage, block: int, dense: Feed, inputs: Tensor) -> Block:
    """A block in float32 beside the model's own, of tensors that can be part of a graph."""
    parts, family = walk.parts(block), walk.family
    count, prefix = walk.layout.blocks, f"{family.blocks}.{block}"
    layers: dict[str, Layer] = {}
    changes: dict[str, tuple[Input, ...]] = {}
    biases: dict[str, Tensor | None] = {}
    with torch.inference_mode(False), torch.no_grad():
        module = copy.deepcopy(walk.model.get_submodule(prefix)).float()
        for name in (name for group in family.group_names(block) for name in group):
            if gone(parts.get(name, ())):
                module.get_submodule(name.removeprefix(f"{prefix}.")).weight.zero_()
                continue
            layers[name] = walk.layer(name, parts.get(name, ()), Statistics(), f"{name}|{number}")
            changes[name] = inputs_of(parts.get(name, ()))
            bias = module.get_submodule(name.removeprefix(f"{prefix}.")).bias
            biases[name] = None if bias is None else bias.detach()
        inputs, targets = inputs.clone(), dense.states.clone()

    def outputs(
        states: Tensor,
        linears: Mapping[str, Callable[[Tensor], Tensor]],
        factors: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        originals = {}
        positional, named = _plain(dense.given(block, len(states)))
        for name, linear in linears.items():
            short = name.removeprefix(f"{prefix}.")
            originals[short] = module.get_submodule(short)
            replace_module(module, short, Standin(changes[name], linear, factors.get(name)))
        try:
            out = module(states.float(), *positional, **named)
        finally:
            for short, original in originals.items():
                replace_module(module, short, original)
        return out[0] if isinstance(out, tuple) else out

    def told(done: int, total: int, words: str) -> None:
        walk.progress(
            Update(
                stage.method, block * total + done, count * total, f"block {block + 1} of {count}, {words}"
            )
        )

    covered = {name: layer for name, layer in layers.items() if stage.covers(name)}
    told(0, 1, "start")
    return Block(
        block, covered, biases, changes, inputs, targets, outputs, told, walk.rng(f"{number}|{block}")
    )


def _keep(walk: "Walk", number: int, method: str, before: str | None, opened: Block) -> None:
    """Save what a method made of a block together with what earlier stages made of its other linears."""
    now, rows = walk.parts_of(before, opened.number), []
    # A row tells the error of the weight as the changed model has it.
    walk.put(opened.changed)
    for name, made in opened.parts.items():
        if gone(now.get(name, ())):
            continue
        now[name] = (*inputs_of(now.get(name, ())), *made)
        rows.append(walk.row(name, number, method, now[name], Statistics(), 0.0))
    walk.checkpoints.save(str(number), opened.number, now, rows, opened.changed)


class Standin(nn.Module):
    """A function in place of a linear, whose inputs are multiplied by `factors`, then changed."""

    def __init__(
        self,
        changes: tuple[Input, ...],
        linear: Callable[[Tensor], Tensor],
        factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.changes, self.linear, self.factors = changes, linear, factors

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.factors is None else x * self.factors
        for change in self.changes:
            x = change(x) if change.keeps_values else _straight(change, x)
        return self.linear(x)


def _straight(change: Input, x: Tensor) -> Tensor:
    """Rounded inputs, through which gradients pass as if they were not."""
    unrounded = change.undo(x.reshape(-1, x.shape[-1])).view_as(x)
    return unrounded + (change(x) - unrounded).detach()


def _plain(value: Any) -> Any:
    """The same with tensors that a graph may hold, those of floats in float32."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.float().clone() if value.is_floating_point() else value.clone()
    if isinstance(value, tuple | list):
        return type(value)(_plain(each) for each in value)
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
