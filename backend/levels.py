"""The level database: every linear of a model compressed in each of a dozen ways, made once and kept.

A level is a short chain of stages. Levels are made from the inputs of the dense model, so that a linear's
level does not depend on what the others get, and a run in dense order that gives each linear its level (a
plan) stores the very same parts. Searches and the Budget page choose among them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend import plans
from backend.artifacts import load_model
from backend.checkpoints import Checkpoints
from backend.errors import UserError
from backend.facts import facts
from backend.host import Host
from backend.parameters import GROUPED_ROW
from backend.parts import Part, combined
from backend.pipeline import Walk
from backend.progress import Progress
from backend.recipe import Calibration, Recipe, Stage, parse_recipe
from backend.registry import discover
from backend.report import Report
from backend.rules import check_layers
from backend.trials import complete, fill, folder_of, label_of

Chain = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Level:
    """One way to store a linear; without stages it is the dense one."""

    name: str
    stages: Chain

    @property
    def key(self) -> str:
        """A name for files."""
        return label_of(self.stages)


def _level(name: str, *stages: tuple[str, dict[str, Any]]) -> Level:
    return Level(name, tuple({"method": method, "params": params} for method, params in stages))


DENSE = _level("dense")


def standard(layers: Mapping[str, tuple[int, int]]) -> tuple[Level, ...]:
    """A dozen levels that fit linears {name: (out, in)}: dense, 8 to 2 bits, 2:4 sparse at 4 and 3 bits."""
    widths = {inputs for _, inputs in layers.values()}
    groups = [size for size in (64, 32, 16, 8) if all(width % size == 0 for width in widths)]
    wide, fine = (groups * 2)[:2] if groups else (GROUPED_ROW, GROUPED_ROW)
    grids = [
        (8, wide),
        (6, wide),
        (5, wide),
        (4, fine),
        (4, wide),
        (3, fine),
        (3, wide),
        (2, fine),
        (2, wide),
    ]
    levels = [DENSE]
    levels += [
        _level(_name(bits, group), ("quantize.gptq", {"bits": bits, "group_size": group}))
        for bits, group in dict.fromkeys(grids)
    ]
    if all(width % 4 == 0 for width in widths):
        half = ("prune.sparsegpt", {"pattern": "2:4"})
        levels += [
            _level(f"2:4, {_name(bits, wide)}", half, ("quantize.gptq", {"bits": bits, "group_size": wide}))
            for bits in (4, 3)
        ]
    return tuple(levels)


def _name(bits: int, group: int) -> str:
    return f"{bits}-bit {'row' if group == GROUPED_ROW else f'g{group}'}"


@dataclass(frozen=True)
class Levels:
    """The levels of one model on one calibration text; made by `build`.

    layers   names of the linears, in the order of the model
    """

    model: str
    calibration: Calibration
    levels: tuple[Level, ...]
    layers: tuple[str, ...]
    folder: Path

    def rows(self) -> dict[tuple[str, int], dict[str, Any]]:
        """{(linear, level): its report row}: bytes, bits, error, sparsity; the dense level has none."""
        found = {}
        kept = Checkpoints(self.folder, torch.device("cpu"))
        for number, level in enumerate(self.levels):
            for block in self._blocks() if level.stages else ():
                for row in kept.rows(level.key, block):
                    # Of a chain the last stage tells what is stored.
                    found[row["layer"], number] = row
        return found

    def parts(self, block: int, device: torch.device) -> Iterator[tuple[int, dict[str, tuple[Part, ...]]]]:
        """(level, {linear: its parts}) of one block, level by level; the dense one has none."""
        kept = Checkpoints(self.folder, device)
        for number, level in enumerate(self.levels):
            found = kept.load(level.key, block) if level.stages else {}
            if found is None:
                raise UserError(f"level {level.name} of block {block} is gone from the cache; build it again")
            yield number, found

    def _blocks(self) -> range:
        return range(len(list(self.folder.glob(f"stage-{self.levels[-1].key}-block-*.safetensors"))))


def recipe_of(
    model: str, calibration: Calibration, levels: Sequence[Level], choice: Mapping[str, int], **fields: Any
) -> Recipe:
    """The ordinary recipe, in dense order, that gives each linear its chosen level.

    A level that every linear gets becomes the recipe's stages; what differs becomes its plan.
    """
    chains = {number: complete(levels[number].stages) for number in sorted(set(choice.values()))}
    methods = list(dict.fromkeys(stage["method"] for chain in chains.values() for stage in chain))
    # A method that comes early in one chain must not come late in another.
    methods.sort(key=lambda name: max(_position(chain, name) for chain in chains.values()))
    defaults = {stage["method"]: stage["params"] for chain in reversed(chains.values()) for stage in chain}
    plan = {}
    for linear, number in choice.items():
        given = {stage["method"]: stage["params"] for stage in chains[number]}
        planned: dict[str, Any] = {
            key: value
            for name, params in given.items()
            for key, value in params.items()
            if defaults[name][key] != value
        }
        if skipped := [name for name in methods if name not in given]:
            planned[plans.SKIP] = skipped
        if planned:
            plan[linear] = planned
    return parse_recipe(
        {
            "model": model,
            "stages": [{"method": name, "params": defaults[name]} for name in methods],
            "calibration": {**calibration.model_dump(), "order": "dense"},
            "plan": plan,
            **fields,
        }
    )


def choice_of(recipe: Recipe, levels: Sequence[Level], layers: Sequence[str]) -> dict[str, int] | None:
    """The level that a recipe in dense order gives to each linear, or None where one gets another."""
    if recipe.calibration.order != "dense" or any(
        discover().methods[stage.method].shape == "work" for stage in recipe.stages
    ):
        return None
    known = {_spelled(level.stages): number for number, level in enumerate(levels)}
    found = {}
    for name in layers:
        chain = tuple({"method": stage.method, "params": stage.params} for _, stage in recipe.stages_of(name))
        number = known.get(_spelled(chain))
        if number is None:
            return None
        found[name] = number
    return found


@torch.inference_mode()
def build(
    model: str, calibration: Calibration, levels: Sequence[Level], host: Host, progress: Progress
) -> Levels:
    """Make what is missing of the database; finished blocks of a level are kept and not made again.

    Raises UserError when a level does not fit the model.
    """
    layout = facts(model, host)
    calibration = calibration.model_copy(update={"order": "dense"})
    folder = folder_of(layout, calibration, host)
    database = Levels(model, calibration, tuple(levels), tuple(layout.layers), folder)
    chains = []
    for level in levels:
        everywhere = dict.fromkeys(layout.layers, 0)
        recipe = recipe_of(
            model, calibration, (level,), everywhere, evaluation={"length": calibration.length}
        )
        check_layers(recipe, layout.layers, layout.positions)
        chains.append(list(enumerate(recipe.stages, start=1)))
    kept = Checkpoints(folder, torch.device("cpu"))
    missing = [
        number
        for number, level in enumerate(levels)
        if level.stages and any(not kept.has(level.key, block) for block in range(layout.blocks))
    ]
    if not missing:
        return database
    recipe = Recipe(model=model, calibration=calibration)
    opened = load_model(layout, host)
    walk = Walk(recipe, layout, opened, host, folder, progress, Report(opened.device))
    fill(
        walk,
        {levels[number].key: (levels[number].name, partial(_all, chains[number])) for number in missing},
        kept,
    )
    return database


def _all(chain: list[tuple[int, Stage]], linear: str) -> list[tuple[int, Stage]]:
    return chain


def weights(parts: tuple[Part, ...], dense: Tensor) -> Tensor:
    """What a linear's level decodes to [out, in] float32; without parts it is the dense weight."""
    return combined(parts) if parts else dense


def _position(chain: Chain, method: str) -> int:
    return next((at for at, stage in enumerate(chain) if stage["method"] == method), -1)


def _spelled(chain: Chain) -> str:
    """A chain with all parameters written out, as a key."""
    return json.dumps(complete(chain), sort_keys=True)
