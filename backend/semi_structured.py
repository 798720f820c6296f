"""2:4 linears by the sparse kernels of CUDA devices: half the multiplications of a dense product."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from backend.artifacts import compressed_modules
from backend.linear import CompressedLinear
from backend.parts import Sparse
from backend.precision import WIDE

_TYPES = (torch.float16, torch.bfloat16)


def two_of_four(weight: Tensor) -> bool:
    """Whether of every four neighbours in a row [out, in] at most two are not zero."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight != 0).view(len(weight), -1, 4).sum(dim=2) <= 2).all())


@contextmanager
def sparse_kernels(
    model: nn.Module, convert: Callable[[Tensor], Tensor] = to_sparse_semi_structured
) -> Iterator[int]:
    """Let the 2:4 linears of a model run by sparse kernels for a while; yields how many do.

    A linear stays dense where the device is no CUDA one, its type is not of 16 bits or is computed wider,
    something else is added to its kept weights, or the kernels do not take its shape.
    """
    dense: dict[CompressedLinear, Tensor] = {}
    wider = getattr(model, "compute_dtype", None) == WIDE
    for module in [] if wider else compressed_modules(model).values():
        if (packed := _converted(module, convert)) is not None:
            assert module.weight is not None
            dense[module] = module.weight
            module.weight = packed
    try:
        yield len(dense)
    finally:
        for module, weight in dense.items():
            module.weight = weight


def _converted(module: CompressedLinear, convert: Callable[[Tensor], Tensor]) -> Tensor | None:
    weight = module.weight
    if weight is None or weight.dtype not in _TYPES:
        return None
    if len(module.parts) != 1 or not isinstance(module.parts[0], Sparse) or not two_of_four(weight):
        return None
    try:
        return convert(weight.contiguous())
    except RuntimeError:
        # The kernels name in this way a device or shape that they do not take.
        return None
