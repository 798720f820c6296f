"""Hidden states of the calibration samples on their way through the blocks."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backend.artifacts import OpenModel
from backend.families import blocks_of
from backend.progress import WALK, Progress, Update
from backend.statistics import Gatherer

# Tokens pushed through a block at once.
_BATCH_TOKENS = 4096


class Feed:
    """States [samples, length, d] in front of the block at hand, for token ids [samples, length]."""

    def __init__(
        self,
        opened: OpenModel,
        tokens: Tensor,
        progress: Progress,
        told: str = WALK,
        batch: int | None = None,
    ) -> None:
        """`told` is what updates call the work; `batch` is how many samples run at once, by default as many
        as make some thousand tokens."""
        self._opened, self._tokens, self._progress, self._told = opened, tokens, progress, told
        self._blocks = blocks_of(opened.model, opened.family)
        self._batch = batch or max(1, _BATCH_TOKENS // tokens.shape[1])
        self._arguments: dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        states = []
        for start in range(0, len(tokens), self._batch):
            ids = tokens[start : start + self._batch].to(opened.device)
            states.append(self._enter(ids))
            progress(Update("embed", start + len(ids), len(tokens)))
        self._states = torch.cat(states)

    @property
    def states(self) -> Tensor:
        """States [samples, length, d] in front of the block at hand."""
        return self._states

    def forked(self) -> "Feed":
        """Another feed from the same states on."""
        other = copy.copy(self)
        other._states = self._states.clone()
        return other

    def given(self, block: int, samples: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model hands to a block beside the states, for so many samples at once."""
        length = self._states.shape[1]
        if (samples, length) not in self._arguments:
            with torch.inference_mode():
                self._enter(self._tokens[:samples].to(self._opened.device))
        return self._arguments[samples, length][block]

    def observe(self, block: int, gatherer: Gatherer) -> None:
        """Push all samples through a block up to the last input that is wanted."""
        for _, batch in self._batches("statistics", block):
            gatherer.feed(partial(self._run, block, batch))

    def advance(self, block: int) -> None:
        """Replace the states by the block's outputs."""
        for start, batch in self._batches("outputs", block):
            self._states[start : start + len(batch)] = self._run(block, batch)

    def final(self) -> Tensor:
        """Final states [samples, length, d], once the states are those behind the last block."""
        with self._instead(lambda states, *positional, **named: self._states):
            return self._opened.body(input_ids=self._tokens, use_cache=False).last_hidden_state

    def _batches(self, what: str, block: int) -> Iterator[tuple[int, Tensor]]:
        count = len(self._blocks)
        for start in range(0, len(self._states), self._batch):
            self._progress(Update(self._told, block, count, f"block {block + 1} of {count}, {what}"))
            yield start, self._states[start : start + self._batch]

    def _run(self, block: int, batch: Tensor) -> Tensor:
        positional, named = self.given(block, len(batch))
        out = self._blocks[block](batch, *positional, **named)
        return out[0] if isinstance(out, tuple) else out

    def _enter(self, ids: Tensor) -> Tensor:
        """The input of the first block, and what the model hands to each block for a batch of this shape."""
        entered: list[Tensor] = []
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(states: Tensor, *positional: Any, **named: Any) -> Tensor:
            entered.append(states)
            given.append((positional, named))
            return states

        with self._instead(record):
            self._opened.body(input_ids=ids, use_cache=False)
        self._arguments.setdefault(tuple(ids.shape), given)
        return entered[0]

    @contextmanager
    def _instead(self, forward: Callable[..., Tensor]) -> Iterator[None]:
        """Run a function in place of every block."""
        for block in self._blocks:
            block.forward = forward
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward
