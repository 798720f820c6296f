"""A plain transformers folder of the dequantized weights: loads everywhere, saves no memory.

Every compressed linear becomes its dense sum in the model's type. Low-rank factors are merged, which rounds
once more; without them the weights are bit for bit those that were evaluated. The folder is opened again
before the export counts as done.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from backend.artifacts import (
    compressed_modules,
    exported_with,
    open_artifact,
    read_metadata,
    replace_module,
)
from backend.errors import UserError
from backend.host import Host
from backend.linear import CompressedLinear
from backend.parts import before_inputs
from backend.precision import compute_in, name_of
from backend.shared import SharedHead

# Merged factors are rounded to the model's type; more than this share of the logits' range is another model.
_TOLERANCE = 0.1


def export(artifact: Path, folder: Path, host: Host) -> None:
    """Write and reopen the folder; RuntimeError when the reopened model answers otherwise."""
    metadata = read_metadata(artifact)
    opened = open_artifact(artifact, host)
    model = opened.model
    probe = torch.arange(16, device=opened.device)[None] % model.config.vocab_size
    with torch.inference_mode():
        before = model(probe).logits.float()
    if not bool(torch.isfinite(before).all()):
        raise UserError(
            f"export: the run's model answers in values that are no numbers, computed in "
            f"{name_of(opened.compute_dtype)}; allowed: the format safetensors"
        )
    for name, module in compressed_modules(model).items():
        dense = _weight(name, module).to(module.dtype)
        replace_module(model, name, _plain(dense, module.bias, opened.family.transposed))
    if isinstance(opened.head, SharedHead):
        replace_module(model, opened.family.head, _plain(opened.head.weight, opened.head.bias, False))
    model.save_pretrained(folder)
    exported_with(metadata, folder, host)
    family, dtype = opened.family, opened.compute_dtype
    del model, opened
    again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    compute_in(again.to(probe.device), family, dtype)
    with torch.inference_mode():
        after = again(probe).logits.float()
    if not bool((before - after).abs().max() <= _TOLERANCE * before.abs().max()):
        raise RuntimeError(f"the model in {folder} does not answer as the artifact does")


def _weight(name: str, module: CompressedLinear) -> torch.Tensor:
    """What a plain linear must hold [out, in] to compute the same; UserError where none can."""
    if any(not change.keeps_values for change in module.inputs):
        raise UserError(
            f"export: {name} rounds its activations, which a plain folder cannot hold; allowed: safetensors"
        )
    return before_inputs(module.parts)


def _plain(weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> nn.Module:
    # Only the names of its tensors matter from here on: saving stores them, loading builds the real module.
    module = nn.Module()
    module.weight = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    return module
