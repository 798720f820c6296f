"""Find a model: the embedded one, a folder, or one of the hub, and know it again by its fingerprint."""

import hashlib
import re
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
from backend.checkpoint_files import Stored, read_config, weight_files
from backend.errors import UserError
from backend.host import Host, check_local
from backend.whole_files import file_digest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
_LONGEST_NAME = 240
_MARKING = ("config.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges.txt")


@dataclass(frozen=True)
class ModelCard:
    """What the page says of a model before it is loaded."""

    id: str
    title: str
    note: str


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
    folder = local_folder(model, host)
    if folder is not None:
        return folder
    commit = _ask_hub(model)
    try:
        return Path(snapshot_download(model, revision=commit, allow_patterns=_FILES))
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise _unreachable(model, error) from None


def fingerprint(model: str, host: Host) -> str:
    """sha256 (64 hex digits) over configuration and weights; of a hub model, over its id and commit."""
    folder = local_folder(model, host)
    return hub_layout(model)[2] if folder is None else fingerprint_of(folder, host)


def local_folder(model: str, host: Host) -> Path | None:
    """The model's folder if it is on this machine; None for a hub model that has to be fetched first."""
    if model == EMBEDDED_MODEL:
        folder = model_folder(host)
        if not (folder / "config.json").exists():
            raise UserError(
                f"model {model}: not fetched yet; run `make setup` once while the package index answers"
            )
        return folder
    if len(model) > _LONGEST_NAME:
        raise UserError(f"model {model[:60]}...: the name is too long; allowed: {_LONGEST_NAME} characters")
    if model.startswith(("/", ".", "~")) or "\\" in model or Path(model).is_dir():
        folder = check_local(model, host)
        if not (folder / "config.json").is_file():
            adapter = (folder / "adapter_config.json").is_file()
            found = "an adapter alone; merge it into its base model" if adapter else "no config.json there"
            raise UserError(f"model {model}: {found}; expected a transformers folder with safetensors")
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
    # A download that was cut short goes on at the next use.
    try:
        whole = bool(weight_files(folder, model)) and any(folder.glob("tokenizer*"))
    except UserError:
        whole = False
    return folder if whole else None


def _ask_hub(model: str) -> str:
    """The commit that the hub would serve; asked first, since a download retries for long."""
    try:
        return str(HfApi().model_info(model, timeout=5).sha)
    except RepositoryNotFoundError:
        raise UserError(f"model {model}: the hub knows no public model of that name") from None
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise _unreachable(model, error) from None


@lru_cache(maxsize=64)
def hub_layout(model: str) -> tuple[dict[str, Any], dict[str, Stored], str]:
    """(configuration, headers, fingerprint) of a hub model, from a few kilobytes of it."""
    commit = _ask_hub(model)
    try:
        config = read_config(Path(hf_hub_download(model, "config.json", revision=commit)).parent, model)
        found = HfApi().get_safetensors_metadata(model, revision=commit)
    except NotASafetensorsRepoError:
        raise UserError(
            f"model {model}: no safetensors in it; pickled weights are not loaded for safety"
        ) from None
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise _unreachable(model, error) from None
    stored = {
        name: Stored(tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0], entry.dtype)
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
    """sha256 over the configuration, weights and tokenizer in a folder.

    A snapshot of the hub is known by its commit: a model has one fingerprint before and after it is fetched.
    """
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return _hub_fingerprint(name, folder.name)
    total = hashlib.sha256()
    for file in sorted({file for pattern in _MARKING for file in folder.glob(pattern)}):
        total.update(f"{file.name}\n{file_digest(file, host)}\n".encode())
    return total.hexdigest()
