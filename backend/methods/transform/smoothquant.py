"""Move part of the range of the activations into the weights, through the norm before them.

    s_j = max_t |x_tj|**alpha / max_i |w_ij|**(1 - alpha),  i over the rows of all linears behind the norm
    norm.weight <- norm.weight / s,   W <- W diag(s)

with alpha one half every channel has the same range in activations and weights. Changes nothing by itself,
but rounding to the model's type: what follows must quantize activations to gain by it. Stores nothing. The
output and down projections have no norm before them and stay. A channel that was never on keeps s = 1, and a
single extreme token of the calibration text decides the range of its channel.
Xiao et al., SmoothQuant, arXiv 2211.10438, equation 4.
"""

from typing import Annotated, Any

import torch
from pydantic import Field

from backend.costs import Cost
from backend.errors import UserError
from backend.registry import Claim, method
from backend.solvers.folding import divide_feed, feed_of, set_weight, weight_of
from backend.views import Work

_LEAST = 1e-5

Alpha = Annotated[
    float,
    Field(ge=0.0, le=1.0, description="Share of the range that moves: 0.5, up to 0.85 for Llama models"),
]
_EIGHT = (
    {"method": "quantize.rtn", "params": {"bits": 8, "group_size": -1, "symmetric": True}},
    {"method": "quantize.activations", "params": {"input_bits": 8}},
)


@method(
    paper="arXiv:2211.10438",
    cost=Cost("round", 2),
    needs="norms",
    claim=Claim(
        "With 8-bit weights and activations, smoothing loses less than none",
        whose="paper",
        better=({"method": "transform.smoothquant"}, *_EIGHT),
        worse=_EIGHT,
    ),
)
def smoothquant(work: Work, *, alpha: Alpha = 0.5) -> None:
    """Scale the norms of the model and the linears behind them."""
    model: Any = work.model
    family = work.family
    if not any(feed_of(model, family, 0, number) for number in (0, 2)):
        raise UserError(
            f"transform.smoothquant: no norm of a {family.name} model stands before its linears alone; "
            "allowed: a chain without it"
        )
    largest = {layer.name: layer.statistics.largest for layer in work.layers("norms")}
    for block in range(len(model.get_submodule(family.blocks))):
        for number, names in enumerate(family.group_names(block)):
            feed = feed_of(model, family, block, number)
            if feed is None or not feed.norm or not all(work.covers(name) for name in names):
                continue
            seen = largest[names[0]]
            assert seen is not None
            weights = {name: weight_of(model, family, name) for name in names}
            reach = torch.stack([weight.abs().amax(dim=0) for weight in weights.values()]).amax(dim=0)
            x, w = seen.float().clamp(min=_LEAST), reach.clamp(min=_LEAST)
            scale = (x**alpha / w ** (1 - alpha)).clamp(min=_LEAST)
            # A channel that is off on one side has no range to balance.
            scale = torch.where((seen.float() < _LEAST) | (reach < _LEAST), 1.0, scale)
            scale = divide_feed(model, family, feed, scale)
            for name, weight in weights.items():
                set_weight(model, family, name, weight * scale)
