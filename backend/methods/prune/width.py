"""Take attention heads and MLP channels out of every block: thinner, smaller, faster, an ordinary model.

    unit: an MLP channel (a row of gate and up, a column of down), or a key-value head with the query heads
    that share it (their rows of q, k and v, their columns of o)
    taylor      sum over a unit's weights of |w dL/dw|        L: loss of the next token on the text
    activation  sum over what the unit puts out of (its column's square) (mean square of the input)
    magnitude   sum of w²;   random for comparison

The least important units of each block go, equally many in every block, since an ordinary configuration has
one width for all; first and last blocks, which lose most, are no exception here. Large MLP widths stay
multiples of 64 (or of 8) where they were, so that groups still divide them. A model whose configuration ties
the width of a head to the number of heads (OPT, GPT-2, GPT-NeoX) keeps its heads. Gradients are those of the
stored type. Local pruning, element-wise first-order importance: LLM-Pruner, arXiv 2305.11627, equation 5.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.errors import UserError
from backend.registry import Claim, method
from backend.shrink import channels_of, heads_of, keep_units, narrower, unit_sums
from backend.views import Work

Ratio = Annotated[float, Field(gt=0.0, lt=1.0, description="Share of the units of each kind that goes")]
Units = Annotated[Literal["channels", "heads", "both"], Field(description="What goes")]
Score = Annotated[
    Literal["taylor", "activation", "magnitude", "random"],
    Field(description="What tells how important one is"),
]
Samples = Annotated[int, Field(ge=1, le=4096, description="Calibration samples whose gradients are taken")]
# Widths that groups and hardware like; a step is at most this share of the width.
_STEPS = (64, 8)
_FINE = 1 / 16


def _kept(layout: Any, params: Mapping[str, Any]) -> tuple[int, int]:
    """How many heads and channels of a block stay."""
    heads, channels = heads_of(layout), channels_of(layout)
    asked = params["units"]
    if asked != "channels" and not heads:
        raise UserError(
            f"prune.width: units is {asked}, but {layout.family.name} ties the width of its heads to their "
            "number; allowed: channels"
        )
    left = channels - int(params["ratio"] * channels)
    step = next((step for step in _STEPS if channels % step == 0 and step <= _FINE * channels), 1)
    left = -(-left // step) * step
    less = heads - int(params["ratio"] * heads)
    if (less == heads) if asked == "heads" else (left == channels):
        raise UserError(
            f"prune.width: ratio {params['ratio']} leaves all {heads if asked == 'heads' else channels} "
            f"{'heads' if asked == 'heads' else 'channels'} of a block; allowed: more"
        )
    return (heads if asked == "channels" else less), (channels if asked == "heads" else left)


def _left(layout: Any, params: Mapping[str, Any]) -> Any:
    return narrower(layout, *_kept(layout, params))


@method(
    paper="arXiv:2305.11627",
    needs="norms",
    shrinks=_left,
    passes=lambda params: 3 * params["samples"] * (params["score"] == "taylor"),
    claim=Claim(
        "At a fifth of the MLP channels, those whose loss gradients matter least cost less than any others",
        whose="ours",
        paper_says="LLM-Pruner takes heads too, spares the first and last blocks, and tunes what is left.",
        better=({"method": "prune.width", "params": {"ratio": 0.2, "units": "channels"}},),
        worse=({"method": "prune.width", "params": {"ratio": 0.2, "units": "channels", "score": "random"}},),
    ),
)
def width(
    work: Work,
    *,
    ratio: Ratio = 0.2,
    units: Units = "channels",
    score: Score = "taylor",
    samples: Samples = 8,
) -> None:
    """The model with fewer units in every block."""
    heads, channels = _kept(work.layout, {"ratio": ratio, "units": units})
    rows, columns = {}, {}
    for name, importance in _importance(work, score, samples):
        rows[name], columns[name] = importance.sum(dim=1), importance.sum(dim=0)
    of_heads, of_channels = unit_sums(work.model, work.family, rows, columns)
    keep_units(
        work.model,
        work.family,
        [_best(sums, heads) for sums in of_heads] if units != "channels" else [],
        [_best(sums, channels) for sums in of_channels] if units != "heads" else [],
    )
    if units != "channels":
        work.report["key-value heads of a block"] = heads
    if units != "heads":
        work.report["MLP channels of a block"] = channels


def _importance(work: Work, score: str, samples: int) -> Iterator[tuple[str, Tensor]]:
    """Linear by linear what each weight [out, in] counts for."""
    if score == "taylor":
        for layer, gradient in work.gradients(samples):
            yield layer.name, (layer.weight * gradient).abs()
        return
    ends = tuple(name for number in (1, 3) for name in work.family.linears[number])
    for layer in work.layers("norms" if score == "activation" else "nothing"):
        if score == "random":
            yield layer.name, torch.rand(layer.weight.shape, generator=work.rng)
        elif score == "magnitude":
            yield layer.name, layer.weight.square()
        else:
            # What makes a unit's inputs is counted by what comes out of it.
            assert layer.statistics.squares is not None
            seen = layer.statistics.squares.float() / max(1, layer.statistics.tokens)
            matters = layer.name.endswith(ends)
            yield layer.name, layer.weight.square() * seen if matters else torch.zeros_like(layer.weight)


def _best(sums: Tensor, count: int) -> list[int]:
    found: list[int] = sums.topk(count).indices.sort().values.tolist()
    return found
