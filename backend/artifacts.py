"""Load a model; write a compressed one to a single safetensors file; open that file again."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from backend.checkpoint_files import generation_rules
from backend.errors import UserError
from backend.facts import ModelFacts, facts
from backend.families import Family, family_of
from backend.host import Host
from backend.linear import CompressedLinear
from backend.models import fingerprint, locate
from backend.parts import Part, combined, rebuild
from backend.precision import compute_dtype, compute_in, computed_in, known_speeds, name_of
from backend.readout import Bounds, Readout
from backend.shared import SharedHead, SharedRows
from backend.whole_files import replace_file

FORMAT = "paretoscope-1"
# Room left on the disk for the databases and the log when an artifact is written.
_SPARE_BYTES = 64_000_000


@dataclass
class OpenModel:
    """A model ready to run, with its family, tokenizer id and device."""

    model: Any
    family: Family
    name: str
    device: torch.device

    @property
    def head(self) -> nn.Module:
        """The module behind the last norm, a row a token."""
        return self.model.get_submodule(self.family.head)

    @property
    def body(self) -> nn.Module:
        """Everything before the head: token ids in, final hidden states out."""
        return self.model.get_submodule(self.family.blocks.split(".", 1)[0])

    @property
    def compute_dtype(self) -> torch.dtype:
        """What it is computed in, its weights widened where they are stored in fewer bits."""
        return computed_in(self.model)

    @property
    def readout(self) -> Readout:
        """What turns final hidden states [..., d] into logits [..., vocabulary]."""
        return Readout(self.head, Bounds.of(self.model.config))


def device_of(host: Host) -> torch.device:
    """The device that `PARETOSCOPE_DEVICE` means on this machine."""
    wanted = host.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise UserError(f"PARETOSCOPE_DEVICE is '{wanted}'; allowed: auto, cpu, cuda, cuda:N")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"PARETOSCOPE_DEVICE is '{wanted}', but this machine has no CUDA device; allowed: auto, cpu"
        )
    return device


def computed_wider(layout: ModelFacts, host: Host) -> list[str]:
    """What the keys of kept results say of a model that is computed in more bits than it is stored in."""
    stored = getattr(torch, layout.stored_dtype)
    computed = compute_dtype(stored, device_of(host), host)
    return [] if computed == stored else [f"computed in {name_of(computed)}"]


def speeds(layout: ModelFacts, host: Host) -> tuple[float | None, float | None]:
    """10^9 FLOP/s of the model's products and of float32 ones on this host, as far as they are known."""
    return known_speeds(getattr(torch, layout.stored_dtype), device_of(host), host)


def load_tokenizer(model: str, host: Host) -> Any:
    """The tokenizer that belongs to a model, which says how many tokens this can take (`embedding_rows`).

    Raises UserError when its files are missing or broken.
    """
    folder = locate(model, host)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=host.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"model {model}: its tokenizer cannot be read ({reason})") from None
    layout = facts(model, host)
    tokenizer.embedding_rows = layout.tables[layout.family.embeddings[0]][0]
    return tokenizer


@torch.inference_mode(False)
def load_model(layout: ModelFacts, host: Host) -> OpenModel:
    """The dense model in its stored type on the host's device.

    It is outside inference mode, whatever its caller is in, since gradients may be asked of it.
    Raises UserError when a file is corrupt, weights are missing, or a weight is NaN or infinite.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = device_of(host)
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            locate(layout.id, host),
            dtype=getattr(torch, layout.stored_dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"model {layout.id}: its weights cannot be loaded ({reason})") from None
    model, found = opened
    if found["missing_keys"]:
        raise UserError(
            f"model {layout.id}: tensor {min(found['missing_keys'])} is missing; repair the folder"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"model {layout.id}: an adapter came with it; move it out of the folder, or merge it")
    # What is opened again by its configuration must not tie a head that the checkpoint holds.
    model.config.tie_word_embeddings = f"{layout.family.head}.weight" not in layout.tensors
    # A run keeps these three; any other rule of the folder would make the dense model answer by other rules.
    model.generation_config = GenerationConfig(**stored_generation(model))
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"model {layout.id}: tensor {name} holds NaN or infinite values; fetch or repair it"
            )
    compute_in(model, layout.family, compute_dtype(model.dtype, device, host))
    return OpenModel(model.to(device).eval().requires_grad_(False), layout.family, layout.id, device)


def compressed_modules(model: nn.Module) -> dict[str, CompressedLinear]:
    """The compressed linears of a model by full name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CompressedLinear)}


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule `name` sits."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def save_artifact(
    path: Path,
    dense: Mapping[str, Tensor],
    parts: Mapping[str, tuple[Part, ...]],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    layout: ModelFacts,
    recipe_json: str,
    rules: Mapping[str, Any],
) -> None:
    """Write one safetensors file, whole or not at all.

    dense       tensors kept as they are, by full name (embeddings, norms, biases, untouched linears)
    parts       what each compressed linear is the sum of
    generation  the token ids that a run's answers end by
    rules       all generation rules of the model's folder, for exports

    Raises UserError when the disk has no room for it.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in dense.items()}
    described: dict[str, list[dict[str, Any]]] = {}
    for layer, pieces in parts.items():
        described[layer] = [{"kind": piece.kind, "settings": piece.settings()} for piece in pieces]
        for number, piece in enumerate(pieces):
            for name, tensor in piece.tensors().items():
                tensors[f"{layer}#{number}.{name}"] = tensor.contiguous().cpu()
    metadata = {
        "format": FORMAT,
        "model": layout.id,
        "fingerprint": layout.fingerprint,
        "recipe": recipe_json,
        "config": json.dumps(config),
        "generation": json.dumps(generation),
        "rules": json.dumps(rules),
        "parts": json.dumps(described),
    }
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    full = (
        f"the disk is full: the artifact needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
        "remove runs or free some space, then retry"
    )
    if free < needed + _SPARE_BYTES:
        raise UserError(full)
    temporary = path.with_suffix(".writing")
    try:
        save_file(tensors, temporary, metadata=metadata)
        with temporary.open("rb+") as opened:
            os.fsync(opened.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        if "No space left" in str(error):
            raise UserError(full) from None
        raise


def is_whole(path: Path) -> bool:
    """Whether a scratch or cache file can be read; a damaged one is removed, to be made again.

    Its folder counts as used now.
    """
    if not path.exists():
        return False
    with suppress(OSError):
        os.utime(path.parent)
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        path.unlink(missing_ok=True)
        return False


def read_metadata(path: Path) -> dict[str, Any]:
    """What an artifact says of itself: model, fingerprint, recipe, config, generation, rules, parts."""
    try:
        with safe_open(path, "pt") as opened:
            raw = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"artifact {path.name}: cannot be read ({error}); run its recipe again") from None
    if raw.get("format") != FORMAT:
        raise UserError(f"artifact {path.name}: format is {raw.get('format')}; this version reads {FORMAT}")
    try:
        told = {name: json.loads(raw[name]) for name in ("config", "generation", "parts", "recipe")}
        family_of(str(told["config"].get("model_type")), raw["model"])
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"artifact {path.name}: its header is damaged ({error}); run its recipe again"
        ) from None
    told["config"] = _plain_config(told["config"])
    # Artifacts of before did not keep the rules.
    return {**raw, **told, "rules": json.loads(raw["rules"]) if "rules" in raw else None}


def read_parts(path: Path) -> dict[str, tuple[Part, ...]]:
    """The parts of every compressed linear of an artifact."""
    described = read_metadata(path)["parts"]
    with safe_open(path, "pt") as opened:
        names = set(opened.keys())
        return {
            layer: tuple(
                _part(opened, names, f"{layer}#{number}.", piece) for number, piece in enumerate(pieces)
            )
            for layer, pieces in described.items()
        }


def tensor_sizes(path: Path) -> dict[str, int]:
    """Bytes of each tensor in an artifact; the tensors of parts are named `layer#part.tensor`."""
    sizes = {}
    with safe_open(path, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
            tensor = opened.get_tensor(name)
            sizes[name] = tensor.numel() * tensor.element_size()
    return sizes


@torch.inference_mode(False)
def open_artifact(path: Path, host: Host, packed: bool = False) -> OpenModel:
    """The compressed model, each weight decoded from the stored parts; `packed` decodes in each call."""
    transformers_logging.set_verbosity_error()
    device = device_of(host)
    metadata = read_metadata(path)
    config = AutoConfig.for_model(**metadata["config"])
    dtype = getattr(torch, str(metadata["config"].get("dtype") or "float32").removeprefix("torch."))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, value in metadata["generation"].items():
        setattr(model.generation_config, name, value)
    parts = read_parts(path)
    with safe_open(path, "pt") as opened:
        dense = {name: opened.get_tensor(name).clone() for name in opened.keys() if "#" not in name}  # noqa: SIM118
    family = family_of(metadata["config"]["model_type"], metadata["model"])
    for table in parts.keys() & set(family.tables):
        pieces = parts.pop(table)
        if table == family.head and len(pieces) == 1 and isinstance(pieces[0], SharedRows):
            replace_module(model, table, SharedHead(pieces[0].to(device), dense.pop(f"{table}.bias", None)))
        else:
            dense[f"{table}.weight"] = combined(pieces).to(dtype)
    for layer, pieces in parts.items():
        bias = dense.pop(f"{layer}.bias", None)
        moved = tuple(piece.to(device) for piece in pieces)
        module = CompressedLinear(moved, None if bias is None else bias.to(device), dtype, packed)
        replace_module(model, layer, module)
    model.load_state_dict(dense, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if missing:
        raise UserError(f"artifact {path.name}: tensor {missing[0]} is missing; run its recipe again")
    compute_in(model, family, compute_dtype(dtype, device, host))
    return OpenModel(model.to(device).eval().requires_grad_(False), family, metadata["model"], device)


def stored_config(model: Any) -> dict[str, Any]:
    """The configuration as an artifact keeps it."""
    return _plain_config(json.loads(model.config.to_json_string(use_diff=False)))


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Without what names files that no artifact has: the model is built by transformers' own classes."""
    return {name: value for name, value in config.items() if name not in ("auto_map", "_name_or_path")}


def exported_with(metadata: Mapping[str, Any], folder: Path, host: Host) -> None:
    """Write what belongs to a model beside its weights: tokenizer with its template, and generation rules.

    Raises UserError when the model's folder has changed since the run, whose tokenizer is gone then.
    """
    model = metadata["model"]
    if fingerprint(model, host) != metadata["fingerprint"]:
        raise UserError(
            f"export: {model} has changed since the run, and with it its tokenizer; "
            "allowed: restore it, or run the recipe again"
        )
    tokenizer = load_tokenizer(model, host)
    # Only the tokenizer's own files are written, not code that it may have come with.
    tokenizer.init_kwargs.pop("auto_map", None)
    tokenizer.save_pretrained(folder)
    rules = metadata["rules"]
    if rules is None:
        rules = generation_rules(locate(model, host), model)
    if rules:
        replace_file(folder / "generation_config.json", json.dumps(rules, indent=2).encode())


def stored_generation(model: Any) -> dict[str, Any]:
    """The token ids that end a generation."""
    config = model.generation_config
    return {
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
    }


def dense_tensors(model: nn.Module, compressed: set[str]) -> dict[str, Tensor]:
    """All tensors of a model but the weights of the `compressed` linears; shared ones once."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen and name.removesuffix(".weight") not in compressed:
            kept[name] = tensor
        # Of a compressed embedding the head that is tied to it is no tensor of its own either.
        seen.add(tensor.data_ptr())
    return kept


def _part(opened: Any, names: set[str], prefix: str, described: dict[str, Any]) -> Part:
    tensors = {
        name.removeprefix(prefix): opened.get_tensor(name).clone()
        for name in names
        if name.startswith(prefix)
    }
    return rebuild(described["kind"], described["settings"], tensors)
