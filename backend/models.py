"""Find a model, read its layout from the headers, load it; write and open compressed artifacts."""

import hashlib
import json
import math
import os
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

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
from backend.skeleton import Skeleton, skeleton

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Causal masks and rotary tables that old checkpoints carry; models make their own.
_BUFFER = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|inv_freq$")
_LONGEST_NAME = 240
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
# Bytes of a file that are in memory at once.
_PIECE = 1 << 22
# Stored types of codes, not of weights.
_CODES = ("I64", "I32", "I16", "I8", "U8", "BOOL")
_MARKING = ("config.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges.txt")
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LOADED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# What tells that a checkpoint is quantized: keys of its configuration, files beside it, ends of names.
_QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
_QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_PACKED = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB", ".absmax",
    ".weight.absmax", ".scales", ".biases",
)  # fmt: skip
_NAMED = 3


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
    stored_dtype    the type that the weights are loaded in
    notes       what the folder holds that the model does not take, a sentence each
    emptied     as many linears, of the same shapes, as a stage will leave nothing of
    """

    id: str
    family: Family
    config: dict[str, Any]
    layers: dict[str, tuple[int, int]]
    tensors: dict[str, tuple[tuple[int, ...], int]]
    positions: int | None
    fingerprint: str
    stored_dtype: str
    notes: tuple[str, ...] = ()
    emptied: frozenset[str] = frozenset()

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
    def tables(self) -> dict[str, tuple[int, int]]:
        """Embeddings and head, one row a token: full name -> (rows, d); a tied head is its embedding."""
        found = {name: self.tensors.get(f"{name}.weight") for name in self.family.tables}
        return {
            name: (told[0][0], told[0][1])
            for name, told in found.items()
            if told is not None and len(told[0]) == 2
        }

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return 1 + max(self.family.place(layer)[0] for layer in self.layers)


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
    commit = _ask_hub(model)
    try:
        return Path(snapshot_download(model, revision=commit, allow_patterns=_FILES))
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
    _check_not_quantized(config, folder, model)
    if folder is not None:
        stored = _headers(folder, model)
        generation_rules(folder, model)
    _check_plain(stored, model)
    _check_blocks(config, {family.prefixed(name) for name in stored}, family, model)
    shapes, unused = _loaded(stored, family, skeleton(config, model), folder, host, model)
    layers: dict[str, tuple[int, int]] = {}
    linears = {name for group in family.linears for name in group}
    block = re.compile(re.escape(family.blocks) + r"\.\d+\.(.+)\.weight")
    for name, shape in shapes.items():
        found = block.fullmatch(name)
        if found and found.group(1) in linears:
            rows, inputs = reversed(shape) if family.transposed else shape
            layers[name.removesuffix(".weight")] = (rows, inputs)
    dtype, mixed = _loaded_type(config, stored, model)
    width = _LOADED_BYTES[dtype]
    sizes = {name: (shape, math.prod(shape) * width) for name, shape in shapes.items()}
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    rows = shapes[f"{family.embeddings[0]}.weight"][0]
    notes = (*mixed, *_notes(unused, folder, model), *_without_rows(folder, config, rows))
    return ModelFacts(model, family, config, layers, sizes, positions, mark, dtype, notes)


def _loaded_type(
    config: Mapping[str, Any], stored: Mapping[str, "Stored"], model: str
) -> tuple[str, tuple[str, ...]]:
    """(the type that weights are loaded in, what is to be said of it): what config.json names, whatever they
    are stored in, else the one that most of them have."""
    weights: Counter[str] = Counter()
    for told in stored.values():
        if told.dtype in _FLOATS:
            weights[_FLOATS[told.dtype]] += math.prod(told.shape)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or weights.most_common(1)[0][0])
    dtype = dtype.removeprefix("torch.")
    if dtype not in _LOADED_BYTES:
        raise UserError(f"model {model}: its type is {dtype[:40]}; allowed: {', '.join(_LOADED_BYTES)}")
    if set(weights) == {dtype}:
        return dtype, ()
    return dtype, (f"stored in {' and '.join(sorted(weights))}, loaded in {dtype}",)


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


def _check_not_quantized(config: Mapping[str, Any], folder: Path | None, model: str) -> None:
    told = next((config[key] for key in _QUANTIZED_KEYS if config.get(key)), None)
    beside = next((name for name in _QUANTIZED_FILES if folder and (folder / name).is_file()), None)
    if told is None and beside is None:
        return
    method = told.get("quant_method") or told.get("format") if isinstance(told, Mapping) else None
    raise _quantized(model, str(method or beside or "as config.json says"))


def _quantized(model: str, how: str) -> UserError:
    return UserError(
        f"model {model}: its weights are quantized already ({how[:60]}); "
        "allowed: the checkpoint in float32, float16 or bfloat16 that it was made from"
    )


def _check_plain(stored: Mapping[str, "Stored"], model: str) -> None:
    """UserError where weights are codes: what they mean is known to the tool alone that made them."""
    packed = next((name for name in stored if name.endswith(_PACKED)), None)
    codes = next((name for name, told in stored.items() if _is_weight(name) and told.dtype in _CODES), None)
    if packed or codes:
        raise _quantized(model, f"tensor {packed or codes}")


def _is_weight(name: str) -> bool:
    return name.endswith("weight") and not _BUFFER.search(name)


def _check_blocks(config: Mapping[str, Any], names: set[str], family: Family, model: str) -> None:
    start = f"{family.blocks}."
    numbers = {name.removeprefix(start).split(".", 1)[0] for name in names if name.startswith(start)}
    blocks = {int(number) for number in numbers if number.isdecimal()}
    if not blocks:
        raise UserError(f"model {model}: no linear of a {family.name} block in its safetensors files")
    told = config.get("num_hidden_layers") or config.get("n_layer") or len(blocks)
    if blocks != set(range(told)):
        raise UserError(
            f"model {model}: config.json tells of {told} blocks, the weights hold {len(blocks)}; "
            "repair the folder"
        )


def _loaded(
    stored: Mapping[str, "Stored"],
    family: Family,
    made: Skeleton,
    folder: Path | None,
    host: Host,
    model: str,
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """(shapes of the tensors that the model takes, a tied one once; names of those that it does not take).

    Raises UserError when a tensor is missing or of another shape.
    """
    found = {family.prefixed(name): told for name, told in stored.items() if not _BUFFER.search(name)}
    unused = [name for name in found if name not in made.shapes and not made.does_without(name)]
    found = {name: told for name, told in found.items() if name in made.shapes}
    for tied, source in made.ties.items():
        if tied in found and source not in found:
            found[source] = found.pop(tied)
        elif tied in found and _equal(found[tied], found[source], host):
            del found[tied]
    for name, shape in made.shapes.items():
        if name not in found and made.ties.get(name) not in found:
            near = f"; {unused[0]} is there, which the model does not take" if unused else ""
            raise UserError(f"model {model}: tensor {name} is missing; repair the folder{near}")
        if name in found and found[name].shape != shape:
            raise UserError(
                f"model {model}: {name} is {_by(found[name].shape)}, config.json asks for {_by(shape)}; "
                "repair the folder"
            )
    return {name: told.shape for name, told in found.items()}, unused


def _without_rows(folder: Path | None, config: Mapping[str, Any], rows: int) -> list[str]:
    """What to say of tokens that configuration and tokenizer know and the embedding has no row for."""
    notes = []
    for name in ("bos_token_id", "eos_token_id"):
        told = config.get(name)
        ids = [one for one in (told if isinstance(told, list) else [told]) if isinstance(one, int)]
        if ids and max(ids) >= rows:
            notes.append(f"{name} {max(ids)} of config.json has no row in the embedding of {rows} rows")
    file = folder / "tokenizer.json" if folder else None
    if (
        file is not None
        and file.is_file()
        and (most := _highest_token(file, file.stat().st_mtime_ns)) >= rows
    ):
        notes.append(
            f"the tokenizer knows tokens up to {most}, the embedding has {rows} rows: texts with them fail"
        )
    return notes


@lru_cache(maxsize=16)
def _highest_token(file: Path, changed: int) -> int:
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


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _equal(one: "Stored", other: "Stored", host: Host) -> bool:
    """Whether two tensors hold the same; of a model that is not here yet, whether they could."""
    if one.file is None or other.file is None:
        return one.shape == other.shape
    return one.shape == other.shape and one.digest(host) == other.digest(host)


def _notes(unused: list[str], folder: Path | None, model: str) -> tuple[str, ...]:
    notes = []
    if unused:
        more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
        notes.append(
            f"not loaded, since config.json tells of no such tensor: {', '.join(unused[:_NAMED])}{more}"
        )
    if folder is not None:
        if (folder / "adapter_config.json").is_file():
            notes.append("an adapter lies beside the model and is not applied; merge it first to measure it")
        used = {file.name for file in _weight_files(folder, model)}
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        beside = [name for name in others if name not in used and not name.startswith("adapter_")]
        if beside:
            more = f" and {len(beside) - _NAMED} more" if len(beside) > _NAMED else ""
            notes.append(f"files that are not loaded: {', '.join(beside[:_NAMED])}{more}")
    return tuple(notes)


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
        whole = bool(_weight_files(folder, model)) and any(folder.glob("tokenizer*"))
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
def _hub_layout(model: str) -> tuple[dict[str, Any], dict[str, Stored], str]:
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


def file_digest(file: Path, host: Host, start: int = 0, size: int | None = None) -> str:
    """sha256 (64 hex digits) of a file, or of `size` bytes of it; remembered by place, size and time."""
    memory = host.cache / "fingerprints.json"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    state = file.stat()
    key = f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    if size is not None:
        key += f"|{start}+{size}"
    if key not in known:
        with file.open("rb") as opened:
            known[key] = _digest(opened, start, state.st_size - start if size is None else size)
        replace_file(memory, json.dumps(known).encode())
    return str(known[key])


def _digest(opened: BinaryIO, start: int, size: int) -> str:
    total = hashlib.sha256()
    opened.seek(start)
    while size > 0 and (piece := opened.read(min(size, _PIECE))):
        total.update(piece)
        size -= len(piece)
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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"model {model}: config.json cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"model {model}: config.json holds no JSON object")
    for name in _COUNTS:
        value = config.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"model {model}: {name} in config.json is {str(value)[:40]}; allowed: 1 or more")
    return config


def _headers(folder: Path, model: str) -> dict[str, Stored]:
    files = _weight_files(folder, model)
    if not files:
        raise UserError(
            f"model {model}: no safetensors file in it; pickled weights (.bin, .pt) are not loaded for "
            "safety, and GGUF files not at all"
        )
    tensors: dict[str, Stored] = {}
    for file in files:
        first, entries = _header(file, model)
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            tensors[name] = Stored(shape, stop - start, entry["dtype"], file, first + start)
    return tensors


def _weight_files(folder: Path, model: str) -> list[Path]:
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


def _header(file: Path, model: str) -> tuple[int, Mapping[str, Any]]:
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
                raise _quantized(model, f"{name} is stored as {entry['dtype']}")
            start, stop = entry["data_offsets"]
            if start < 0 or math.prod(entry["shape"]) * _BYTES[entry["dtype"]] != stop - start:
                raise bad
        return 8 + length, entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise bad from None
