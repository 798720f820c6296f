"""A rehearsal of a GPU without one: real values on the CPU in tensors that say they live on `cuda:0`.

    with rehearsal() as device:
        torch.ones(3, device="cuda").sum().item()
    device.synchronisations  # 1

As on a GPU such tensors meet no CPU tensors, but for what CUDA allows: numbers of no dimension in pointwise
operations, and places on the CPU that index a tensor of the device. Their random numbers come from a
generator of the device, they cannot become numpy, and whatever makes the CPU wait for the device is counted,
with the line of the project that asked for it. Time and memory are those of no GPU, and a copy to the device
counts as no wait. torch itself takes the wrappers for `meta`, the one device whose tensors need no memory and
still can have gradients in a build without CUDA; Python sees `cuda:0`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda:0")
_HOME = str(Path(__file__).parent.parent)
# Beside pointwise operations, what takes a number of the CPU.
_TAKE_NUMBERS = {"where", "fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
# What a GPU cannot answer before all work given to it is done: values, shapes that depend on values, and
# factorizations that say whether they worked.
_WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount", "_linalg_check_errors", "_linalg_eigh",
    "_linalg_svd", "linalg_lstsq",
}  # fmt: skip
_PRODUCTS = {"mm", "bmm", "addmm", "addmv", "baddbmm", "matmul", "linear", "einsum"}
_FREE_BYTES, _ALL_BYTES, _PEAK_BYTES = 60 * 2**30, 80 * 2**30, 2**20


class OnDevice(Tensor):
    """A tensor of the device; `inner` holds its values on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        with torch.inference_mode(inner.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
                dtype=inner.dtype, device="meta",
            )  # fmt: skip
        made.inner = inner
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; copy it to the CPU first")

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or DEVICE)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = self.detach().clone()
        if getattr(self, "_is_param", False):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made.requires_grad_(self.requires_grad))

    def __repr__(self, **kwargs: Any) -> str:
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the rehearsal is used outside of it")


class Rehearsal(TorchDispatchMode):
    """Runs operations on the values behind tensors, and refuses what a GPU refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        # Products of matrices that were left to the CPU, by operation and line.
        self.products: Counter[str] = Counter()
        # Whether `meta` is asked for by name.
        self._meant = False

    @property
    def synchronisations(self) -> int:
        """How often the CPU had to wait for the device so far; `waits` tells it by operation and line."""
        return self.waits.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        given = [one for one in _flat((args, kwargs)) if isinstance(one, Tensor)]
        mine = [one for one in given if isinstance(one, OnDevice)]
        # No memory of this machine is known to a GPU.
        kwargs = {**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs
        target = self._target(name, args, kwargs)
        there = bool(mine) if target is None else _of_device(target)
        if not mine and not there and kwargs.get("generator") is None:
            if name in _PRODUCTS:
                self.products[f"{name} at {_line()}"] += 1
            return func(*args, **kwargs)
        if name == "_fused_sdp_choice":
            return 0
        if _is_composite(func):
            # What the parts do is what a GPU does, and some of them wait.
            with self:
                return func.decompose(*args, **kwargs)
        if mine and len(mine) < len(given):
            _check_mixture(func, name, args, kwargs, given)
        generator = kwargs.get("generator")
        if generator is not None and (generator._cdata in _Generator.on_device) != there:
            kinds = ("cuda", "cpu") if there else ("cpu", "cuda")
            raise RuntimeError(f"Expected a '{kinds[0]}' device type for generator but found '{kinds[1]}'")
        if mine and self._waits(name, args, there):
            self.waits[f"{name} at {_line()}"] += 1
        wrappers = {id(one.inner): one for one in mine}
        args, kwargs = _mapped(_inner, (args, kwargs))
        if "device" in kwargs and there:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        out = func(*args, **kwargs)

        def wrapped(one: Any) -> Any:
            if not isinstance(one, Tensor) or not there:
                return one
            # What changed in place is the same tensor afterwards.
            found = wrappers.get(id(one))
            if found is not None and found.shape != one.shape:
                # A wrapper keeps the shape that it was made with: going on would give wrong values.
                raise RuntimeError(f"{func}: a tensor of the rehearsal cannot change its shape in place")
            return OnDevice(one) if found is None else found

        return _mapped(wrapped, out)

    def _target(self, name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
        """The device that the call asks for. Where torch makes a tensor beside one of ours it asks for
        `meta`; transformers, which means it, opens a context first."""
        flat = _flat((args, kwargs))
        target = next((one for one in flat if isinstance(one, torch.device)), None)
        if name == "copy_":
            return args[0].device
        if target is None or target.type != "meta":
            return target
        beside = any(isinstance(one, Tensor) and one.device.type == "meta" for one in flat)
        return target if self._meant or beside else DEVICE

    def to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """Tensor.to, for which a tensor of ours is of another device than it says."""
        if args and isinstance(args[0], Tensor):
            device, dtype = args[0].device, args[0].dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype = device or tensor.device, dtype or tensor.dtype
        if isinstance(tensor, OnDevice) and _of_device(device):
            same = dtype == tensor.dtype and not copy
            return tensor if same else torch._C.TensorBase.to(tensor, dtype, copy=copy)
        place = torch.device("meta") if _of_device(device) else device
        with self.meaning(device):
            return torch._C.TensorBase.to(tensor, place, dtype, copy=copy)

    @contextmanager
    def meaning(self, device: torch.device) -> Iterator[None]:
        """While it is open, `meta` is meant where it is asked for, if `device` is that."""
        before, self._meant = self._meant, device.type == "meta"
        try:
            yield
        finally:
            self._meant = before

    def _waits(self, name: str, args: Any, there: bool) -> bool:
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            masks = (torch.bool, torch.uint8)
            if len(args) > 2 and len(args[1]) == 1 and args[2].numel() == 1:
                # One number at the places of a mask: nobody asks how many these are.
                return False
            return any(isinstance(one, OnDevice) and one.dtype in masks for one in args[1])
        return name in _WAITING or (name in ("_to_copy", "copy_") and not there)


@cache
def _is_composite(func: Any) -> bool:
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _flat(one: Any) -> list[Any]:
    if isinstance(one, dict):
        one = list(one.values())
    return [leaf for part in one for leaf in _flat(part)] if isinstance(one, list | tuple) else [one]


def _mapped(change: Callable[[Any], Any], one: Any) -> Any:
    if isinstance(one, dict):
        return {name: _mapped(change, part) for name, part in one.items()}
    return type(one)(_mapped(change, part) for part in one) if type(one) in (list, tuple) else change(one)


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, OnDevice) else one


def _of_device(one: Any) -> bool:
    if isinstance(one, str) and not one.startswith("cuda"):
        return False
    return isinstance(one, str | torch.device) and torch.device(one).type == "cuda"


def _check_mixture(func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> None:
    """Raise unless CUDA lets these tensors of both devices meet."""
    others = [one for one in given if not isinstance(one, OnDevice)]
    numbers = all(one.dim() == 0 and one.device.type == "cpu" for one in others)
    if name == "copy_" or (name == "_to_copy" and len(given) == 1):
        return
    if name in _INDEXING:
        values = args[2] if len(args) > 2 else kwargs.get("values", args[0])
        if isinstance(args[0], OnDevice) and (isinstance(values, OnDevice) or values.dim() == 0):
            return
    elif numbers and (torch.Tag.pointwise in func.tags or name in _TAKE_NUMBERS):
        written = [
            given_ for argument, given_ in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]  # fmt: skip
        if all(isinstance(one, OnDevice) for one in [*written, *_listed(kwargs.get("out"))]):
            return
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
        f"(when checking aten::{name})"
    )


def _listed(one: Any) -> list[Any]:
    return [] if one is None else list(one) if isinstance(one, list | tuple) else [one]


def _line() -> str:
    """The innermost line of the project that is being run."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_HOME) and file != __file__ and ".venv" not in file:
            return f"{Path(file).relative_to(_HOME)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class _Generator(torch.Generator):
    """A generator that remembers which device it is for, by its address where torch wraps it anew."""

    on_device: ClassVar[dict[int, "_Generator"]] = {}

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made.place = DEVICE if _of_device(device) else torch.device(device)
        if made.place == DEVICE:
            cls.on_device[made._cdata] = made
        return made

    device = property(lambda self: self.place)


@contextmanager
def _parameters_stay_shared() -> Iterator[None]:
    """Modules that share a parameter go on sharing it on the device, as they do on a GPU."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@contextmanager
def rehearsal() -> Iterator[Rehearsal]:
    """The device of a machine that has one, as far as this process can tell while it is open."""
    # torch remembers the functions that a device context is about at the first call: these are its own,
    # which those that replace them here call.
    _device_constructors()
    real, real_as = torch.tensor, torch.as_tensor

    def moved(make: Any) -> Any:
        def made(
            data: Any, *args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any
        ) -> Any:
            if make is real_as and isinstance(data, Tensor):
                return data.to(device=device or data.device, dtype=kwargs.get("dtype") or data.dtype)
            place = None if _of_device(device) else device
            found = make(data, *args, device=place, **kwargs)
            found = found.to(device) if _of_device(device) else found
            return found.requires_grad_() if requires_grad else found

        return made

    told: dict[str, Any] = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_name": lambda device=None: "rehearsal",
        "mem_get_info": lambda device=None: (_FREE_BYTES, _ALL_BYTES),
        "max_memory_allocated": lambda device=None: _PEAK_BYTES,
        "memory_allocated": lambda device=None: _PEAK_BYTES, "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None, "synchronize": lambda device=None: None,
    }  # fmt: skip
    mode, context = Rehearsal(), DeviceContext.__torch_function__

    def inside(self: DeviceContext, *args: Any, **kwargs: Any) -> Any:
        with mode.meaning(self.device):
            return context(self, *args, **kwargs)

    with (
        patch.multiple(torch.cuda, **told),
        patch.object(torch, "tensor", moved(real)),
        patch.object(torch, "as_tensor", moved(real_as)), patch.object(torch, "Generator", _Generator),
        patch.object(Tensor, "to", lambda *args, **kwargs: mode.to(*args, **kwargs)),
        patch.object(DeviceContext, "__torch_function__", inside),
        patch.object(Tensor, "cuda", lambda tensor, *args: mode.to(tensor, DEVICE)),
        patch.object(_Generator, "on_device", {}), _parameters_stay_shared(), mode,
    ):  # fmt: skip
        yield mode
