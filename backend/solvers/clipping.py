"""Learn where groups are clipped, and scales or matrices of channels, so that a rounded block loses little.

    s = (u - l) / (2**bits - 1),   z = round(-l / s)                                     c, d [out, groups]
    u = sigmoid(c) max W',   l = sigmoid(d) min W'     over each row and group of inputs
    minimize over c, d and what changes W into W':  |block(x̂; rounded) - dense block(x)|²

Rounding passes gradients straight through. What changes the weights folds into the model (equivalent.py).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from backend.coded import Grid, groups_of, stored_scale
from backend.solvers.blockwise import Values, fit, gradients, relative_error
from backend.solvers.equivalent import FLOOR, Site, changed, fold
from backend.solvers.folding import feed_of
from backend.solvers.grids import range_with_zero
from backend.views import Block, Work

# The share of the range that is cut off at the start, and no more than half a step.
_CUT = 0.018
_LEAST = 1e-5

Freedom = Literal["clipping", "diagonal", "affine"]


def learn(
    work: Work,
    freedom: Freedom,
    *,
    bits: int,
    group_size: int,
    samples: int,
    epochs: int,
    clip_rate: float,
    scale_rate: float,
    mask_factor: float = 1.0,
) -> None:
    """Put grid parts for every linear of the stage into the blocks of `work`, and change the model to fit.

    freedom      clipping alone; also a scale a channel (diagonal); also a matrix a head (affine)
    mask_factor  how much slower entries of a matrix beside its diagonal move
    """
    for block in work.blocks(samples, 1):
        with gradients(), torch.no_grad():
            sites = [] if freedom == "clipping" else _sites(work, block, freedom == "affine")
            _block(work, block, sites, bits, group_size, epochs, clip_rate, scale_rate, mask_factor)


def _sites(work: Work, block: Block, affine: bool) -> list[Site]:
    found = []
    for number, names in enumerate(work.family.group_names(block.number)[:3]):
        feed = feed_of(work.model, work.family, block.number, number)
        if feed is None or not all(name in block.layers for name in names):
            continue
        if not feed.norm and feed.name not in block.layers:
            continue
        whole = [feed.name, *names] if not feed.norm else names
        mixes = affine and number == 1 and all(block.layers[name].kept is None for name in whole)
        if any(change.moves for name in names for change in block.changes[name]):
            # Scales of channels and a matrix between them do not change places.
            mixes = False
        found.append(Site(feed, tuple(names), feed.width if mixes and not feed.norm else 1))
    return found


def _block(
    work: Work,
    block: Block,
    sites: list[Site],
    bits: int,
    group_size: int,
    epochs: int,
    clip_rate: float,
    scale_rate: float,
    factor: float,
) -> None:
    weights = {name: layer.now.clone() for name, layer in block.layers.items()}
    start, units, rates = _start(block, sites, weights, bits, group_size, clip_rate, scale_rate)
    reach = 1

    def schedule(epoch: int) -> None:
        nonlocal reach
        reach = _reach(epoch, epochs, max((site.width for site in sites), default=1))

    def loss(values: Mapping[str, Tensor], some: Tensor) -> Tensor:
        now, biases, inverses = changed(sites, weights, block.biases, values, reach, factor)
        linears = {}
        for name, weight in now.items():
            clips = values[f"{name}:high"], values[f"{name}:low"]
            rounded = _rounded(weight, *_grid(weight, *clips, bits), bits).view_as(weight)
            kept = block.layers[name].kept
            rounded = rounded if kept is None else rounded * kept
            linears[name] = partial(linear, weight=rounded, bias=biases[name])
        # A norm that is divided feeds what rounds activations.
        return relative_error(block.outputs(block.inputs[some], linears, inverses), block.targets[some])

    found = fit(
        start, units, loss, len(block.inputs), 1, epochs, rates, block.rng, block.told, schedule=schedule
    )
    schedule(max(found.best - 1, 0))
    for site in sites:
        matrices = site.matrices(found.values, reach, factor)
        block.changed.update(fold(work.model, work.family, site, matrices, weights))
    for name, weight in weights.items():
        scales, zeros = _grid(weight, found.values[f"{name}:high"], found.values[f"{name}:low"], bits)
        block.parts[name] = (
            Grid.encode(weight, stored_scale(scales), zeros, bits, group_size, block.layers[name].kept),
        )


def _start(
    block: Block,
    sites: list[Site],
    weights: Mapping[str, Tensor],
    bits: int,
    group_size: int,
    clip_rate: float,
    scale_rate: float,
) -> tuple[Values, Values, dict[str, float]]:
    """Parameters at the start, what a step of one means for each, and their rates."""
    cut = torch.tensor(min(_CUT, 0.5 / 2**bits))
    wide = float(torch.logit(1 - cut))
    start: Values = {}
    units: Values = {}
    rates: dict[str, float] = {}
    for name, weight in weights.items():
        for end in ("high", "low"):
            key = f"{name}:{end}"
            groups = groups_of(weight.shape[1], group_size)
            start[key] = torch.full((len(weight), groups), wide, device=weight.device)
            units[key], rates[key] = torch.ones((), device=weight.device), clip_rate
    largest = _largest(block, weights)
    for site in sites:
        key, names = f"{site.feed.name}:scale", site.names
        most = torch.stack([weights[name].abs().amax(dim=0) for name in names]).amax(dim=0)
        scale = (largest[names[0]].clamp(min=_LEAST) / most.clamp(min=_LEAST)).sqrt()
        scale = torch.where((largest[names[0]] < _LEAST) | (most < _LEAST), 1.0, scale)
        scale = scale if site.feed.norm else site.feed.tied(scale)
        # Only ratios between channels matter.
        scale = (scale / scale.log().mean().exp()).clamp(min=FLOOR, max=1 / FLOOR)
        start[key], units[key], rates[key] = scale, scale, scale_rate
        if site.width > 1:
            heads = scale.view(-1, site.width)
            key = f"{site.feed.name}:beside"
            start[key] = heads.new_zeros(len(heads), site.width, site.width)
            units[key], rates[key] = (heads[:, :, None] * heads[:, None, :]).sqrt(), scale_rate
    return start, units, rates


def _largest(block: Block, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Largest |x| of each input of each linear [in], on the compressed states."""
    found: dict[str, Tensor] = {}

    def seen(x: Tensor, name: str) -> Tensor:
        most = x.detach().abs().flatten(0, -2).amax(dim=0)
        found[name] = torch.maximum(found[name], most) if name in found else most
        return linear(x, weights[name], block.biases[name])

    for some in block.inputs.split(1):
        block.outputs(some, {name: partial(seen, name=name) for name in weights})
    return found


def _reach(epoch: int, epochs: int, width: int) -> int:
    """Entries nearer than this to the diagonal take part: 1 in the first epoch, all in the last."""
    return (width - 1) * epoch // max(epochs - 1, 1) + 1


def _grid(weight: Tensor, high: Tensor, low: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales as stored and whole zero points, both [out, groups], through which gradients pass."""
    least, most = range_with_zero(weight.view(*high.shape, -1))
    bottom, top = least * low.sigmoid(), most * high.sigmoid()
    scale = _straight((top - bottom) / (2**bits - 1), lambda exact: stored_scale(exact).float())
    return scale, _straight(-bottom / scale, torch.round).clamp(0, 2**bits - 1)


def _rounded(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    scale, zero = scale[..., None], zero[..., None]
    units = weight.view(*scale.shape[:2], -1) / scale
    codes = (_straight(units, torch.round) + zero).clamp(0, 2**bits - 1)
    return (codes - zero) * scale


def _straight(exact: Tensor, rounding: Any) -> Tensor:
    return exact + (rounding(exact) - exact).detach()
