"""Make a model itself smaller: fewer blocks, or fewer attention heads and MLP channels in each.

What is left is an ordinary model of its family with a smaller configuration, which every later stage, the
artifact and any other program take as it is. The width is the same in every block, since a configuration has
one number for it. A layout tells the shapes without a weight being read, for the estimate.
"""

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.facts import ModelFacts
from backend.families import Family, blocks_of
from backend.recipe import Stage
from backend.registry import discover

# What a configuration lists block by block.
_PER_BLOCK = ("layer_types", "no_rope_layers")
# What the configuration of a `model_type` calls its number of MLP channels, where that is its own word.
_CHANNELS = {"opt": "ffn_dim", "gpt2": "n_inner"}


def shrunk(layout: ModelFacts, stages: Iterable[Stage]) -> ModelFacts:
    """The layout that the stages of a recipe leave: smaller, or with a head of its own.

    Raises UserError where a stage asks for too much.
    """
    for stage in stages:
        found = discover().methods[stage.method]
        if found.shrinks:
            layout = found.shrinks(layout, stage.params)
        if found.unties:
            layout = _untied(layout)
    return layout


def _untied(layout: ModelFacts) -> ModelFacts:
    head, embedding = (f"{name}.weight" for name in (layout.family.head, layout.family.embeddings[0]))
    tensors = {**layout.tensors, head: layout.tensors.get(head, layout.tensors[embedding])}
    return replace(layout, tensors=tensors, config={**layout.config, "tie_word_embeddings": False})


def untie(model: Any, head: str) -> None:
    """Give the head weights of its own."""
    module = model.get_submodule(head)
    module.weight = _own(module.weight.detach())
    model.config.tie_word_embeddings = False


def _own(values: Tensor) -> nn.Parameter:
    """A parameter of a copy of the values, which gradients may pass through wherever it is made."""
    with torch.inference_mode(False):
        return nn.Parameter(values.clone(memory_format=torch.contiguous_format), requires_grad=False)


def without_blocks(layout: ModelFacts, count: int, where: str) -> ModelFacts:
    """A layout with so many blocks less; UserError when none would be left."""
    left = layout.blocks - count
    if left < 1:
        raise UserError(f"{where}: blocks is {count}; this model has {layout.blocks}, and one must stay")

    def stays(name: str) -> bool:
        prefix = f"{layout.family.blocks}."
        return not name.startswith(prefix) or int(name.removeprefix(prefix).split(".", 1)[0]) < left

    return replace(
        layout,
        layers={name: shape for name, shape in layout.layers.items() if stays(name)},
        tensors={name: told for name, told in layout.tensors.items() if stays(name)},
    )


def drop_blocks(model: Any, family: Family, dropped: Collection[int]) -> None:
    """Take blocks out of a model; those behind them move up, with their places in the key-value cache."""
    blocks = blocks_of(model, family)
    kept = [number for number in range(len(blocks)) if number not in dropped]
    parent, _, child = family.blocks.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.ModuleList(blocks[number] for number in kept))
    for place, number in enumerate(kept):
        for module in blocks[number].modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = place
    config = model.config
    for name in _PER_BLOCK:
        if isinstance(told := getattr(config, name, None), list):
            setattr(config, name, [told[number] for number in kept])
    config.num_hidden_layers = len(kept)


def few_blocks(model: Any, family: Family, kept: Collection[int]) -> Any:
    """A copy in float32 of a model with only some of its blocks."""
    parent, _, child = family.blocks.rpartition(".")
    holder, blocks = model.get_submodule(parent), blocks_of(model, family)
    empty = nn.ModuleList(block if number in kept else nn.Identity() for number, block in enumerate(blocks))
    setattr(holder, child, empty)
    try:
        few = copy.deepcopy(model).float()
    finally:
        setattr(holder, child, blocks)
    few.compute_dtype = torch.float32
    drop_blocks(few, family, set(range(len(blocks))) - set(kept))
    return few


def heads_of(layout: ModelFacts) -> int:
    """Number of key-value heads of a block, each with the query heads that share it; 0 where none can go."""
    return int(layout.config.get("num_key_value_heads") or layout.config.get("num_attention_heads") or 0) * (
        layout.family.free_heads
    )


def channels_of(layout: ModelFacts) -> int:
    """Number of MLP channels of a block."""
    return layout.layers[layout.family.group_names(0)[3][0]][1]


def narrower(layout: ModelFacts, heads: int, channels: int) -> ModelFacts:
    """A layout with so many key-value heads and MLP channels in every block."""
    family, layers, tensors = layout.family, dict(layout.layers), dict(layout.tensors)
    shares = {3: (channels_of(layout), channels)}
    if heads_of(layout):
        shares[1] = (heads_of(layout), heads)
    for block in range(layout.blocks):
        groups = family.group_names(block)
        for number, (before, after) in shares.items():
            for name in groups[number - 1]:
                rows, inputs = layers[name]
                layers[name] = rows * after // before, inputs
            for name in groups[number]:
                rows, inputs = layers[name]
                layers[name] = rows, inputs * after // before
    for name, (rows, inputs) in layers.items():
        (shape, size), bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        now = (inputs, rows) if family.transposed else (rows, inputs)
        tensors[f"{name}.weight"] = now, size * math.prod(now) // math.prod(shape)
        if bias is not None:
            tensors[f"{name}.bias"] = (rows,), bias[1] * rows // math.prod(bias[0])
    config = {**layout.config, _channels_name(layout.config): channels}
    if heads_of(layout):
        config |= _head_counts(layout.config, heads)
    return replace(layout, layers=layers, tensors=tensors, config=config)


def units_of(model: Any, family: Family) -> tuple[int, int]:
    """(key-value heads, MLP channels) of a block of a model; 0 heads where none can go."""
    wide = _weight(model, family, family.group_names(0)[3][0]).shape[1]
    return (_kv_heads(model.config) if family.free_heads else 0), wide


def unit_sums(
    model: Any, family: Family, rows: Mapping[str, Tensor], columns: Mapping[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Sums over the members of each unit: [blocks][key-value heads] and [blocks][MLP channels], float64.

    rows, columns   {linear: one number for each row [out], for each input [in]}
    """
    heads, channels = units_of(model, family)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for block in range(len(blocks_of(model, family))):
        groups = family.group_names(block)
        for number, units in ((1, heads), (3, channels)):
            if not units:
                continue
            consumer = groups[number][0]
            inputs = len(columns[consumer])
            total = columns[consumer].double().view(units, -1).sum(dim=1)
            for name in groups[number - 1]:
                each = rows[name].double()
                for start, width in _pieces(len(each), inputs, units, len(groups[number - 1])):
                    total = total + each[start : start + width].view(units, -1).sum(dim=1)
            found[number // 2].append(total)
    return found


def keep_units(
    model: Any, family: Family, heads: Sequence[Sequence[int]], channels: Sequence[Sequence[int]]
) -> None:
    """Leave the given key-value heads and MLP channels of each block; where one list is empty, all of them.

    heads, channels     [blocks] numbers in ascending order, equally many for every block
    """
    config = model.config
    there = units_of(model, family)
    for block in range(len(blocks_of(model, family))):
        groups = family.group_names(block)
        for number, kept, units in ((1, heads, there[0]), (3, channels, there[1])):
            if kept:
                _cut(model, family, groups[number - 1], groups[number][0], kept[block], units)
    if heads:
        for name, value in _head_counts(config.to_dict(), len(heads[0])).items():
            setattr(config, name, value)
        _tell_heads(model, family)
    if channels:
        setattr(config, _channels_name(config.to_dict()), len(channels[0]))


def _cut(
    model: nn.Module, family: Family, producers: Sequence[str], consumer: str, kept: Sequence[int], units: int
) -> None:
    """Leave some of so many units: rows of what makes them, columns of what takes them."""
    wanted = torch.tensor(list(kept), dtype=torch.long)
    inputs = _weight(model, family, consumer).shape[1]
    for name in producers:
        rows = _weight(model, family, name).shape[0]
        pieces = _pieces(rows, inputs, units, len(producers))
        numbers = [start + _spread(wanted, width // units) for start, width in pieces]
        _leave(model, family, name, 0, torch.cat(numbers))
    _leave(model, family, consumer, 1, _spread(wanted, inputs // units))


def _pieces(rows: int, inputs: int, units: int, producers: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each thing that one linear makes for the consumer with so many inputs.

    A fused linear makes several: queries, as many as the inputs, then keys and values, equally many of each;
    or gate and up.
    """
    widths = [rows]
    if producers == 1 and rows > inputs:
        gated = units == inputs
        widths = [inputs, inputs] if gated else [inputs, (rows - inputs) // 2, (rows - inputs) // 2]
    start = 0
    for width in widths:
        yield start, width
        start += width


def _spread(units: Tensor, size: int) -> Tensor:
    """Numbers of all members of units that consist of `size` neighbours each."""
    return (units[:, None] * size + torch.arange(size)).reshape(-1)


def _weight(model: nn.Module, family: Family, name: str) -> Tensor:
    """The weight [out, in] of a linear."""
    module: Any = model.get_submodule(name)
    stored: Tensor = module.weight
    return stored.T if family.transposed else stored


def _leave(model: nn.Module, family: Family, name: str, axis: int, numbers: Tensor) -> None:
    """Keep some rows (axis 0, with their biases) or columns (axis 1) of a linear."""
    module: Any = model.get_submodule(name)
    numbers = numbers.to(module.weight.device)
    kept = module.weight.detach().index_select(1 - axis if family.transposed else axis, numbers)
    module.weight = _own(kept)
    if axis == 0 and module.bias is not None:
        module.bias = _own(module.bias.detach()[numbers])
    rows, inputs = _weight(model, family, name).shape
    for told, value in (("out_features", rows), ("in_features", inputs), ("nf", rows), ("nx", inputs)):
        if hasattr(module, told):
            setattr(module, told, value)


def _tell_heads(model: Any, family: Family) -> None:
    """Attention modules keep numbers of their own, made when they were built, block by block."""
    with torch.device("meta"):
        # As the model itself: whether a module trains is a number of its own as well.
        fresh = type(model)._from_config(copy.deepcopy(model.config)).train(model.training)
    for block, built in zip(blocks_of(model, family), blocks_of(fresh, family), strict=True):
        made = dict(built.named_modules())
        for name, module in block.named_modules():
            for told, value in vars(made[name]).items():
                if isinstance(value, int) and told != "layer_idx" and hasattr(module, told):
                    setattr(module, told, value)


def _kv_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _head_counts(config: Mapping[str, Any], heads: int) -> dict[str, int]:
    """What a configuration says of so many key-value heads; the width of a head stays."""
    queries = int(config["num_attention_heads"])
    before = int(config.get("num_key_value_heads") or queries)
    width = config.get("head_dim") or config["hidden_size"] // queries
    told = {"num_attention_heads": queries // before * heads, "head_dim": int(width)}
    return told | ({"num_key_value_heads": heads} if "num_key_value_heads" in config else {})


def _channels_name(config: Mapping[str, Any]) -> str:
    return _CHANNELS.get(str(config["model_type"]), "intermediate_size")
