"""The tensors of a stored part as parameters of a graph: its floats, and where that is asked for its codes.

Masks, types and bytes stay as they are. A code that moves is a place u on its grid, in steps; what counts is
round(u), through which gradients pass as if it were u (Efficient-QAT, arXiv 2407.11062, section 3.2).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from backend.coded import Codebook, Grid, flat
from backend.factors import CodedFactors
from backend.floating import Float
from backend.mixed import Mixed
from backend.packing import pack
from backend.parts import LowRank, Outliers, Part, Sparse
from backend.planes import Planes, blocked, unblocked

# Largest value of a stored type, a little below its end.
_REACH = 0.999
# How far from its code a place may begin: rounding gives the code back.
_WITHIN = 0.49
Decode = Callable[[Mapping[str, Tensor]], Tensor]


def tunable(part: Part, wanted: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of a part that may move, in float32; none where all is codes.

    With the weight [out, in] that the part is `wanted` to be, the codes of a uniform grid are among them, as
    places [out, in] that round to the codes as they are and lean towards that weight.
    """
    names: tuple[str, ...] = ()
    if isinstance(part, Grid):
        names = ("scales", "zeros")
    elif isinstance(part, Codebook | Float | Mixed | Planes):
        names = ("scales",)
    elif isinstance(part, LowRank):
        names = ("left", "right")
    elif isinstance(part, CodedFactors):
        names = ("left_scales", "right_scales")
    elif isinstance(part, Sparse | Outliers):
        names = ("values",)
    stored = part.tensors()
    found = {name: stored[name] for name in names if name in stored}
    floats = {
        name: tensor.float().clone()
        for name, tensor in found.items()
        if tensor.is_floating_point() and tensor.numel()
    }
    if wanted is not None and isinstance(part, Grid):
        floats["codes"] = _places(part, wanted)
    return floats


def sizes(part: Part) -> dict[str, Tensor]:
    """What a change of one means for each tensor of `tunable`, broadcast to its shape.

    A scale by itself, a zero point and a code by a step, coefficients of a block by the largest of them,
    values and factors by their root mean square.
    """
    found = {}
    for name, tensor in tunable(part, part.dense()).items():
        if name in ("zeros", "codes"):
            size = torch.ones_like(tensor)
        elif isinstance(part, Planes):
            size = tensor.abs().amax(dim=1, keepdim=True)
        elif name.endswith("scales"):
            size = tensor.abs()
        else:
            size = tensor.square().mean().sqrt().expand_as(tensor)
        found[name] = size
    return found


def decoder(part: Part) -> Decode:
    """What the part adds to the weight [out, in], from other values of its tensors; the rest stays."""
    if not tunable(part):
        fixed = part.dense()
        return lambda values: fixed
    if type(part) is Planes:
        return _of_planes(part)
    if isinstance(part, Grid | Codebook | Float | Mixed):
        return _of_scales(part)
    if isinstance(part, Sparse):
        kept = part.kept()
        return lambda values: (
            torch.zeros(part.shape).to(values["values"]).masked_scatter(kept, values["values"])
        )
    return lambda values: _with(part, values).dense()


def retuned(part: Part, values: Mapping[str, Tensor]) -> Part:
    """The part with other values, each in the type it is stored in."""
    stored = part.tensors()
    rounded: dict[str, Any] = {}
    for name, value in values.items():
        if name == "codes":
            assert isinstance(part, Grid)
            codes, kept = _rounded(value.detach(), part.width), part.kept()
            rounded["codes"] = pack(codes if kept is None else codes[kept], part.width)
            continue
        dtype = stored[name].dtype
        reach = torch.finfo(dtype).max * _REACH
        rounded[name] = value.detach().clamp(-reach, reach).to(dtype).contiguous()
    return dataclasses.replace(part, **rounded)


def _with(part: Part, values: Mapping[str, Tensor]) -> Part:
    changed: dict[str, Any] = dict(values)
    return dataclasses.replace(part, **changed)


def _places(part: Grid, wanted: Tensor) -> Tensor:
    """Places [out, in] on the grids of a part: its codes, and what `wanted` is away from them, bounded."""
    scales, zeros = part.scales.float()[..., None], part.zero_points()
    zero = float(2 ** (part.width - 1)) if zeros is None else zeros.float()[..., None]
    now, aim = (matrix.T if part.transposed else matrix for matrix in (part.dense(), wanted))
    codes = (part.in_groups(now) / scales + zero).round()
    away = (part.in_groups(aim - now) / scales).clamp(-_WITHIN, _WITHIN)
    # At the ends of the grid a place has no gradient from beyond.
    places = flat((codes + away).clamp(0, 2**part.width - 1), now.shape[1])
    return (places.T if part.transposed else places).contiguous()


def _rounded(places: Tensor, width: int) -> Tensor:
    """The codes that places mean; gradients pass through the rounding within the ends of the grid."""
    bounded = places.clamp(0, 2**width - 1)
    return bounded + (bounded.round() - bounded).detach()


def _of_scales(part: Grid | Codebook | Float | Mixed) -> Decode:
    """A scale multiplies what its codes stand for."""
    plain: dict[str, Any] = {"scales": torch.ones_like(part.scales)}
    floating = isinstance(part, Grid) and part.zeros is not None and part.zeros.is_floating_point()
    if floating:
        plain["zeros"] = torch.zeros_like(part.scales)
    units = dataclasses.replace(part, **plain).dense()
    kept = part.kept()
    turned = isinstance(part, Grid) and part.transposed
    units = units.T.contiguous() if turned else units.clone()
    if isinstance(part, Mixed):
        return lambda values: units * values["scales"][:, None]
    grouped, inputs = part.in_groups(units), units.shape[1]
    zeros = None if not isinstance(part, Grid) else part.zero_points()
    zero = float(2 ** (part.width - 1)) if zeros is None else zeros.float()[..., None]

    def decode(values: Mapping[str, Tensor]) -> Tensor:
        steps = grouped
        if "codes" in values:
            codes = _rounded(values["codes"], part.width)
            steps = part.in_groups(codes.T if turned else codes) - (0.0 if floating else zero)
        shifted = steps - values["zeros"][..., None] if floating else steps
        out = flat(shifted * values["scales"][..., None], inputs)
        out = out.T if turned else out
        # Pruned weights decode to zero from their own code, but not from every other.
        return out if kept is None or not (floating or "codes" in values) else out * kept

    return decode


def _of_planes(part: Planes) -> Decode:
    block, kept = (part.tall, part.wide), part.kept()
    planes = torch.stack([blocked(part.bits_of(plane).float(), block) for plane in range(len(part.planes))])
    planes = 2 * planes - 1 if part.signed else planes

    def decode(values: Mapping[str, Tensor]) -> Tensor:
        scales = values["scales"]
        levels = sum(scales[:, number, None] * bits for number, bits in enumerate(planes))
        levels = levels + scales[:, -1:] if part.offset else levels
        out = unblocked(levels, part.shape, block)
        return out if kept is None else out * kept

    return decode
