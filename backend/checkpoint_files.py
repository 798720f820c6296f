"""What the files of a model folder say: configuration, safetensors headers, generation rules, tokens."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend.errors import UserError
from backend.host import Host
from backend.whole_files import file_digest

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_COUNTS = (
    "max_position_embeddings",
    "n_positions",
    "hidden_size",
    "n_embd",
    "vocab_size",
    "num_hidden_layers",
    "n_layer",
)
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor in a checkpoint: its shape, bytes and type, and where it lies if it is on this machine."""

    shape: tuple[int, ...]
    size: int
    dtype: str
    file: Path | None = None
    start: int = 0

    def digest(self, host: Host) -> str:
        """sha256 (64 hex digits) of its bytes."""
        assert self.file is not None
        return file_digest(self.file, host, self.start, self.size)


def read_config(folder: Path, model: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"model {model}: config.json cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"model {model}: config.json holds no JSON object")
    for name in _COUNTS:
        value = config.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"model {model}: {name} in config.json is {str(value)[:40]}; allowed: 1 or more")
    return config


def read_headers(folder: Path, model: str) -> dict[str, Stored]:
    files = weight_files(folder, model)
    if not files:
        raise UserError(
            f"model {model}: no safetensors file in it; pickled weights (.bin, .pt) are not loaded for "
            "safety, and GGUF files not at all"
        )
    tensors: dict[str, Stored] = {}
    for file in files:
        first, entries = read_header(file, model)
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            tensors[name] = Stored(shape, stop - start, entry["dtype"], file, first + start)
    return tensors


def weight_files(folder: Path, model: str) -> list[Path]:
    """model.safetensors, or the shards that the index names: what transformers will load, nothing else."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        plain = all(isinstance(name, str) and Path(name).name == name for name in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain, shards = False, []
    if not plain or not shards:
        raise UserError(f"model {model}: {index.name} is no index of safetensors files in that folder")
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise UserError(f"model {model}: {missing[0]} is missing, which its index names; fetch it again")
    return [folder / name for name in shards]


def read_header(file: Path, model: str) -> tuple[int, Mapping[str, Any]]:
    """(where the tensors begin, what the header says of each)."""
    bad = UserError(f"model {model}: {file.name} is not a whole safetensors file; fetch it again")
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _MAX_HEADER:
                raise bad
            header = json.loads(opened.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        last = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if file.stat().st_size != 8 + length + last:
            raise bad
        for name, entry in entries.items():
            if entry["dtype"] not in _BYTES:
                raise quantized_already(model, f"{name} is stored as {entry['dtype']}")
            start, stop = entry["data_offsets"]
            if start < 0 or math.prod(entry["shape"]) * _BYTES[entry["dtype"]] != stop - start:
                raise bad
        return 8 + length, entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise bad from None


def generation_rules(folder: Path, model: str) -> dict[str, Any]:
    """The generation rules that a model's folder holds, as they are; UserError when they cannot be read."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        rules = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"model {model}: {file.name} cannot be read ({error})") from None
    if not isinstance(rules, dict):
        raise UserError(f"model {model}: {file.name} holds no JSON object")
    return rules


@lru_cache(maxsize=16)
def highest_token(file: Path, changed: int) -> int:
    """The highest id in a tokenizer.json, -1 where it tells none."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = told["model"]["vocab"]
        # Unigram models list [token, score], others map a token to its id.
        ids = vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        return int(max([*ids, *(added["id"] for added in told.get("added_tokens", ()))], default=-1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Whether it can be read at all is told where it is loaded.
        return -1


def quantized_already(model: str, how: str) -> UserError:
    return UserError(
        f"model {model}: its weights are quantized already ({how[:60]}); "
        "allowed: the checkpoint in float32, float16 or bfloat16 that it was made from"
    )
