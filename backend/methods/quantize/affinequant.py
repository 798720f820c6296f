"""Learn where to clip each group and how to scale or mix channels, so that rounding costs each block little.

    s = (u - l) / (2**bits - 1),   z = round(-l / s)                                     c, d [out, groups]
    u = sigmoid(c) max W',   l = sigmoid(d) min W'     over each row and group of inputs
    norm to linears:    norm.weight <- norm.weight / a,        W' = W diag(a)                    a [in]
    values to output:   V_h <- A_h**-T V_h,   b_h <- b_h A_h**-1,   O_h' = O_h A_hᵀ         A_h [head, head]
    minimize over c, d, a, A:  |block(x̂; rounded) - dense block(x)|²

`clipping` learns c and d; `diagonal` also a, and diagonal A_h (OmniQuant, these two); `affine` learns whole
A_h: from epoch to epoch entries further from the diagonal join in, so that A_h stays invertible. Query heads
that share values share A_h. All of it folds into norms and weights, so it stores what quantize.rtn stores.
Rounding passes gradients straight through. Of the start (98% of the range or more, SmoothQuant's scales) and
all epochs the one is kept that loses least on every eighth sample. Matrices behind norms would not fold and
are not learned; heads whose weights were pruned stay diagonal. Takes about half an hour on one core for 135
million weights. Ma et al., AffineQuant, arXiv 2403.12544; Shao et al., OmniQuant, arXiv 2308.13137.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from backend.coded import Grid, groups_of, stored_scale
from backend.parameters import Bits, GroupSize
from backend.registry import Claim, method
from backend.sizes import grid_bytes
from backend.solvers.blockwise import Values, fit, gradients, relative_error
from backend.solvers.equivalent import FLOOR, Site, changed, fold
from backend.solvers.folding import feed_of
from backend.solvers.grids import range_with_zero
from backend.views import Block, Work

# The share of the range that is cut off at the start, and no more than half a step.
_CUT = 0.018
_LEAST = 1e-5

# What is learned for a whole model takes half an hour.
_ONE = {"method": "quantize.affinequant", "only": "*.0.*"}
_TWO_BITS = {"bits": 2, "group_size": 64}

Freedom = Annotated[
    Literal["clipping", "diagonal", "affine"],
    Field(description="What is learned: clipping, also a scale a channel, also a matrix a head"),
]
Epochs = Annotated[int, Field(ge=1, le=100, description="Times that each block sees the samples")]
Samples = Annotated[int, Field(ge=1, le=4096, description="How many of the calibration samples are used")]
ClipRate = Annotated[float, Field(gt=0.0, le=1.0, description="Step of AdamW for clipping")]
ScaleRate = Annotated[float, Field(gt=0.0, le=1.0, description="Step of AdamW for scales and matrices")]
MaskFactor = Annotated[
    float, Field(gt=0.0, le=1.0, description="How much slower entries beside the diagonal move")
]


@method(
    paper="arXiv:2403.12544",
    needs="norms",
    stored=grid_bytes,
    passes=lambda params: 4 * params["samples"] * params["epochs"],
    claim=Claim(
        "In the first block at 2 bits, learned scales and matrices lose less than learned clipping alone",
        better=({**_ONE, "params": {**_TWO_BITS, "shape": "affine"}},),
        worse=({**_ONE, "params": {**_TWO_BITS, "shape": "clipping"}},),
    ),
)
def affinequant(
    work: Work,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    shape: Freedom = "diagonal",
    samples: Samples = 16,
    epochs: Epochs = 8,
    clip_rate: ClipRate = 0.01,
    scale_rate: ScaleRate = 0.005,
    mask_factor: MaskFactor = 0.1,
) -> None:
    """Grid parts for every linear of the stage, and the model changed to fit them."""
    for block in work.blocks(samples, 1):
        with gradients(), torch.no_grad():
            sites = [] if shape == "clipping" else _sites(work, block, shape == "affine")
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
