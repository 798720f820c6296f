"""Halves and whole blocks of a model left out for a while, and what that costs on a text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from backend.artifacts import OpenModel
from backend.evaluate import divergence, final_states
from backend.families import Family, blocks_of
from backend.views import Work

Piece = Literal["block", "attention", "mlp"]
HALVES: tuple[Piece, ...] = ("attention", "mlp")
Whole = OpenModel
# Which group of a block's linears ends a half.
_ENDS = {"attention": 1, "mlp": 3}
Told = Callable[[int, int, str], None]


def whole_of(work: Work) -> Whole:
    """The model in the hands of a method."""
    return OpenModel(work.model, work.family, "", next(work.model.parameters()).device)


def count_of(work: Work) -> int:
    """Number of its blocks."""
    return len(blocks_of(work.model, work.family))


def final(opened: OpenModel, tokens: Tensor) -> list[Tensor]:
    """Final states [length, d] of each sample of token ids [samples, length]."""
    return [final_states(opened, ids.to(opened.device)) for ids in tokens]


def members(family: Family, piece: Piece, block: int) -> list[str]:
    """Full names of the linears of a half."""
    first = _ENDS[piece] - 1
    return [name for group in family.group_names(block)[first : first + 2] for name in group]


def end_of(family: Family, piece: Piece, block: int) -> str:
    """The linear whose outputs a half adds to the residual stream."""
    return family.group_names(block)[_ENDS[piece]][0]


@contextmanager
def without(opened: OpenModel, piece: Piece, numbers: Sequence[int]) -> Iterator[None]:
    """The model with these blocks, or these blocks' halves, adding nothing to the residual stream."""
    with ExitStack() as stack:
        for number in numbers:
            if piece == "block":
                module: nn.Module = blocks_of(opened.model, opened.family)[number]
                stack.enter_context(_instead(module, lambda states, *given, **named: states))
            else:
                module = opened.model.get_submodule(end_of(opened.family, piece, number))
                stack.enter_context(_instead(module, partial(_nothing, _outputs(module, opened.family))))
        yield


def influences(opened: OpenModel, piece: Piece, tokens: Tensor, told: Told) -> list[float]:
    """1 - mean cosine of the residual stream before and after each piece, on token ids [samples, length]."""
    family, found = opened.family, blocks_of(opened.model, opened.family)
    sums = [0.0] * len(found)
    before: list[Tensor] = [torch.empty(0)] * len(found)

    def near(number: int, after: Tensor) -> None:
        # Near one a cosine of sixteen bits has lost all its digits.
        cosines = cosine_similarity(before[number].float(), after.float(), dim=-1)
        sums[number] += float(cosines.detach().sum(dtype=torch.float64))

    def enters(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            before[number] = given[0]

        return hook

    def between(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if piece == "attention":
                near(number, given[0])
            else:
                before[number] = given[0]

        return hook

    def leaves(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Any) -> None:
            near(number, out[0] if isinstance(out, tuple) else out)

        return hook

    handles = []
    for number, block in enumerate(found):
        if piece != "mlp":
            handles.append(block.register_forward_pre_hook(enters(number)))
        if piece != "block":
            norm = block.get_submodule(family.feeds[2])
            handles.append(norm.register_forward_pre_hook(between(number)))
        if piece != "attention":
            handles.append(block.register_forward_hook(leaves(number)))
    try:
        for number, ids in enumerate(tokens):
            told(number, len(tokens), f"sample {number + 1} of {len(tokens)}")
            final_states(opened, ids.to(opened.device))
    finally:
        for handle in handles:
            handle.remove()
    return [1 - total / tokens.numel() for total in sums]


def loss(opened: OpenModel, tokens: Tensor) -> float:
    """Mean -ln Q(next token) in nats over token ids [samples, length]."""
    total = 0.0
    for ids in tokens:
        states, targets = final_states(opened, ids.to(opened.device))[:-1], ids[1:].to(opened.device)
        start = 0
        for rows in opened.readout.slices(states):
            total += float(cross_entropy(rows, targets[start : start + len(rows)], reduction="sum"))
            start += len(rows)
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def apart(opened: OpenModel, tokens: Tensor, dense: Sequence[Tensor]) -> float:
    """Mean KL(dense || as it is) in nats a token, given the whole model's final states of the samples."""
    total = 0.0
    for ids, wanted in zip(tokens, dense, strict=True):
        states = final_states(opened, ids.to(opened.device))
        ours = opened.readout.slices(states)
        theirs = opened.readout.slices(wanted)
        total += sum(divergence(mine, their) for mine, their in zip(ours, theirs, strict=True))
    return total / tokens.numel()


def _outputs(linear: Any, family: Family) -> int:
    return int(linear.weight.shape[1 if family.transposed else 0])


def _nothing(width: int, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], width)


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
