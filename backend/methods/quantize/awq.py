"""Scale up the input channels that matter before rounding, and clip each group where that loses less.

    s = x̄**r / sqrt(max x̄**r min x̄**r),  x̄ = mean |x| [in],  r = 0, 1/20, .. 19/20
    choose r by  min sum over the group of tr(D C Dᵀ),  D = Q(W diag(s)) diag(s)**-1 - W,  C = XᵀX
    then for each row and group of inputs clamp at m (1 - i/20), i = 0 .. 9, where that rounds with less error

One s serves all linears behind one norm, or those behind the value and up projections (under grouped-query
attention the channels of one value row share it); it is divided out there, so it costs nothing. Ratio 0 is
plain rounding, so the error of no group of linears is above it. Queries and keys are not clipped. Statistics
are those of the uncompressed model. Stores what quantize.rtn stores. At 2 bits it collapses, as RTN does.
Lin et al., AWQ, arXiv 2306.00978, equations 4 and 5.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from backend.coded import Grid, grid_codes, groups_of
from backend.costs import Cost
from backend.parameters import Bits, GroupSize, Symmetric
from backend.registry import Claim, method
from backend.sizes import grid_bytes
from backend.solvers.folding import divide_feed, feed_of, set_weight, weight_of
from backend.solvers.grids import fit_grid
from backend.views import Layer, Work

_LEAST = 1e-4
_CLIPS = 10

Ratios = Annotated[int, Field(ge=1, le=100, description="How many scales are tried; 1 is none")]
Clipping = Annotated[bool, Field(description="Search where to clip each group")]


@method(
    paper="arXiv:2306.00978",
    cost=Cost("solve", 4.0, {"ratios": 20}),
    needs="gram",
    stored=grid_bytes,
    claim=Claim(
        "At 3 bits, scaling the channels that matter loses less than GPTQ at the same bytes",
        whose="paper",
        better=({"method": "quantize.awq", "params": {"bits": 3, "group_size": 64}},),
        worse=({"method": "quantize.gptq", "params": {"bits": 3, "group_size": 64}},),
    ),
)
def awq(
    work: Work,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    symmetric: Symmetric = False,
    ratios: Ratios = 20,
    clipping: Clipping = True,
) -> None:
    """Grid parts for every linear of the stage, and the model scaled to fit them."""
    block, layers = 0, dict[str, Layer]()
    for layer in work.layers("gram"):
        number, _ = work.family.place(layer.name)
        if number != block:
            _block(work, block, layers, bits, group_size, symmetric, ratios, clipping)
            block, layers = number, {}
        layers[layer.name] = layer
    _block(work, block, layers, bits, group_size, symmetric, ratios, clipping)


def _block(
    work: Work,
    block: int,
    layers: dict[str, Layer],
    bits: int,
    group_size: int,
    symmetric: bool,
    ratios: int,
    clipping: bool,
) -> None:
    model, family = work.model, work.family
    now = {name: layer.now for name, layer in layers.items() if work.covers(name)}
    grams = {name: layer.statistics.gram.float() for name, layer in layers.items() if name in now}  # type: ignore[union-attr]
    for number, names in enumerate(family.group_names(block)):
        feed = feed_of(model, family, block, number)
        if feed is None or not all(name in now for name in names):
            continue
        # What feeds them must be free to change: plain in the model, or about to be rounded here.
        if not feed.norm and feed.name not in now and layers[feed.name].parts:
            continue
        absolutes = layers[names[0]].statistics.absolutes
        if absolutes is None:
            continue
        inputs = len(absolutes)
        seen = (absolutes / max(layers[names[0]].statistics.tokens, 1)).float()
        wanted = seen if feed.norm else feed.tied(seen)
        scale, least = None, torch.inf
        for step in range(ratios):
            tried = _scale(wanted, step / ratios)
            wide = tried if feed.norm else feed.spread(tried, inputs)
            lost = sum(
                _loss(_rounded(now[name] * wide, bits, group_size, symmetric) / wide - now[name], grams[name])
                for name in names
            )
            if lost < least:
                scale, least = (tried, lost) if step else (None, lost)
        if scale is None:
            continue
        scale = divide_feed(model, family, feed, scale)
        if feed.name in now:
            now[feed.name] = now[feed.name] / scale[:, None]
        wide = scale if feed.norm else feed.spread(scale, inputs)
        for name in names:
            set_weight(model, family, name, weight_of(model, family, name) * wide)
            now[name], grams[name] = now[name] * wide, grams[name] / wide / wide[:, None]
    for name, weight in now.items():
        rows, inputs = weight.shape
        grouped = weight.view(rows, groups_of(inputs, group_size), -1)
        if clipping and not name.endswith(("q_proj", "k_proj")):
            grouped = _clipped(grouped, grams[name], bits, symmetric)
        scales, zeros = _grid(grouped, bits, symmetric)
        clipped = grouped.reshape(rows, inputs)
        work.parts[name] = (Grid.encode(clipped, scales, zeros, bits, group_size, layers[name].kept),)


def _scale(seen: Tensor, ratio: float) -> Tensor:
    scale = (seen**ratio).clamp(min=_LEAST)
    return scale / (scale.amax() * scale.amin()).sqrt()


def _loss(lost: Tensor, gram: Tensor) -> float:
    return float((lost @ gram).mul_(lost).sum(dtype=torch.float64))


def _rounded(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    grouped = weight.view(len(weight), groups_of(weight.shape[1], group_size), -1)
    return _nearest(grouped, bits, symmetric).view_as(weight)


def _grid(grouped: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros of groups that may be clipped at both ends.

    There zero is exactly between two codes and the ends are halfway to the next, so that the rounding of the
    scale to float16 would choose by chance. So it is rounded down, and the low end gets a step more.
    """
    scales, zeros = fit_grid(grouped, bits, symmetric)
    if zeros is None:
        return scales, None
    low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
    above = (low == -high) & (scales.float() * (2**bits - 1) > high - low)
    # The number before a positive float is the one whose bits are one less.
    whole = torch.int16 if scales.dtype == torch.float16 else torch.int32
    scales = (scales.view(whole) - above.to(whole)).view(scales.dtype)
    return scales, torch.where(low == -high, float(2 ** (bits - 1)), zeros)


def _nearest(grouped: Tensor, bits: int, symmetric: bool) -> Tensor:
    scales, zeros = _grid(grouped, bits, symmetric)
    zero = float(2 ** (bits - 1)) if zeros is None else zeros[..., None]
    return (grid_codes(grouped, scales, zeros, bits) - zero) * scales.float()[..., None]


def _clipped(grouped: Tensor, gram: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Weights [out, groups, group] clamped, each group where its rounding then loses least."""
    rows, count, size = grouped.shape
    # Blocks of C on its diagonal [groups, group, group]: what the outputs see of one group alone.
    blocks = gram.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    top = grouped.abs().amax(dim=-1, keepdim=True)
    best, least = grouped, torch.full((rows, count), torch.inf, device=grouped.device)
    for step in range(_CLIPS):
        reach = top * (1 - step / (2 * _CLIPS))
        clamped = grouped.clamp(-reach, reach)
        lost = _nearest(clamped, bits, symmetric) - grouped
        error = (torch.einsum("rgi,gij->rgj", lost, blocks) * lost).sum(dim=-1)
        better = error < least
        best, least = torch.where(better[..., None], clamped, best), torch.where(better, error, least)
    return best
