"""A model's layout, held against what transformers builds of its configuration; no weight is read."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.checkpoint_files import (
    Stored,
    generation_rules,
    highest_token,
    quantized_already,
    read_config,
    read_headers,
    weight_files,
)
from backend.errors import UserError
from backend.families import Family, family_of
from backend.host import Host
from backend.models import fingerprint_of, hub_layout, local_folder
from backend.skeleton import Skeleton, skeleton

# Causal masks and rotary tables that old checkpoints carry; models make their own.
_BUFFER = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|inv_freq$")
# Stored types of codes, not of weights.
_CODES = ("I64", "I32", "I16", "I8", "U8", "BOOL")
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


def facts(model: str, host: Host) -> ModelFacts:
    """Read a model's layout; no weights are loaded, and those of a hub model are not even fetched.

    Raises UserError on anything that is not a supported model.
    """
    folder = local_folder(model, host)
    if folder is None:
        config, stored, mark = hub_layout(model)
    else:
        config, stored, mark = read_config(folder, model), {}, fingerprint_of(folder, host)
    family = family_of(str(config.get("model_type")), model)
    _check_not_quantized(config, folder, model)
    if folder is not None:
        stored = read_headers(folder, model)
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
    config: Mapping[str, Any], stored: Mapping[str, Stored], model: str
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


def _check_not_quantized(config: Mapping[str, Any], folder: Path | None, model: str) -> None:
    told = next((config[key] for key in _QUANTIZED_KEYS if config.get(key)), None)
    beside = next((name for name in _QUANTIZED_FILES if folder and (folder / name).is_file()), None)
    if told is None and beside is None:
        return
    method = told.get("quant_method") or told.get("format") if isinstance(told, Mapping) else None
    raise quantized_already(model, str(method or beside or "as config.json says"))


def _check_plain(stored: Mapping[str, Stored], model: str) -> None:
    """UserError where weights are codes: what they mean is known to the tool alone that made them."""
    packed = next((name for name in stored if name.endswith(_PACKED)), None)
    codes = next((name for name, told in stored.items() if _is_weight(name) and told.dtype in _CODES), None)
    if packed or codes:
        raise quantized_already(model, f"tensor {packed or codes}")


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
    stored: Mapping[str, Stored],
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
    if file is not None and file.is_file() and (most := highest_token(file, file.stat().st_mtime_ns)) >= rows:
        notes.append(
            f"the tokenizer knows tokens up to {most}, the embedding has {rows} rows: texts with them fail"
        )
    return notes


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _equal(one: Stored, other: Stored, host: Host) -> bool:
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
        used = {file.name for file in weight_files(folder, model)}
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        beside = [name for name in others if name not in used and not name.startswith("adapter_")]
        if beside:
            more = f" and {len(beside) - _NAMED} more" if len(beside) > _NAMED else ""
            notes.append(f"files that are not loaded: {', '.join(beside[:_NAMED])}{more}")
    return tuple(notes)
