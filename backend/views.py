"""All that a method may see: one Layer, or the Work on a whole model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from backend.parts import Part, combined

Cached = TypeVar("Cached")
# What a method must know of a linear's inputs: nothing, sums over each channel, or also the Gram matrix.
Need = Literal["nothing", "norms", "gram"]


@dataclass
class Statistics:
    """Second moments of a linear's inputs X [tokens, in] on the calibration text.

    gram        C = XᵀX [in, in] float64, or None where no method asked for it
    squares     sum of squares of each input channel [in] float64, or None where nothing was gathered
    sums        sum of each input channel [in] float64, there whenever squares are
    magnitudes  largest mean of |x| over one calibration sample [in] float64, there whenever squares are
    """

    tokens: int = 0
    squares: Tensor | None = None
    gram: Tensor | None = None
    sums: Tensor | None = None
    magnitudes: Tensor | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Any, make: Callable[[], Cached]) -> Cached:
        """Compute what depends on the inputs alone once for all linears that share them."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


@dataclass
class Layer:
    """One linear y = x Wᵀ on its way through the stages.

    name        full module name
    weight      the original W [out, in], float32; never written to
    parts       what the earlier stages made of it; their sum is the weight so far
    statistics  of its inputs
    rng         a generator seeded by recipe, layer and stage
    dtype       the type the model stores its values in
    """

    name: str
    weight: Tensor
    parts: tuple[Part, ...]
    statistics: Statistics
    rng: torch.Generator
    dtype: torch.dtype

    @property
    def now(self) -> Tensor:
        """The weight so far [out, in] float32, decoded from the parts as they would be stored."""
        return combined(self.parts) if self.parts else self.weight.clone()

    @property
    def kept(self) -> Tensor | None:
        """Mask [out, in] of the weights that pruning left, or None when nothing was pruned."""
        for part in self.parts:
            mask = part.kept()
            if mask is not None:
                return mask
        return None


@dataclass
class Work:
    """A whole model in the hands of a method that changes more than single linears.

    plan maps a linear's name to parameters that are laid over those of later stages.
    layers(need) goes through all linears as they are now, with the statistics of their inputs; one block's
    statistics are in memory at a time, so take what is wanted from a layer before the next.
    """

    model: torch.nn.Module
    tokenizer: Any
    family: Any
    tokens: Tensor
    plan: dict[str, dict[str, Any]]
    rng: torch.Generator
    report: dict[str, Any]
    layers: Callable[[Need], Iterator[Layer]]
