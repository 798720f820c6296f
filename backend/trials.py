"""What a search for levels may ask: every linear at each value of a parameter, kept on disk, put into the
model and taken back.

A level is what a chain of stages makes of a linear from the inputs of the model as it is, so that it does not
depend on what the other linears get.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backend import plans
from backend.artifacts import computed_wider, replace_module
from backend.checkpoints import Checkpoints
from backend.depth import HALVES, members
from backend.evaluate import divergence, final_states
from backend.facts import ModelFacts
from backend.fisher import LENGTH, WINDOWS, sensitivities
from backend.host import Host
from backend.linear import CompressedLinear
from backend.parameters import aim_of
from backend.parts import before_inputs, gone
from backend.progress import Update
from backend.recipe import Calibration, Stage, planned_stages
from backend.registry import discover
from backend.text import held_out
from backend.views import SKIP, Choices, merged, most

if TYPE_CHECKING:
    from backend.pipeline import Walk

# Another number makes kept levels unread.
_FORMAT = 1
# A linear's numbered stages.
ChainOf = Callable[[str], Sequence[tuple[int, Stage]]]


def complete(chain: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """A chain of {method, params} with all parameters written out."""
    known = discover().methods
    return tuple(
        {
            **stage,
            "params": known[stage["method"]].params.model_validate(stage["params"]).model_dump(mode="json"),
        }
        for stage in chain
    )


def label_of(chain: Sequence[Mapping[str, Any]], *more: Any) -> str:
    """A name for files; chains that say the same in other words have one name."""
    return hashlib.sha256(json.dumps([*complete(chain), *more], sort_keys=True).encode()).hexdigest()[:12]


def folder_of(layout: ModelFacts, calibration: Calibration, host: Host, *before: Any) -> Path:
    """Where the levels of a model on a text lie; `before` tells what was done to the model first."""
    text = calibration.model_copy(update={"order": "dense"}).model_dump(mode="json")
    told = json.dumps(
        [_FORMAT, layout.fingerprint, text, *before, *computed_wider(layout, host)], sort_keys=True
    )
    return host.cache / "levels" / hashlib.sha256(told.encode()).hexdigest()[:16]


def fill(walk: "Walk", levels: Mapping[str, tuple[str, ChainOf]], kept: Checkpoints) -> None:
    """Make what is missing of the levels {label: (name, chain of a linear)}, block by block."""
    count = walk.layout.blocks
    missing = [label for label in levels if any(not kept.has(label, block) for block in range(count))]
    if not missing:
        return
    asked = most(
        discover().methods[stage.method].asks(stage.params)
        for label in missing for name in walk.layout.layers for _, stage in levels[label][1](name)
    )  # fmt: skip
    for block, found in walk.gathered("levels", most(("gram", asked))):
        before = walk.parts(block)
        for done, label in enumerate(missing):
            name, chain = levels[label]
            share = block + done / len(missing)
            walk.progress(Update("levels", round(100 * share), 100 * count, f"block {block + 1}, {name}"))
            if kept.has(label, block):
                continue
            made, rows = dict(before), []
            for linear, statistics in found.items():
                made[linear], told = walk.apply(linear, chain(linear), before.get(linear, ()), statistics)
                # Of a chain the last stage tells what is stored.
                rows += told[-1:]
            kept.save(label, block, {name: parts for name, parts in made.items() if parts}, rows)


class Trials:
    """The levels that the stages after an allocate stage make of a model on its way through a recipe."""

    def __init__(self, walk: "Walk", number: int, method: str, later: Sequence[tuple[int, Stage]]) -> None:
        """`number` and `method` are those of the allocate stage, `later` the stages after it."""
        # Building is part of this stage: the later stages' own seconds and rows are those of the walk.
        self._walk = copy.copy(walk)
        self._walk.report = replace(walk.report, layers=[], seconds={})
        self._number, self._method = number, method
        layered = [stage for _, stage in later if discover().methods[stage.method].shape == "layer"]
        self._later = list(enumerate(layered, start=1))
        self._originals: dict[str, nn.Module] = {}
        self._placed: dict[str, str] = {}
        # Where a search is, which it repeats while a candidate is measured.
        self._at: Update | None = None

    def choices(self, over: str, values: Sequence[Any]) -> Choices:
        """Every linear that a later stage gives the parameter, at each of its values; see Choices."""
        walk = self._walk
        recipe, plan = walk.recipe, walk.plan
        # Alone and with the usual seed the levels are those of any other recipe, and of the Budget page.
        before = [stage.model_dump(mode="json") for stage in recipe.stages[: self._number - 1]]
        told = [before, recipe.calibration.order, recipe.seed, plan] if before or plan or recipe.seed else []
        folder = folder_of(walk.layout, recipe.calibration, walk.host, *told)
        self._kept = Checkpoints(folder, walk.opened.device)
        labels, levels = [], {}
        parameter = aim_of(over)
        choices = plans.ways([stage.method for _, stage in self._later], over, values)
        for choice in choices:
            skipped = choice.get(SKIP, ())
            stages = [stage for _, stage in self._later if stage.method not in skipped]
            label = label_of([_plain(stage, parameter, choice[parameter]) for stage in stages])
            labels.append(label)
            left = f", without {', '.join(skipped)}" if skipped else ""
            levels[label] = (f"{parameter} {choice[parameter]}{left}", self._chain(choice))
        fill(walk, levels, self._kept)
        rows = {
            (row["layer"], number): row
            for number, label in enumerate(labels)
            for block in range(walk.layout.blocks)
            for row in self._kept.rows(label, block)
        }
        linears = tuple(name for name in walk.layout.layers if self.takers(parameter, name))
        emptying = {name for name, found in discover().methods.items() if found.empties}
        later = emptying & {stage.method for _, stage in self._later}
        self._empties = [bool(later - set(choice.get(SKIP, ()))) for choice in choices]
        # What gets no level is measured as the first way leaves it.
        rest = {SKIP: choices[0][SKIP]} if SKIP in choices[0] else {}
        self._labels, self._linears = labels, linears
        numbers = range(len(choices))
        sizes = tuple(tuple(rows[name, number]["bytes"] for number in numbers) for name in linears)
        return Choices(
            linears,
            tuple(values),
            tuple(choices),
            sizes,
            tuple(tuple(rows[name, number]["error"] for number in numbers) for name in linears),
            len(self._windows),
            self._predicted,
            self._divergence,
            self._search_told,
            self._halves(sizes),
            {name: rest for name in walk.layout.layers if rest and name not in linears},
        )

    def _halves(self, sizes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """Positions of the linears of each attention and each MLP that may be left out whole."""
        places = {name: at for at, name in enumerate(self._linears) if 0 in sizes[at] and any(sizes[at])}
        family = self._walk.family
        halves = [
            members(family, piece, block) for block in range(self._walk.layout.blocks) for piece in HALVES
        ]
        return tuple(
            tuple(places[name] for name in half) for half in halves if all(name in places for name in half)
        )

    def takers(self, parameter: str, name: str) -> list[Mapping[str, Any]]:
        """The parameters of each later stage that takes this one for a linear; none where nothing is left."""
        if name in self._gone:
            return []
        methods = discover().methods
        chain = planned_stages(self._later, self._walk.plan, name)
        fields = [(methods[stage.method].params.model_fields, stage.params) for _, stage in chain]
        return [params for known, params in fields if parameter in known]

    @cached_property
    def _gone(self) -> set[str]:
        """Linears of which earlier stages left nothing."""
        parts = (self._walk.parts(block) for block in range(self._walk.layout.blocks))
        return {name for found in parts for name, pieces in found.items() if gone(pieces)}

    def restore(self) -> None:
        """Give the model its own linears back."""
        for name, module in self._originals.items():
            replace_module(self._walk.model, name, module)
        self._originals.clear()
        self._placed.clear()

    def _chain(self, choice: Mapping[str, Any]) -> ChainOf:
        def chain(name: str) -> Sequence[tuple[int, Stage]]:
            planned = merged(self._walk.plan.get(name, {}), choice)
            return planned_stages(self._later, {name: planned}, name)

        return chain

    @cached_property
    def _windows(self) -> Tensor:
        """Token ids [windows, length], apart from those that the levels are fitted on."""
        walk, wanted = self._walk, self._walk.recipe.calibration
        fitted = (wanted.samples, wanted.length, wanted.seed)
        return held_out(wanted.text, walk.tokenizer, wanted.samples, wanted.length, fitted, walk.host).ids

    @cached_property
    def _dense(self) -> list[Tensor]:
        """Final states of the model as it is, window by window."""
        self.restore()
        opened, found = self._walk.opened, []
        for number, ids in enumerate(self._windows):
            self._told("dense reference", number, len(self._windows))
            found.append(final_states(opened, ids.to(opened.device)))
        return found

    def _predicted(self) -> list[list[float]]:
        self.restore()
        walk = self._walk
        wanted = walk.recipe.calibration
        fitted = (wanted.samples, wanted.length, wanted.seed)
        windows = held_out(wanted.text, walk.tokenizer, WINDOWS, LENGTH, fitted, walk.host).ids

        def changes(block: int) -> dict[str, list[Tensor]]:
            found: dict[str, list[Tensor]] = {}
            with torch.inference_mode():
                levels = [self._kept.load(label, block) or {} for label in self._labels]
                for name in (name for group in walk.family.group_names(block) for name in group):
                    module: Any = walk.model.get_submodule(name)
                    weight = (module.weight.T if walk.family.transposed else module.weight).detach()
                    found[name] = (
                        [(before_inputs(parts[name]) - weight.float()).to(weight.dtype) for parts in levels]
                        if name in self._linears
                        else []
                    )
            return found

        losses = sensitivities(
            walk.opened, windows, changes, walk.recipe.calibration.seed, walk.progress,
            walk.host.cache / "levels",
        )  # fmt: skip
        return [self._at_least(losses[name]) for name in self._linears]

    def _at_least(self, predicted: list[float]) -> list[float]:
        """Nothing of a linear is no better than the worst that may be left of it: in front of a norm the loss
        does not feel how large an output is, and the prediction would take it away for nothing."""
        left = (loss for loss, out in zip(predicted, self._empties, strict=True) if not out)
        # Without a mixture nothing is chosen: a later stage leaves out what it names at every level.
        worst = max(left, default=0.0)
        both = zip(predicted, self._empties, strict=True)
        return [max(loss, worst) if out else loss for loss, out in both]

    @torch.inference_mode()
    def _divergence(self, plan: Sequence[int], windows: Sequence[int]) -> float:
        opened, total = self._walk.opened, 0.0
        # Before a level is in the model: it is the reference.
        dense = self._dense
        self._place(plan)
        for number in windows:
            self._told("compare", number, len(self._windows))
            states = final_states(opened, self._windows[number].to(opened.device))
            ours = opened.readout.slices(states)
            theirs = opened.readout.slices(dense[number])
            total += sum(divergence(mine, their) for mine, their in zip(ours, theirs, strict=True))
        return total / (len(windows) * self._windows.shape[1])

    def _place(self, plan: Sequence[int]) -> None:
        """Put a plan into the model; only linears whose level is another one change."""
        walk = self._walk
        wanted = {name: self._labels[level] for name, level in zip(self._linears, plan, strict=True)}
        for block in range(walk.layout.blocks):
            names = [name for group in walk.family.group_names(block) for name in group]
            # What has one level alone is in the file of each.
            moved = [name for name in names if self._placed.get(name) != wanted.get(name, self._labels[0])]
            files = {wanted.get(name, self._labels[0]) for name in moved}
            loaded = {label: self._kept.load(label, block) or {} for label in files}
            for name in moved:
                label = wanted.get(name, self._labels[0])
                self._placed[name] = label
                if parts := loaded[label].get(name, ()):
                    module: Any = walk.model.get_submodule(name)
                    original: Any = self._originals.setdefault(name, module)
                    made = CompressedLinear(parts, original.bias, original.weight.dtype)
                    replace_module(walk.model, name, made)

    def _told(self, what: str, done: int, total: int) -> None:
        # A search may be stopped between windows; how far it is, its method tells.
        self._walk.progress(self._at or Update(self._method, done, total, what))

    def _search_told(self, done: int, total: int, words: str) -> None:
        self._at = Update(self._method, done, total, words)
        self._walk.progress(self._at)


def _plain(stage: Stage, parameter: str, value: Any) -> dict[str, Any]:
    fields = discover().methods[stage.method].params.model_fields
    given = {parameter: value} if parameter in fields else {}
    told: dict[str, Any] = {"method": stage.method, "params": {**stage.params, **given}}
    # A stage on all linears reads as it does in the database of the Budget page.
    return told if stage.only is None else {**told, "only": stage.only}
