"""Small models through the real pipeline, for methods that change more than single linears."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from backend.artifacts import open_artifact
from backend.host import Host
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import Recipe, parse_recipe
from backend.report import Report
from tests.tiny import make_model, make_text

IDS = torch.arange(48)[None] * 5 % 97 + 4


def outlying(folder: Path, size: float = 60.0, **changes: Any) -> Path:
    """A model some channels of whose residual stream are far larger than the others, as in real ones."""
    make_model(folder, **changes)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for block in model.model.layers:
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight[3::11] *= size
            for linear in (
                block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj,
                block.mlp.gate_proj, block.mlp.up_proj,
            ):  # fmt: skip
                linear.weight[:, 3::11] /= size
    model.save_pretrained(folder)
    return folder


def normed(folder: Path) -> Path:
    """The model with norms that scale each channel differently."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def asked(model: Path, tmp_path: Path, *stages: dict[str, Any], **calibration: Any) -> Recipe:
    """A recipe of these stages on a text of its own."""
    text = tmp_path / "text.txt"
    if not text.exists():
        make_text(text)
    return parse_recipe(
        {
            "model": str(model), "stages": list(stages),
            "calibration": {"text": f"file:{text}", "samples": 8, "length": 64, **calibration},
            "evaluation": {"text": f"file:{text}", "length": 64, "windows": 4},
        }
    )  # fmt: skip


def made(
    model: Path, host: Host, tmp_path: Path, *stages: dict[str, Any], **calibration: Any
) -> tuple[Path, Report]:
    """(artifact, report) of a run."""
    recipe = asked(model, tmp_path, *stages, **calibration)
    name = recipe.digest("test")[:12]
    artifact = tmp_path / f"{name}.safetensors"
    return artifact, compress(recipe, host, artifact, tmp_path / f"scratch-{name}", silent)


@torch.inference_mode()
def logits(model: Path, host: Host, ids: Tensor = IDS) -> Tensor:
    """Of a folder or an artifact."""
    if model.is_dir():
        opened: Any = AutoModelForCausalLM.from_pretrained(model).eval()
    else:
        opened = open_artifact(model, host).model
    return opened(ids).logits.double()


def apart(model: Path, artifact: Path, host: Host) -> float:
    """Mean KL from the dense model's predictions to the artifact's, in nats."""
    dense, now = (logits(one, host).log_softmax(dim=-1) for one in (model, artifact))
    return float((dense.exp() * (dense - now)).sum(dim=-1).mean())
