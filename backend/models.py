"""Find a model, read its layout from the headers, load it; write and open compressed artifacts."""

import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from backend.assets import EMBEDDED_MODEL, model_folder
from backend.errors import UserError
from backend.families import Family, family_of
from backend.host import Host, check_local

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Causal masks and rotary tables that old checkpoints carry; models make their own.
_BUFFER = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|inv_freq$")
_MAX_HEADER = 100_000_000
_TIED_BY_DEFAULT = ("gpt2", "opt", "gemma2", "gemma3_text")


@dataclass(frozen=True)
class ModelCard:
    """What the page says of a model before it is loaded."""

    id: str
    title: str
    note: str


@dataclass(frozen=True)
class ModelFacts:
    """A model's layout, read from config.json and the safetensors headers alone.

    layers      the linears of the blocks: full name -> (out, in)
    tensors     every stored tensor: full name -> (shape, bytes); a head tied to the embedding is left out
    positions   the longest sequence the model reads, in tokens, where the configuration says so
    """

    id: str
    family: Family
    config: dict[str, Any]
    layers: dict[str, tuple[int, int]]
    tensors: dict[str, tuple[tuple[int, ...], int]]
    positions: int | None
    fingerprint: str

    @property
    def parameters(self) -> int:
        """Number of stored weights."""
        total = 0
        for shape, _ in self.tensors.values():
            count = 1
            for side in shape:
                count *= side
            total += count
        return total

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return 1 + max(self.family.place(layer)[0] for layer in self.layers)


CARDS = (
    ModelCard(
        EMBEDDED_MODEL,
        "SmolLM2 135M Instruct (embedded)",
        "Llama architecture, 30 blocks, Apache-2.0. Its weights were 4-bit once (GGUF Q4_1): 4-bit grids "
        "with groups of 32 are kinder to it than to other models, so compare methods at 2 and 3 bits.",
    ),
    ModelCard("HuggingFaceTB/SmolLM2-135M", "SmolLM2 135M", "From the hub: the bf16 base model."),
    ModelCard("HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M Instruct", "From the hub."),
    ModelCard("Qwen/Qwen2.5-0.5B", "Qwen2.5 0.5B", "From the hub; tied embeddings, biases in q, k and v."),
    ModelCard("Qwen/Qwen3-0.6B", "Qwen3 0.6B", "From the hub; norms on queries and keys."),
    ModelCard("TinyLlama/TinyLlama_v1.1", "TinyLlama 1.1B", "From the hub."),
    ModelCard("openai-community/gpt2", "GPT-2", "From the hub; fused projections, learned positions."),
    ModelCard("facebook/opt-125m", "OPT 125M", "From the hub; the model of many compression papers."),
    ModelCard("EleutherAI/pythia-160m", "Pythia 160M", "From the hub; parallel attention and MLP."),
)


def catalogue(host: Host) -> list[ModelCard]:
    """Models worth offering: the embedded one first; any other hub id or local folder works as well."""
    return list(CARDS)


def locate(model: str, host: Host) -> Path:
    """The folder that holds the model's files; a hub model is fetched when it is not here yet.

    Raises UserError when the name is no model here: the embedded one is not fetched, the folder is missing or
    outside the allowed roots, the hub does not know the id or cannot be reached.
    """
    folder = _local(model, host)
    if folder is not None:
        return folder
    _ask_hub(model)
    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise _unreachable(model, error) from None


def facts(model: str, host: Host) -> ModelFacts:
    """Read a model's layout; no weights are loaded, and those of a hub model are not even fetched.

    Raises UserError on anything that is not a supported model.
    """
    folder = _local(model, host)
    if folder is None:
        config, stored, mark = _hub_layout(model)
    else:
        config, stored, mark = _config(folder, model), {}, fingerprint_of(folder, host)
    family = family_of(str(config.get("model_type")), model)
    if folder is not None:
        stored = _headers(folder, model)
    tensors: dict[str, tuple[tuple[int, ...], int]] = {}
    layers: dict[str, tuple[int, int]] = {}
    linears = {name for group in family.linears for name in group}
    tied = config.get("tie_word_embeddings", config["model_type"] in _TIED_BY_DEFAULT)
    block = re.compile(re.escape(family.blocks) + r"\.\d+\.(.+)\.weight")
    for stored_name, (shape, size) in stored.items():
        if _BUFFER.search(stored_name):
            continue
        name = family.prefixed(stored_name)
        if tied and name == f"{family.head}.weight":
            continue
        tensors[name] = (shape, size)
        found = block.fullmatch(name)
        if found and found.group(1) in linears and len(shape) == 2:
            rows, inputs = reversed(shape) if family.transposed else shape
            layers[name.removesuffix(".weight")] = (rows, inputs)
    if not layers:
        raise UserError(f"model {model}: no linear of a {family.name} block in its safetensors files")
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    return ModelFacts(model, family, config, layers, tensors, positions, mark)


def fingerprint(model: str, host: Host) -> str:
    """sha256 (64 hex digits) over configuration and weights; of a hub model, over its id and commit."""
    folder = _local(model, host)
    return _hub_layout(model)[2] if folder is None else fingerprint_of(folder, host)


def _local(model: str, host: Host) -> Path | None:
    """The model's folder if it is on this machine; None for a hub model that has to be fetched first."""
    if model == EMBEDDED_MODEL:
        folder = model_folder(host)
        if not (folder / "config.json").exists():
            raise UserError(
                f"model {model}: not fetched yet; run `make setup` once while the package index answers"
            )
        return folder
    if model.startswith(("/", ".", "~")) or "\\" in model or Path(model).is_dir():
        folder = check_local(model, host)
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model {model}: no config.json there; expected a transformers folder with safetensors"
            )
        return folder
    if not _HUB_ID.fullmatch(model):
        raise UserError(
            f"model {model[:100]}: not a model; "
            f"allowed: {EMBEDDED_MODEL}, a hub id like Qwen/Qwen2.5-0.5B, or a folder"
        )
    try:
        folder = Path(snapshot_download(model, allow_patterns=_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def _ask_hub(model: str) -> str:
    """The commit that the hub would serve; asked first, since a download retries for long."""
    try:
        return str(HfApi().model_info(model, timeout=5).sha)
    except RepositoryNotFoundError:
        raise UserError(f"model {model}: the hub knows no public model of that name") from None
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise _unreachable(model, error) from None


@lru_cache(maxsize=64)
def _hub_layout(model: str) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int]], str]:
    """(configuration, headers, fingerprint) of a hub model, from a few kilobytes of it."""
    commit = _ask_hub(model)
    try:
        config = _config(Path(hf_hub_download(model, "config.json", revision=commit)).parent, model)
        found = HfApi().get_safetensors_metadata(model, revision=commit)
    except NotASafetensorsRepoError:
        raise UserError(
            f"model {model}: no safetensors in it; pickled weights are not loaded for safety"
        ) from None
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise _unreachable(model, error) from None
    stored = {
        name: (tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0])
        for file in found.files_metadata.values()
        for name, entry in file.tensors.items()
    }
    return config, stored, _hub_fingerprint(model, commit)


def _hub_fingerprint(model: str, commit: str) -> str:
    return hashlib.sha256(f"hub:{model}@{commit}".encode()).hexdigest()


def _unreachable(model: str, error: Exception) -> UserError:
    reason = str(error).split("\n")[0][:150]
    return UserError(
        f"model {model}: not on this machine and the hub cannot be reached ({reason}); "
        f"{EMBEDDED_MODEL} and local folders work without it"
    )


def fingerprint_of(folder: Path, host: Host) -> str:
    """sha256 over config.json and all safetensors files, remembered by their size and time.

    A snapshot of the hub is known by its commit: a model has one fingerprint before and after it is fetched.
    """
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return _hub_fingerprint(name, folder.name)
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    memory = host.cache / "fingerprints.json"
    known: dict[str, str] = {}
    if memory.exists():
        try:
            known = json.loads(memory.read_text())
        except ValueError:
            known = {}
    total = hashlib.sha256()
    fresh = False
    for file in files:
        state = file.stat()
        key = f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        if key not in known:
            with file.open("rb") as opened:
                known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
            fresh = True
        total.update(f"{file.name}\n{known[key]}\n".encode())
    if fresh:
        replace_file(memory, json.dumps(known).encode())
    return total.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(opened.name, path)


def _config(folder: Path, model: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"model {model}: config.json cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"model {model}: config.json holds no JSON object")
    return config


def _headers(folder: Path, model: str) -> dict[str, tuple[tuple[int, ...], int]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model {model}: no safetensors file in it; pickled weights (.bin, .pt) are not loaded for safety"
        )
    tensors: dict[str, tuple[tuple[int, ...], int]] = {}
    for file in files:
        for name, entry in _header(file, model).items():
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            tensors[name] = (tuple(entry["shape"]), size)
    return tensors


def _header(file: Path, model: str) -> Mapping[str, Any]:
    bad = UserError(f"model {model}: {file.name} is not a whole safetensors file; fetch it again")
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _MAX_HEADER:
                raise bad
            header = json.loads(opened.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        last = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if file.stat().st_size != 8 + length + last or any(
            entry["dtype"] not in _BYTES for entry in entries.values()
        ):
            raise bad
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise bad from None
