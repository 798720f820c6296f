"""Scales and matrices between what feeds linears and these linears, as parameters: the function stays.

    x A**-1 (W Aᵀ)ᵀ = x Wᵀ       A [in, in]: diagonal behind a norm, where A**-1 goes into the norm's weight;
    V_h <- A_h**-T V_h,  b_h <- b_h A_h**-1,  O_h <- O_h A_hᵀ      blocks A_h [head, head] behind values

Heads that share a row of the value projection share their block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.families import Family
from backend.solvers.folding import Feed, divide_feed, set_weight, weight_of

# A scale stays above it; the mean of a site's scales is about one.
FLOOR = 1e-2


@dataclass(frozen=True)
class Site:
    """What feeds a group of linears, and how far its channels may mix: within `width` (1: scales alone)."""

    feed: Feed
    names: tuple[str, ...]
    width: int

    def matrices(self, values: Mapping[str, Tensor], reach: int, factor: float) -> Tensor:
        """A [heads, width, width] of the parameters, entries up to `reach` off the diagonal."""
        scale = values[f"{self.feed.name}:scale"].clamp(min=FLOOR).view(-1, self.width)
        if self.width == 1:
            return scale[..., None]
        place = torch.arange(self.width, device=scale.device)
        away = (place[:, None] - place).abs()
        beside = (away > 0) & (away < reach)
        return torch.diag_embed(scale) + values[f"{self.feed.name}:beside"] * beside * factor


def changed(
    sites: list[Site],
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor | None],
    values: Mapping[str, Tensor],
    reach: int,
    factor: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor | None], dict[str, Tensor]]:
    """Weights and biases as the matrices change them, and what divides inputs that come from a norm."""
    now, shifted = dict(weights), dict(biases)
    inverses: dict[str, Tensor] = {}
    for site in sites:
        matrices = site.matrices(values, reach, factor)
        for name in site.names:
            now[name] = _mixed(site, now[name], matrices)
            if site.feed.norm:
                inverses[name] = 1 / matrices.view(-1)
        if not site.feed.norm:
            name = site.feed.name
            now[name], shifted[name] = _unmixed(site, now[name], shifted[name], matrices)
    return now, shifted, inverses


def _mixed(site: Site, weight: Tensor, matrices: Tensor) -> Tensor:
    """W Aᵀ of what is fed [out, in]."""
    rows, inputs = weight.shape
    if site.width == 1:
        scale = matrices.view(-1)
        return weight * (scale if site.feed.norm else site.feed.spread(scale, inputs))
    heads = matrices.repeat_interleave(inputs // site.feed.rows, dim=0)
    return torch.einsum("rhi,hji->rhj", weight.view(rows, -1, site.width), heads).reshape(rows, inputs)


def _unmixed(
    site: Site, weight: Tensor, bias: Tensor | None, matrices: Tensor
) -> tuple[Tensor, Tensor | None]:
    """A**-T V and b A**-1 of what feeds."""
    inverse = torch.linalg.inv(matrices.double()).float()
    heads = weight.view(-1, site.width, weight.shape[1])
    moved = torch.einsum("hij,hik->hjk", inverse, heads).reshape(weight.shape)
    if bias is None:
        return moved, None
    return moved, torch.einsum("hi,hij->hj", bias.view(-1, site.width), inverse).reshape(-1)


def fold(
    model: nn.Module, family: Family, site: Site, matrices: Tensor, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Write the change into the model and into `weights`; the parameters of the model that are others now."""
    feed = site.feed
    if feed.norm:
        matrices = divide_feed(model, family, feed, matrices.view(-1))[:, None, None]
    else:
        fed: Any = model.get_submodule(feed.name)
        before = weight_of(model, family, feed.name)
        bias = None if fed.bias is None else fed.bias.detach().float().clone()
        moved, shifted = _unmixed(site, before, bias, matrices)
        set_weight(model, family, feed.name, moved)
        if shifted is not None:
            fed.bias.copy_(shifted)
        weights[feed.name] = _unmixed(site, weights[feed.name], None, matrices)[0]
    for name in site.names:
        weight = weight_of(model, family, name)
        set_weight(model, family, name, _mixed(site, weight, matrices))
        weights[name] = _mixed(site, weights[name], matrices)
    written = {}
    for name in (feed.name, *site.names):
        for parameter, tensor in model.get_submodule(name).named_parameters():
            written[f"{name}.{parameter}"] = tensor.detach().clone()
    return written
