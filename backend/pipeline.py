"""Compress a model by a recipe: the only code that walks the blocks."""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend import tuning
from backend.artifacts import (
    OpenModel,
    computed_wider,
    dense_tensors,
    device_of,
    is_whole,
    load_model,
    load_tokenizer,
    replace_module,
    save_artifact,
    speeds,
    stored_config,
    stored_generation,
)
from backend.checkpoint_files import generation_rules
from backend.checkpoints import Checkpoints
from backend.effort import first_rates
from backend.errors import UserError
from backend.experience import PastRun, learned_rates
from backend.facts import ModelFacts, facts
from backend.families import blocks_of
from backend.feed import Feed
from backend.fisher import weight_gradients
from backend.headway import Headway, parts_of, seconds_of
from backend.host import Host
from backend.linear import CompressedLinear
from backend.models import locate
from backend.padding import applied
from backend.parts import Input, Part, gone, inputs_of
from backend.precision import name_of
from backend.progress import SURVEY, WALK, Progress, Update, silent
from backend.proof import first_overflow, overflow, prove_walk
from backend.recipe import Recipe, Stage, planned_stages
from backend.registry import Method, Need, discover
from backend.report import Report, row
from backend.resident import forget_peak
from backend.rules import check_layers
from backend.shrink import few_blocks, shrunk, without_blocks
from backend.solvers.probing import answers, apart, probe_tokens
from backend.statistics import Gatherer, read_statistics, statistics_file, write_statistics
from backend.tables import Tables
from backend.text import calibration
from backend.training import text_loss
from backend.trials import Trials
from backend.views import Layer, Statistics, Work, most

# Samples that a search for the first block with an overflow reads.
_FEW_SAMPLES = 8
# Tokens that a transform is tried on, and the samples that they are cut into for its statistics.
_PROBE_TOKENS, _PROBES = 64, 4


@torch.inference_mode()
def compress(
    recipe: Recipe,
    host: Host,
    artifact: Path,
    scratch: Path,
    progress: Progress,
    past: Sequence[PastRun] = (),
) -> Report:
    """Compress by all stages and write `artifact`; finished blocks in `scratch` are taken up, not done again.

    What `past` runs took tells which share of the work a part is likely to be.

    Raises UserError for a recipe or model that cannot work; whatever `progress` raises stops the work.
    """
    report = Report(device_of(host))
    forget_peak(report.device)
    with report.timed("load"):
        progress(Update("load", 0, 1, recipe.model))
        layout = facts(recipe.model, host)
        if layout.notes:
            report.notes["model"] = {"not part of what is measured": "; ".join(layout.notes)}
        last = shrunk(layout, recipe.stages)
        check_layers(recipe, last.layers, last.positions, last.tables)
        opened = load_model(layout, host)
        progress(Update("load", 1, 1, recipe.model))
    rates = learned_rates(past, first_rates(*speeds(layout, host)))
    headway = Headway(progress, seconds_of(recipe, last, rates))
    walk = Walk(recipe, layout, opened, host, scratch, headway, report)
    together = parts_of(list(enumerate(recipe.stages, start=1)))
    for at, part in enumerate(together):
        headway.begin(at)
        number, stage = part[0]
        method = discover().methods[stage.method]
        if method.shape == "work":
            later = [one for rest in together[at + 1 :] for one in rest]
            walk.whole(number, stage, method, later)
        else:
            walk.blocks(part)
    with report.timed("save"):
        progress(Update("save", 0, 1))
        parts = {
            name: part for block in range(walk.layout.blocks) for name, part in walk.parts(block).items()
        } | walk.tables.parts
        config, generation = stored_config(opened.model), stored_generation(opened.model)
        dense = dense_tensors(opened.model, set(parts))
        rules = generation_rules(locate(recipe.model, host), recipe.model)
        # The dense linears are not needed any more, and the parts are about to be read back.
        del opened, walk
        save_artifact(artifact, dense, parts, config, generation, layout, recipe.to_json(), rules)
        progress(Update("save", 1, 1))
    return report


class Walk:
    """The model on its way through the stages; what is finished lies in `scratch`, block by block."""

    def __init__(
        self,
        recipe: Recipe,
        layout: ModelFacts,
        opened: OpenModel,
        host: Host,
        scratch: Path,
        progress: Progress,
        report: Report,
    ) -> None:
        self.recipe, self.layout, self.opened, self.host = recipe, layout, opened, host
        self.progress, self.report = progress, report
        prove_walk(opened, layout, host)
        self.checkpoints = Checkpoints(scratch, opened.device)
        self.model, self.family = opened.model, opened.family
        self.plan: dict[str, dict[str, Any]] = {name: dict(given) for name, given in recipe.plan.items()}
        self.latest: str | None = None
        # Stages that changed the model itself, and the linears whose inputs come changed.
        self.changes: list[str] = []
        self.turned: set[str] = set()
        self.tables = Tables()
        # The text of the stages at hand where they have one of their own, and the samples of each text.
        self._text = ""
        self._tokens: dict[str, Tensor] = {}
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.recipe.model, self.host)
        return self._tokenizer

    @property
    def tokens(self) -> Tensor:
        """Calibration token ids [samples, length]."""
        wanted = self.recipe.calibration
        text = self._text or wanted.text
        if text not in self._tokens:
            found = calibration(text, self.tokenizer, wanted.samples, wanted.length, wanted.seed, self.host)
            told = {f"text of a stage, {text}": found.protocol} if self._text else found.protocol
            self.report.calibration |= told | {"compute_dtype": name_of(self.opened.compute_dtype)}
            self._tokens[text] = found.ids
        return self._tokens[text]

    def whole(
        self, number: int, stage: Stage, method: Method, later: Sequence[tuple[int, Stage]] = ()
    ) -> None:
        """Hand the whole model to a method; `later` are the stages after it."""
        self._text = stage.text
        try:
            if method.kind == "transform":
                self._prove(number, stage, method)
            self._whole(number, stage, method, later)
        finally:
            self._text = ""

    def _prove(self, number: int, stage: Stage, method: Method) -> None:
        """UserError unless a transform leaves the logits of this model as they are: tried in float32, where
        rounding hides nothing, on a copy of its first and last blocks."""
        kept = {0, self.layout.blocks - 1}
        few = OpenModel(
            few_blocks(self.model, self.family, kept), self.family, self.opened.name, self.opened.device
        )
        ids = probe_tokens(few.model, _PROBE_TOKENS)
        layout = without_blocks(self.layout, self.layout.blocks - len(kept), stage.method)
        with tempfile.TemporaryDirectory() as home:
            host = replace(self.host, home=Path(home))
            walk = Walk(self.recipe, layout, few, host, Path(home), silent, Report(few.device))
            walk._text, walk._tokenizer = stage.text, self.tokenizer
            walk._tokens[stage.text or self.recipe.calibration.text] = ids.cpu().view(_PROBES, -1)
            before = answers(few.model, ids)
            walk._whole(number, stage, method, ())
            parts = {name: part for block in range(layout.blocks) for name, part in walk.parts(block).items()}
            with walk.swapped(parts):
                off = apart(answers(few.model, ids), before)
        if off:
            raise UserError(
                f"stage {number}, {stage.method}: changes what this {self.family.name} model computes, its "
                f"logits by {off:.1%}; allowed: a chain without it"
            )

    def _whole(self, number: int, stage: Stage, method: Method, later: Sequence[tuple[int, Stage]]) -> None:
        if method.plans and (kept := self.checkpoints.plan(number)) is not None:
            self.plan.update(kept)
            self.report.plan = self.plan
            return
        trials = Trials(self, number, stage.method, later)
        with self.report.timed(f"stage {number}, {stage.method}"):
            self.progress(Update(stage.method, 0, 1))
            work = Work(
                self.model, self.tokenizer, self.family, self.tokens, self.plan,
                self.rng(str(number)), {}, partial(self._survey, stage.method), trials.choices,
                partial(tuning.blocks, self, number, stage), covers=stage.covers, layout=self.layout,
                gradients=partial(self._gradients, stage.method),
                told=lambda done, total, words: self.progress(Update(stage.method, done, total, words)),
                loss=partial(text_loss, self), kept=self.checkpoints.kept(number), takers=trials.takers,
            )  # fmt: skip
            try:
                method.fn(work, **method.params.model_validate(stage.params).model_dump())
            except UserError as error:
                told = str(error)
                named = told.startswith(("stage ", stage.method))
                raise UserError(told if named else f"stage {number}, {stage.method}: {told}") from None
            finally:
                trials.restore()
            if work.report:
                self.report.notes[f"stage {number}, {stage.method}"] = work.report
            if method.plans:
                self.checkpoints.keep_plan(number, self.plan)
                self.report.plan = self.plan
            else:
                # Statistics of the model as it was are none of the model as it is now.
                self.changes.append(f"{self.recipe.seed} {stage.model_dump_json()}")
                self.layout = shrunk(self.layout, [stage])
                self._keep(number, stage.method, work.parts)
            self.progress(Update(stage.method, 1, 1))

    def _keep(self, number: int, method: str, made: Mapping[str, tuple[Part, ...]]) -> None:
        """Take over what a method made of whole linears and of tables; the others stay as they were."""
        for name in made.keys() & set(self.layout.tables):
            self.tables.put(self.model, name, made[name])
        if not made.keys() & set(self.layout.layers):
            return
        label, nothing = str(number), Statistics()
        for block in range(self.layout.blocks):
            now, rows = self.parts(block), []
            names = [name for group in self.family.group_names(block) for name in group if name in made]
            for name in (name for name in names if not gone(now.get(name, ()))):
                now[name] = (*inputs_of(now.get(name, ())), *made[name])
                rows.append(self.row(name, number, method, now[name], nothing, 0.0))
                if any(change.moves for change in inputs_of(now[name])):
                    self.turned.add(name)
            self.checkpoints.save(label, block, now, rows)
            self.report.layers += rows
        self.latest = label

    def blocks(self, stages: Sequence[tuple[int, Stage]]) -> None:
        """One walk over all blocks that applies `stages`, of one text, to every linear they cover."""
        self._text = stages[0][1].text
        try:
            self._blocks(stages)
        finally:
            self._text = ""

    def _blocks(self, stages: Sequence[tuple[int, Stage]]) -> None:
        label = "+".join(str(number) for number, _ in stages)
        needs = self._needs(stages)
        count = len(blocks_of(self.model, self.family))
        self.tables.apply(self, stages, label)
        previous, self.latest = self.latest, label
        dense_order = self.recipe.calibration.order == "dense"
        asks = any(need != "nothing" for need in needs.values())
        feeds = (
            Feed(self.opened, self.tokens, self.progress)
            if asks and not (dense_order and self._cached_all(count, needs))
            else None
        )
        # Behind the last block that is asked about nothing has to be known.
        last = max(
            (self.family.place(name)[0] for name, need in needs.items() if need != "nothing"), default=0
        )
        for block in range(count):
            self.progress(Update(WALK, block, count, f"block {block + 1} of {count}"))
            finished = self.checkpoints.load(label, block)
            if finished is None:
                before = self.parts_of(previous, block)
                finished = dict(before)
                rows: list[dict[str, Any]] = []
                groups = self.family.group_names(block)
                splits = [[group] for group in groups] if self._splits(needs) else [groups]
                for split in splits:
                    inside = finished if self._splits(needs) else before
                    statistics = self._statistics(block, split, needs, feeds, inside, dense_order)
                    for group in split:
                        for name in group:
                            self.progress(Update(WALK, block, count, name))
                            covering = planned_stages(stages, self.plan, name)
                            finished[name], made = self.apply(
                                name, covering, finished.get(name, ()), statistics[group[0]]
                            )
                            rows += made
                finished = {name: parts for name, parts in finished.items() if parts}
                self.checkpoints.save(label, block, finished, rows)
            if feeds and block < last:
                with self.report.timed("outputs"), self.swapped({} if dense_order else finished):
                    feeds.advance(block)
        self.progress(Update(WALK, count, count))
        self.report.add([row for block in range(count) for row in self.checkpoints.rows(label, block)])

    def _survey(self, told: str, need: Need) -> Iterator[Layer]:
        for _, layers in self.survey(told, need):
            yield from layers

    def survey(self, told: str, need: Need) -> Iterator[tuple[int, list[Layer]]]:
        """Block by block every linear as it is now with the statistics of its inputs; nothing is changed."""
        for block, found in self.gathered(SURVEY, need):
            yield block, self._layers(block, told, found)

    def gathered(self, told: str, need: Need) -> Iterator[tuple[int, dict[str, Statistics]]]:
        """Block by block {linear: statistics of its inputs as they come}; nothing is changed."""
        # As in `_needs`: of turned inputs nothing is known from the channels as they were.
        needs: dict[str, Need] = {
            name: "gram" if need == "norms" and name in self.turned else need for name in self.layout.layers
        }
        count = self.layout.blocks
        untouched = self.latest is None
        cached = untouched and self._cached_all(count, needs)
        feed = None if need == "nothing" or cached else Feed(self.opened, self.tokens, self.progress, told)
        for block in range(count):
            self.progress(Update(told, block, count, f"block {block + 1} of {count}"))
            yield block, self._gathered(block, needs, feed)
            if feed and block + 1 < count:
                with self.report.timed("outputs"), self.swapped(self.parts(block)):
                    feed.advance(block)

    def _gradients(self, told: str, samples: int) -> Iterator[tuple[Layer, Tensor]]:
        scratch = self.host.cache / "gradients"
        tokens = self.tokens[:samples]
        for name, gradient in weight_gradients(self.opened, tokens, self.progress, scratch):
            block, _ = self.family.place(name)
            parts = self.parts(block).get(name, ())
            yield self.layer(name, parts, Statistics(), f"{name}|{told}"), gradient

    def look(self, name: str, told: str, need: Need) -> Layer:
        """One linear of the untouched model with the statistics of its inputs."""
        needs = dict.fromkeys(self.layout.layers, need)
        block, _ = self.family.place(name)
        feed = None
        if not is_whole(self._cache_file(block, needs)):
            feed = Feed(self.opened, self.tokens, self.progress, SURVEY)
            for before in range(block):
                feed.advance(before)
        found = self._gathered(block, needs, feed)
        return next(layer for layer in self._layers(block, told, found) if layer.name == name)

    def _gathered(self, block: int, needs: Mapping[str, Need], feed: Feed | None) -> dict[str, Statistics]:
        groups = self.family.group_names(block)
        found = self._statistics(block, groups, needs, feed, self.parts(block), self.latest is None)
        return {name: found[group[0]] for group in groups for name in group}

    def _layers(self, block: int, told: str, found: Mapping[str, Statistics]) -> list[Layer]:
        parts = self.parts(block)
        return [self.layer(name, parts.get(name, ()), seen, f"{name}|{told}") for name, seen in found.items()]

    def parts(self, block: int) -> dict[str, tuple[Part, ...]]:
        """What the walks so far made of a block's linears."""
        return self.parts_of(self.latest, block)

    def _splits(self, needs: Mapping[str, Need]) -> bool:
        return self.recipe.calibration.order == "true_sequential" and any(
            need != "nothing" for need in needs.values()
        )

    def _needs(self, stages: Sequence[tuple[int, Stage]]) -> dict[str, Need]:
        methods = discover().methods
        needs: dict[str, Need] = {}
        for name in self.layout.layers:
            needs[name] = most(
                methods[stage.method].asks(stage.params)
                for _, stage in planned_stages(stages, self.plan, name)
            )
            if needs[name] == "norms" and name in self.turned:
                # Of turned inputs nothing is known from the channels as they were.
                needs[name] = "gram"
        return needs

    def apply(
        self,
        name: str,
        stages: Sequence[tuple[int, Stage]],
        parts: tuple[Part, ...],
        statistics: Statistics,
    ) -> tuple[tuple[Part, ...], list[dict[str, Any]]]:
        """What numbered stages make of a linear that so far consists of `parts`; a report row each."""
        methods = discover().methods
        rows: list[dict[str, Any]] = []
        if gone(parts):
            return parts, rows
        for number, stage in stages:
            start = time.perf_counter()
            method = methods[stage.method]
            params = method.params.model_validate(stage.params).model_dump()
            layer = self.layer(name, parts, statistics, f"{name}|{number}")
            with self.report.timed(f"stage {number}, {stage.method}"):
                # What is left out needs nothing done to its inputs.
                before = () if method.empties else inputs_of(parts)
                parts = (*before, *applied(method, layer, params))
            told = self.row(name, number, stage.method, parts, statistics, time.perf_counter() - start)
            rows.append(told | ({"curves": layer.curves} if layer.curves else {}))
            if method.empties:
                break
        return parts, rows

    def layer(self, name: str, parts: tuple[Part, ...], statistics: Statistics, told: str) -> Layer:
        """A linear that consists of `parts`, with a generator seeded by `told`."""
        weight, dtype = self._weight(name)
        return _layer(name, weight, parts, statistics, self.rng(told), dtype)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write parameters of the model, named in full, in the type that they have there."""
        for name, tensor in tensors.items():
            self.model.get_parameter(name).copy_(tensor)

    def row(
        self,
        name: str,
        number: int,
        method: str,
        parts: tuple[Part, ...],
        statistics: Statistics,
        seconds: float,
    ) -> dict[str, Any]:
        """What the report tells of a linear after a stage."""
        made = self.layer(name, parts, statistics, name)
        return row(made, self.family.place(name), number, method, parts, seconds)

    def _weight(self, name: str) -> tuple[Tensor, torch.dtype]:
        """A linear's weight [out, in] in float32, and the type that the model stores it in."""
        module: Any = self.model.get_submodule(name)
        stored: Tensor = module.weight.detach()
        return (stored.T if self.family.transposed else stored).float().contiguous(), stored.dtype

    def _statistics(
        self,
        block: int,
        groups: Sequence[Sequence[str]],
        needs: Mapping[str, Need],
        feeds: Feed | None,
        inside: Mapping[str, tuple[Part, ...]],
        dense_order: bool,
    ) -> dict[str, Statistics]:
        wanted = [group for group in groups if any(needs[name] != "nothing" for name in group)]
        if not wanted:
            return {group[0]: Statistics() for group in groups}
        cache = self._cache_file(block, needs) if dense_order else None
        if cache is not None and is_whole(cache):
            return read_statistics(cache, groups, self.opened.device)
        assert feeds is not None
        with self.report.timed("statistics"):
            with (
                self.swapped({} if dense_order else inside),
                Gatherer(self.model, groups, needs) as gatherer,
            ):
                feeds.observe(block, gatherer)
            found = {group[0]: gatherer.of(group) for group in groups}
        if not all(seen.finite for seen in found.values()):
            raise self._not_finite(block)
        if cache is not None:
            write_statistics(cache, found)
        return found

    def _not_finite(self, block: int) -> UserError:
        """What to say when the inputs of a block's linears are no numbers: whose trouble that is."""
        for ids in self.tokens[:_FEW_SAMPLES]:
            if where := first_overflow(self.opened, ids):
                return overflow(self.recipe.model, where)
        return UserError(
            f"block {block + 1}: behind what the stages made of the model, its inputs are no numbers in "
            f"{name_of(self.opened.compute_dtype)}; allowed: milder stages, or PARETOSCOPE_COMPUTE=float32"
        )

    def _cache_file(self, block: int, needs: Mapping[str, Need]) -> Path:
        # By the name that a block's groups gather under, so that recipes with the same needs share it.
        asked = [needs[name] for group in self.family.group_names(block) for name in group]
        model = [self.layout.fingerprint, *computed_wider(self.layout, self.host), *self.changes]
        return statistics_file(self.host.cache, block, model, self.tokens, asked)

    def _cached_all(self, count: int, needs: Mapping[str, Need]) -> bool:
        asking = {self.family.place(name)[0] for name, need in needs.items() if need != "nothing"}
        return all(is_whole(self._cache_file(block, needs)) for block in range(count) if block in asking)

    @contextmanager
    def swapped(self, parts: Mapping[str, tuple[Part, ...]]) -> Iterator[None]:
        originals = {}
        for name, pieces in parts.items():
            if not pieces:
                continue
            module: Any = self.model.get_submodule(name)
            originals[name] = module
            dtype = module.weight.dtype
            replace_module(self.model, name, CompressedLinear(pieces, module.bias, dtype))
        try:
            yield
        finally:
            for name, module in originals.items():
                replace_module(self.model, name, module)

    def parts_of(self, label: str | None, block: int) -> dict[str, tuple[Part, ...]]:
        return {} if label is None else self.checkpoints.load(label, block) or {}

    def rng(self, what: str) -> torch.Generator:
        seed = hashlib.sha256(f"{self.recipe.seed}|{what}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))


def _layer(
    name: str,
    weight: Tensor,
    parts: tuple[Part, ...],
    statistics: Statistics,
    rng: torch.Generator,
    dtype: torch.dtype,
) -> Layer:
    """A linear as its changed inputs meet it: the weight that belongs to them, and their statistics."""
    inputs = inputs_of(parts)
    for change in inputs:
        weight = change.of_weight(weight)
    own = tuple(part for part in parts if not isinstance(part, Input))
    return Layer(name, weight, own, statistics.through(inputs), rng, dtype)
