"""What a model is computed in, beside what it is stored in.

Weights stay stored in their type. Where this processor multiplies that type slowly, as one without bfloat16
instructions does, a block's weights are widened to float32 while the block runs, and states, attention, head
and Gram matrices are float32 with them. A number says which it was: `compute_dtype` of its protocol.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from backend.families import Family, blocks_of
from backend.host import Host
from backend.whole_files import replace_file

WIDE = torch.float32
# Shape of the product and of the attention that are timed: [tokens, in] times [in, out], heads of 64.
_TOKENS, _INPUTS, _OUTPUTS, _HEADS, _HEAD = 256, 512, 1024, 4, 64
_REPEATS = 5
# Another number makes kept measurements unread.
_MEASURED = 1
# Widened weights may stay for many short passes where they take at most this share of the free memory.
_FREE_SHARE = 0.5
_CPU_INFO = Path("/proc/cpuinfo")


def compute_dtype(stored: torch.dtype, device: torch.device, host: Host) -> torch.dtype:
    """What a model of this type is computed in here, as `PARETOSCOPE_COMPUTE` says.

    `auto` takes the type whose products are faster on this processor, and on a GPU the stored one; `bfloat16`
    computes 16-bit weights as they are stored, `float32` widens them.
    """
    if stored.itemsize >= WIDE.itemsize or host.compute == "bfloat16":
        return stored
    if host.compute == "float32":
        return WIDE
    if device.type != "cpu":
        return stored
    narrow, wide = (products(host, each) for each in (stored, WIDE))
    return stored if narrow >= wide else WIDE


def products(host: Host, dtype: torch.dtype) -> float:
    """Multiply-adds a second of this processor in a type, in 10^9 FLOP/s; measured once and kept."""
    file, key = host.home / "products.json", f"{_processor()}, {name_of(dtype)}"
    known = _kept(file)
    if key not in known:
        known = _kept(file) | {key: round(_measured(dtype), 2)}
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(known, indent=1).encode())
    return float(known[key])


def known_speeds(stored: torch.dtype, device: torch.device, host: Host) -> tuple[float | None, float | None]:
    """10^9 FLOP/s of a model of this type as it is computed here, and of float32 products, as far as they
    were measured; nothing is measured for it."""
    known = known_products(host) if device.type == "cpu" else {}
    if not {name_of(stored), name_of(WIDE)} <= known.keys():
        return None, None
    return known[name_of(compute_dtype(stored, device, host))], known[name_of(WIDE)]


def known_products(host: Host) -> dict[str, float]:
    """{type: 10^9 FLOP/s} as far as measured on this processor."""
    prefix = f"{_processor()}, "
    found = _kept(host.home / "products.json")
    return {key.removeprefix(prefix): float(found[key]) for key in found if key.startswith(prefix)}


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def _kept(file: Path) -> dict[str, float]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, float) and value > 0}


@cache
def _processor() -> str:
    """What the speed of products depends on: the processor, torch, and limits set on their instructions."""
    told = platform.processor() or platform.machine()
    if _CPU_INFO.exists() and (found := re.search(r"model name\s*:\s*(.+)", _CPU_INFO.read_text())):
        told = found.group(1)
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    flags = [torch.backends.cpu.get_cpu_capability(), *(limit for limit in limits if limit)]
    return ", ".join([f"{_MEASURED}", told.strip(), f"torch {torch.__version__}", *flags])


@torch.inference_mode()
def _measured(dtype: torch.dtype) -> float:
    x, weight = torch.ones(_TOKENS, _INPUTS, dtype=dtype), torch.ones(_OUTPUTS, _INPUTS, dtype=dtype)
    heads = torch.ones(1, _HEADS, _TOKENS, _HEAD, dtype=dtype)

    def run() -> None:
        functional.linear(x, weight)
        functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)

    run()
    # The best of several: what else the machine does can only make one slower.
    seconds = min(_timed(run) for _ in range(_REPEATS))
    operations = 2 * _TOKENS * _INPUTS * _OUTPUTS + 4 * _HEADS * _TOKENS * _TOKENS * _HEAD
    return operations / seconds / 1e9


def _timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compute_in(model: Any, family: Family, dtype: torch.dtype) -> None:
    """From now on compute a model in a type at least as wide as its own; weights stay stored as they are.

    A pass with gradients keeps the widened weights of all blocks until it goes back through them.
    """
    model.compute_dtype = dtype
    if dtype == model.dtype:
        return
    for unit in _units(model, family):
        widen_in_calls(unit, dtype)


@contextmanager
def computed_as(model: Any, family: Family, dtype: torch.dtype) -> Iterator[None]:
    """Compute a model in a type at least as wide as what it is computed in, for a while."""
    before = computed_in(model)
    if before.itemsize >= dtype.itemsize:
        yield
        return
    handles = [handle for unit in _units(model, family) for handle in widen_in_calls(unit, dtype)]
    model.compute_dtype = dtype
    try:
        yield
    finally:
        model.compute_dtype = before
        for handle in handles:
            handle.remove()
        for unit in _units(model, family):
            unit.__dict__.pop("narrow", None)
            unit.__dict__.pop("compute_dtype", None)


def computed_in(model: Any) -> torch.dtype:
    """The type that a model is computed in."""
    return getattr(model, "compute_dtype", model.dtype)


def widen_in_calls(module: nn.Module, dtype: torch.dtype) -> list[RemovableHandle]:
    """Widen a module's weights while it runs, until the hooks that are returned are removed."""
    plain: Any = module
    if type(module) is nn.Embedding:
        # A few rows of a large table are wanted: these are widened.
        return [module.register_forward_hook(lambda module, given, rows: rows.to(dtype))]
    plain.compute_dtype, plain.narrow = dtype, []
    return [
        module.register_forward_pre_hook(lambda module, given: _widen(module)),
        module.register_forward_hook(lambda module, given, out: _narrow(module), always_call=True),
    ]


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Keep a module's weights as wide as it is computed in, for several calls."""
    if not hasattr(module, "narrow"):
        yield
        return
    _widen(module)
    try:
        yield
    finally:
        _narrow(module)


@contextmanager
def all_widened(model: Any, family: Family) -> Iterator[None]:
    """Keep all weights wide for many short passes, such as those of an answer, where memory allows."""
    units = [unit for unit in _units(model, family) if hasattr(unit, "narrow")]
    needed = sum(tensor.numel() * WIDE.itemsize for unit in units for *_, tensor in _narrower(unit))
    with ExitStack() as stack:
        if needed <= _FREE_SHARE * _free_bytes(model.device):
            for unit in units:
                stack.enter_context(widened(unit))
        yield


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _units(model: Any, family: Family) -> list[nn.Module]:
    """The blocks, and whatever beside them has weights of its own."""
    blocks = list(blocks_of(model, family))
    inside = {module for block in blocks for module in block.modules()}
    others = [
        module
        for module in model.modules()
        if module not in inside and (module._parameters or module._buffers)
    ]
    return [*blocks, *others]


def _narrower(module: Any) -> list[tuple[dict[str, Any], str, Tensor]]:
    return [
        (held, name, tensor)
        for part in module.modules()
        for held in (part._parameters, part._buffers)
        for name, tensor in held.items()
        if tensor is not None
        and tensor.is_floating_point()
        and tensor.dtype.itemsize < module.compute_dtype.itemsize
    ]


def _widen(module: Any) -> None:
    found = _narrower(module)
    for held, name, tensor in found:
        wide = tensor.detach().to(module.compute_dtype)
        held[name] = nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide
    # Inside a wide module a call finds nothing narrow, and gives back nothing.
    module.narrow.append(found)


def _narrow(module: Any) -> None:
    if module.narrow:
        for held, name, tensor in module.narrow.pop():
            held[name] = tensor
