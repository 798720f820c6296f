"""All that a method may see: one Layer, or the Work on a whole model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from backend.parts import Input, Part, combined

# The entry of a plan that lists the methods that leave a linear alone.
SKIP = "skip"

Cached = TypeVar("Cached")
# What a method must know of a linear's inputs: nothing, sums over each channel, also the Gram matrix, or also
# a sample of the inputs themselves.
Need = Literal["nothing", "norms", "gram", "inputs"]


def most(needs: Iterable[Need]) -> Need:
    """The need that answers all of `needs`."""
    return max(needs, key=get_args(Need).index, default="nothing")


@dataclass
class Statistics:
    """Second moments of a linear's inputs X [tokens, in] on the calibration text.

    gram        C = XᵀX [in, in] float64, or None where no method asked for it
    squares     sum of squares of each input channel [in] float64, or None where nothing was gathered
    sums        sum of each input channel [in] float64, there whenever squares are
    magnitudes  largest mean of |x| over one calibration sample [in] float64, there whenever squares are
    absolutes   sum of |x| [in] float64, there whenever squares are
    largest     largest |x| [in] float64, there whenever squares are
    sample      some of the inputs, drawn with equal chances [up to 512 tokens, in] float32, or None where no
                method asked for them
    """

    tokens: int = 0
    squares: Tensor | None = None
    gram: Tensor | None = None
    sums: Tensor | None = None
    magnitudes: Tensor | None = None
    absolutes: Tensor | None = None
    largest: Tensor | None = None
    sample: Tensor | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def finite(self) -> bool:
        """Whether all inputs that were seen are numbers."""
        return self.squares is None or bool(torch.isfinite(self.squares).all())

    def once(self, key: Any, make: Callable[[], Cached]) -> Cached:
        """Compute what depends on the inputs alone once for all linears that share them."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def through(self, inputs: tuple[Input, ...]) -> "Statistics":
        """Those of the inputs as they come out of `inputs`, rounding aside. Where these mix channels, nothing
        is known of single ones beyond what the Gram matrix tells."""
        found = self
        for change in inputs:
            if change.moves:
                factors = change.factors
                found = found._mixed(change) if factors is None else found._scaled(change, factors)
        return found

    def _mixed(self, change: Input) -> "Statistics":
        gram = None if self.gram is None else change.of_gram(self.gram)
        sample = None if self.sample is None else change(self.sample)
        return Statistics(self.tokens, None if gram is None else gram.diagonal().clone(), gram, sample=sample)

    def _scaled(self, change: Input, factors: Tensor) -> "Statistics":
        def times(one: Tensor | None, power: int = 1) -> Tensor | None:
            return None if one is None else one * factors.to(one.dtype) ** power

        return Statistics(
            self.tokens, times(self.squares, 2), None if self.gram is None else change.of_gram(self.gram),
            times(self.sums), times(self.magnitudes), times(self.absolutes), times(self.largest),
            times(self.sample),
        )  # fmt: skip


@dataclass
class Layer:
    """One linear y = x Wᵀ on its way through the stages.

    name        full module name
    weight      the original W [out, in], float32; never written to
    parts       what the earlier stages made of it; their sum is the weight so far
    statistics  of its inputs
    rng         a generator seeded by recipe, layer and stage
    dtype       the type the model stores its values in
    curves      what the method tells of its work: words to as many numbers for each linear of the stage; the
                run's card draws their mean
    """

    name: str
    weight: Tensor
    parts: tuple[Part, ...]
    statistics: Statistics
    rng: torch.Generator
    dtype: torch.dtype
    curves: dict[str, list[float]] = field(default_factory=dict)

    @property
    def now(self) -> Tensor:
        """The weight so far [out, in] float32, decoded from the parts as they would be stored."""
        if self.parts:
            return combined(self.parts).contiguous()
        # Of a weight that is stored the other way round a plain copy would keep the strides.
        return self.weight.clone(memory_format=torch.contiguous_format)

    @property
    def kept(self) -> Tensor | None:
        """Mask [out, in] of the weights that pruning left, or None when nothing was pruned."""
        for part in self.parts:
            mask = part.kept()
            if mask is not None:
                return mask
        return None


def merged(planned: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """What a linear gets when one plan is laid over another; what either skips is skipped."""
    skipped = list(dict.fromkeys([*planned.get(SKIP, ()), *more.get(SKIP, ())]))
    return {**planned, **more, **({SKIP: skipped} if skipped else {})}


@dataclass(frozen=True)
class Choices:
    """What the stages after an allocate stage make of each linear at each of some levels.

    linears     names of the linears that a later stage gives the parameter, in the order of the model
    values      of the parameter, one for each of the first levels
    levels      what a plan gives a linear: {parameter: value}, with `skip` the methods that leave it alone;
                in a mixture those that skip all they can come first, one for each value
    bytes       [linears][levels] of what would be stored
    errors      [linears][levels] output error on the calibration text, relative to the output
    windows     how many windows of text there are that no level was fitted on
    predicted   () -> [linears][levels] KL(dense || this one changed) in nats a token, predicted
    divergence  (plan, windows) -> KL(dense || plan) in nats a token, measured on the windows of those
                numbers; a plan is the position of a level for each linear
    told        (done, total, words) tells how far a search is
    halves      positions of the linears of each attention and each MLP that may be left out whole
    rest        what a plan gives linears that have no levels
    """

    linears: tuple[str, ...]
    values: tuple[Any, ...]
    levels: tuple[Mapping[str, Any], ...]
    bytes: tuple[tuple[int, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    windows: int
    predicted: Callable[[], list[list[float]]]
    divergence: Callable[[Sequence[int], Sequence[int]], float]
    told: Callable[[int, int, str], None]
    halves: tuple[tuple[int, ...], ...] = ()
    rest: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def plan(self, chosen: Sequence[int]) -> dict[str, dict[str, Any]]:
        """{linear: what a plan gives it} of a chosen position for each linear."""
        found = {name: dict(self.levels[at]) for name, at in zip(self.linears, chosen, strict=True)}
        return found | {name: dict(given) for name, given in self.rest.items()}


@dataclass
class Block:
    """One decoder block in the hands of a method that fits what replaces its linears by gradients.

    layers   its linears by name as they are now, without statistics
    biases   [out] float32 of each linear, or None
    inputs   [samples, length, d]: what the compressed blocks before it put out
    targets  [samples, length, d]: what the dense block makes of what the dense blocks before it put out
    changes  what the inputs of each linear go through before the product
    outputs  (states, {linear: x -> y}, {linear: factors [in]}) -> what the block in float32 makes of some
             samples' states with these functions in place of its linears; the inputs of each are multiplied
             by its factors, if any, then changed, then handed over. Other linears are the dense ones
    told     (done, total, words) tells how far the work on this block is
    parts    what the method makes of linears, put there before it asks for the next block
    changed  {parameter of the model: what it becomes}, put there likewise
    """

    number: int
    layers: dict[str, Layer]
    biases: dict[str, Tensor | None]
    changes: dict[str, tuple[Input, ...]]
    inputs: Tensor
    targets: Tensor
    outputs: Callable[..., Tensor]
    told: Callable[[int, int, str], None]
    rng: torch.Generator
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """Tensors by name that a stage leaves for itself in case it is stopped; None where it left none."""

    load: Callable[[], dict[str, Tensor] | None]
    save: Callable[[Mapping[str, Tensor]], None]


NOTHING_KEPT = Kept(lambda: None, lambda tensors: None)


@dataclass
class Work:
    """A whole model in the hands of a method that changes more than single linears.

    plan maps a linear's name to parameters that are laid over those of later stages.
    parts maps a linear's name to what the method makes of it, for a method that does so; it may change the
    weights of the model as well, as long as the model goes on computing what it did.
    covers says whether the stage is about a linear; layout tells the model's shapes as it is (ModelFacts).
    report takes what the run's card tells of the work: words to plain values, or lists of numbers.
    layers(need) goes through all linears as they are now, with the statistics of their inputs; one block's
    statistics are in memory at a time, so take what is wanted from a layer before the next.
    choices(over, values) makes what the later stages make of every linear for each value of the parameter
    `over`; over a mixture the values are bits, each with and without the later stages that prune and those
    that compensate.
    put(plan) lays a plan over what `plan` holds.
    takers(parameter, linear) gives the parameters of each later stage that takes this one for the linear.
    gradients(samples) goes through all linears with the gradient [out, in] float32 of the next token's mean
    loss, in nats, on that many calibration samples.
    told(done, total, words) tells how far the work is.
    blocks(samples, batch) goes through the blocks that are not finished, on that many calibration samples;
    what a method hands back for a block is kept before the next one comes, and put into the model for it.
    loss() gives (token ids [samples, length], {linear: weight [out, in]}) -> nats of the next token, for
    gradients: of a float32 copy of the model as it is, with these weights in place.
    kept holds what the method saved before it was stopped.
    """

    model: torch.nn.Module
    tokenizer: Any
    family: Any
    tokens: Tensor
    plan: dict[str, dict[str, Any]]
    rng: torch.Generator
    report: dict[str, Any]
    layers: Callable[[Need], Iterator[Layer]]
    choices: Callable[[str, Sequence[Any]], Choices]
    blocks: Callable[[int, int], Iterator[Block]] = lambda samples, batch: iter(())
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    covers: Callable[[str], bool] = lambda name: True
    loss: Callable[[], Callable[[Tensor, Mapping[str, Tensor]], Tensor]] = lambda: lambda ids, weights: ids
    kept: Kept = NOTHING_KEPT
    layout: Any = None
    gradients: Callable[[int], Iterator[tuple[Layer, Tensor]]] = lambda samples: iter(())
    told: Callable[[int, int, str], None] = lambda done, total, words: None
    takers: Callable[[str, str], list[Mapping[str, Any]]] = lambda parameter, linear: []

    def put(self, plan: Mapping[str, Mapping[str, Any]]) -> None:
        """Lay a plan over the one that there is."""
        for name, planned in plan.items():
            self.plan[name] = merged(self.plan.get(name, {}), planned)
