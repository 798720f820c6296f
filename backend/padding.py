"""Groups that do not divide a row: the last one is shorter.

A method is handed the linear with columns of zeros that nothing is ever multiplied with, marked as pruned; of
what it makes of these columns nothing is stored. So a row of 576 weights in groups of 128 has four groups and
a half, codes for 576 weights and five scales.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from backend.coded import Coded
from backend.packing import pack
from backend.parameters import GROUPED_ROW
from backend.parts import Outliers, Part
from backend.positions import pack_mask
from backend.registry import Method
from backend.views import Layer, Statistics


@dataclass
class _Padded(Layer):
    """A linear [out, in + more] whose last columns count as pruned."""

    more: int = 0

    @property
    def now(self) -> Tensor:
        inside = self.weight[:, : self.weight.shape[1] - self.more]
        return pad(_plain(self, inside).now, (0, self.more))

    @property
    def kept(self) -> Tensor:
        rows, inputs = self.weight.shape
        mine = _plain(self, self.weight[:, : inputs - self.more]).kept
        if mine is None:
            mine = torch.ones(rows, inputs - self.more, dtype=torch.bool, device=self.weight.device)
        return pad(mine, (0, self.more))


def _plain(layer: Layer, weight: Tensor) -> Layer:
    """The plain linear of a weight."""
    return Layer(layer.name, weight, layer.parts, layer.statistics, layer.rng, layer.dtype)


def applied(method: Method, layer: Layer, params: Mapping[str, Any]) -> tuple[Part, ...]:
    """What a method makes of a linear, the last group of a row shorter where that has to be."""
    # Groups along the outputs have nothing to do with how long a row is.
    along_row = method.pads and params.get("axis") != "outputs"
    more = _missing(layer.weight.shape[1], params.get("group_size", GROUPED_ROW)) if along_row else 0
    made: tuple[Part, ...] = method.fn(_padded(layer, more) if more else layer, **params)
    return tuple(_cut(part, more, layer.kept is not None) for part in made) if more else made


def _missing(inputs: int, group_size: int) -> int:
    """How many inputs the last group of a row lacks."""
    return 0 if group_size == GROUPED_ROW else -inputs % group_size


def _padded(layer: Layer, more: int) -> Layer:
    """The linear with so many columns more."""
    return _Padded(
        layer.name,
        pad(layer.weight, (0, more)),
        layer.parts,
        layer.statistics.once(("padded", more), lambda: _statistics(layer.statistics, more)),
        layer.rng,
        layer.dtype,
        layer.curves,
        more,
    )


def _cut(part: Part, more: int, pruned: bool) -> Part:
    """A part without so many columns at its end; without a mask unless the linear was `pruned`."""
    rows, inputs = part.shape[0], part.shape[1] - more
    if isinstance(part, Outliers):
        return replace(part, shape=(rows, inputs))
    kept = part.kept()
    assert isinstance(part, Coded)
    assert kept is not None
    kept, codes = kept[:, :inputs], part.plain_codes()[:, :inputs]
    return replace(
        part,
        shape=(rows, inputs),
        codes=pack(codes[kept] if pruned else codes, part.width),
        mask=pack_mask(kept) if pruned else None,
    )


def _statistics(found: Statistics, more: int) -> Statistics:
    """Inputs that are never there; on the diagonal the mean, so that damping is what it was."""
    gram = None
    if found.gram is not None:
        gram = pad(found.gram, (0, more, 0, more))
        gram.diagonal()[-more:] = found.gram.diagonal().mean()

    def longer(one: Tensor | None) -> Tensor | None:
        return None if one is None else pad(one, (0, more))

    return Statistics(
        found.tokens, longer(found.squares), gram, longer(found.sums), longer(found.magnitudes),
        longer(found.absolutes), longer(found.largest), longer(found.sample),
    )  # fmt: skip
