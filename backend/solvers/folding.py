"""Move a scale from the inputs of linears into what feeds them: the function stays, the ranges change.

    x diag(s)**-1 (W diag(s))ᵀ = x Wᵀ,  s [in] > 0

The scale goes into the weight (and bias) of the norm before the linears, or into the rows of the linear whose
outputs reach them. Under grouped-query attention several channels of the output projection come from one row
of the value projection, so these share their scale.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.families import Family, blocks_of
from backend.shrink import few_blocks
from backend.solvers.probing import answers, apart, probe_tokens


@dataclass(frozen=True)
class Feed:
    """What feeds a group of linears: a norm, or a linear with fewer rows than the group has inputs.

    name     full module name
    norm     whether it is a norm
    rows     its output channels
    width    how many neighbours stay together where rows are shared: the size of a head
    """

    name: str
    norm: bool
    rows: int
    width: int

    def tied(self, values: Tensor) -> Tensor:
        """Mean of `values` [in] over the channels that share a row, [rows]."""
        heads = self.rows // self.width
        return values.view(heads, -1, self.width).mean(dim=1).reshape(-1)

    def spread(self, values: Tensor, inputs: int) -> Tensor:
        """`values` [rows] for each of the inputs [in] that come from them."""
        heads = self.rows // self.width
        return values.view(heads, 1, self.width).expand(-1, inputs // self.rows, -1).reshape(-1)


def feed_of(model: nn.Module, family: Family, block: int, group: int) -> Feed | None:
    """What feeds a group of a block; None where no scale can be moved.

    Raises UserError for a model whose function would not stay: asked once, on a copy of some of its blocks.
    """
    if not getattr(model, "folds", False):
        check_folding(model, family)
        vars(model)["folds"] = True
    return _feed_of(model, family, block, group)


def check_folding(model: nn.Module, family: Family) -> None:
    """UserError, with the linears, unless scales moved through what feeds them leave the logits alone."""
    count = len(blocks_of(model, family))
    few = few_blocks(model, family, {0, count - 1})
    ids = probe_tokens(few)
    before = answers(few, ids)
    rng = torch.Generator().manual_seed(0)
    for group, names in enumerate(family.linears):
        for block in range(len(blocks_of(few, family))):
            feed = _feed_of(few, family, block, group)
            if feed is not None:
                scale = torch.rand(feed.rows, generator=rng).mul(1.5).add(0.5).to(few.device)
                scale = divide_feed(few, family, feed, scale)
                for name in family.group_names(block)[group]:
                    weight = weight_of(few, family, name)
                    set_weight(few, family, name, weight * feed.spread(scale, weight.shape[1]))
        if off := apart(answers(few, ids), before):
            raise UserError(
                f"scales cannot be moved into the inputs of {', '.join(names)} of this {family.name} model: "
                f"its logits change by {off:.1%}; allowed: stages that move no scales"
            )


def _feed_of(model: nn.Module, family: Family, block: int, group: int) -> Feed | None:
    short = family.feeds[group]
    if not short:
        return None
    name = f"{family.blocks}.{block}.{short}"
    module: Any = model.get_submodule(name)
    config: Any = model.config
    norm = not any(short in names for names in family.linears)
    rows = len(module.weight) if norm else weight_of(model, family, name).shape[0]
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    # Only the way through attention shares rows; everywhere else channel is channel.
    return Feed(name, norm, rows, width if group == 1 else rows)


def weight_of(model: nn.Module, family: Family, name: str) -> Tensor:
    """A copy of a linear's weight [out, in] in float32."""
    module: Any = model.get_submodule(name)
    stored: Tensor = module.weight.detach()
    return (stored.T if family.transposed else stored).float().clone()


def set_weight(model: nn.Module, family: Family, name: str, weight: Tensor) -> None:
    """Write a linear's weight [out, in] into the model, rounded to its type."""
    module: Any = model.get_submodule(name)
    with torch.no_grad():
        module.weight.copy_(weight.T if family.transposed else weight)


def divide_feed(model: nn.Module, family: Family, feed: Feed, scale: Tensor) -> Tensor:
    """Divide what `feed` puts out by `scale` [rows], and the scale that this really was [rows] float32.

    A norm stores its weight in few digits: what the linears make up for is what it holds afterwards.
    """
    module: Any = model.get_submodule(feed.name)
    with torch.no_grad():
        if feed.norm:
            before = module.weight.float() + family.norm_offset
            module.weight.copy_(before / scale - family.norm_offset)
            after = module.weight.float() + family.norm_offset
            scale = torch.where(after == 0, scale, before / torch.where(after == 0, 1.0, after))
        else:
            set_weight(model, family, feed.name, weight_of(model, family, feed.name) / scale[:, None])
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(module.bias.float() / scale)
    return scale
