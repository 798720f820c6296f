"""The float tensors of a stored part as parameters of a graph: codes, masks and bytes stay as they are."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from backend.floating import Float
from backend.mixed import Mixed
from backend.parts import Codebook, Grid, LowRank, Outliers, Part, Sparse
from backend.planes import Planes, blocked, unblocked

# Largest value of a stored type, a little below its end.
_REACH = 0.999
Decode = Callable[[Mapping[str, Tensor]], Tensor]


def tunable(part: Part) -> dict[str, Tensor]:
    """The tensors of a part that may move, in float32; none where all is codes."""
    names: tuple[str, ...] = ()
    if isinstance(part, Grid):
        names = ("scales", "zeros")
    elif isinstance(part, Codebook | Float | Mixed | Planes):
        names = ("scales",)
    elif isinstance(part, LowRank):
        names = ("left", "right")
    elif isinstance(part, Sparse | Outliers):
        names = ("values",)
    stored = part.tensors()
    found = {name: stored[name] for name in names if name in stored}
    return {
        name: tensor.float().clone()
        for name, tensor in found.items()
        if tensor.is_floating_point() and tensor.numel()
    }


def sizes(part: Part) -> dict[str, Tensor]:
    """What a change of one means for each tensor of `tunable`, broadcast to its shape.

    A scale by itself, a zero point by a step of the codes, coefficients of a block by the largest of them,
    values and factors by their root mean square.
    """
    found = {}
    for name, tensor in tunable(part).items():
        if name == "zeros":
            size = torch.ones_like(tensor)
        elif isinstance(part, Planes):
            size = tensor.abs().amax(dim=1, keepdim=True)
        elif name == "scales":
            size = tensor.abs()
        else:
            size = tensor.square().mean().sqrt().expand_as(tensor)
        found[name] = size
    return found


def decoder(part: Part) -> Decode:
    """What the part adds to the weight [out, in], from other values of its tensors; codes are read once."""
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
        dtype = stored[name].dtype
        reach = torch.finfo(dtype).max * _REACH
        rounded[name] = value.detach().clamp(-reach, reach).to(dtype).contiguous()
    return dataclasses.replace(part, **rounded)


def _with(part: Part, values: Mapping[str, Tensor]) -> Part:
    changed: dict[str, Any] = dict(values)
    return dataclasses.replace(part, **changed)


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
    grouped = units.view(*part.scales.shape, -1)

    def decode(values: Mapping[str, Tensor]) -> Tensor:
        shifted = grouped - values["zeros"][..., None] if floating else grouped
        out = (shifted * values["scales"][..., None]).view_as(units)
        out = out.T if turned else out
        return out * kept if floating and kept is not None else out

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
