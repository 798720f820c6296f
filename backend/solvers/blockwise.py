"""Fit a few parameters of a block by gradients, so that its outputs come near those of the dense block.

    minimize  mean (f(x; p) - y)²  over samples x, y        AdamW without weight decay, in batches

The samples are split in those that are learned from and those that judge; of the start and all epochs the
parameters are kept that lose least on the latter, in the form that will be stored.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# One sample in so many judges.
_JUDGES = 8
Values = dict[str, Tensor]
# (parameters, numbers of samples) -> squared error, relative to the target's square, over these samples
Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Fit:
    """The parameters of the best epoch and the judging samples' loss, at the start and after each epoch."""

    values: Values
    losses: tuple[float, ...]
    best: int


@contextmanager
def gradients() -> Iterator[None]:
    """Work with graphs, wherever the caller stands."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def relative_error(made: Tensor, wanted: Tensor) -> Tensor:
    """|made - wanted|² / |wanted|² in float32."""
    wanted = wanted.float()
    return (made.float() - wanted).square().sum() / wanted.square().sum().clamp(min=1e-30)


def fit(
    start: Mapping[str, Tensor],
    units: Mapping[str, Tensor],
    loss: Loss,
    samples: int,
    batch: int,
    epochs: int,
    rates: Mapping[str, float],
    rng: torch.Generator,
    told: Callable[[int, int, str], None],
    as_stored: Callable[[Values], Values] = dict,
    schedule: Callable[[int], None] | None = None,
) -> Fit:
    """Parameters that lose less than `start`, or `start` itself.

    units       what a step of one means for each parameter, broadcast to its shape
    rates       a learning rate for each parameter; it falls to nothing along a cosine
    as_stored   what the parameters are once they are rounded for storage: that is what is judged
    schedule    told the number of each epoch before it begins
    """
    with gradients():
        begun = {name: tensor.detach().float().clone() for name, tensor in start.items()}
        sizes = {name: units[name].detach().float().clone() for name in begun}
        moves = {name: torch.zeros_like(tensor).requires_grad_() for name, tensor in begun.items()}

        def values() -> Values:
            return {name: begun[name] + sizes[name] * move for name, move in moves.items()}

        learned, judges = split(samples)
        steps = epochs * math.ceil(len(learned) / batch)
        optimizer = torch.optim.AdamW(
            [{"params": [moves[name]], "lr": rates[name]} for name in moves], weight_decay=0.0, eps=1e-20
        )
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        total = steps + (epochs + 1) * math.ceil(len(judges) / batch)
        done = 0

        def tell(words: str) -> None:
            nonlocal done
            told(done, total, words)
            done += 1

        def judged(words: str) -> float:
            with torch.no_grad():
                stored = as_stored(values())
                errors = []
                for some in judges.split(batch):
                    tell(words)
                    errors.append(float(loss(stored, some)) * len(some))
            return sum(errors) / len(judges)

        best, kept = 0, begun
        losses = [judged("start")]
        for epoch in range(1, epochs + 1):
            if schedule is not None:
                schedule(epoch - 1)
            words = f"epoch {epoch} of {epochs}, error {losses[best]:.3g} of {losses[0]:.3g}"
            for some in learned[torch.randperm(len(learned), generator=rng)].split(batch):
                tell(words)
                optimizer.zero_grad()
                lost = loss(values(), some)
                if not bool(torch.isfinite(lost)):
                    return Fit(kept, tuple(losses), best)
                lost.backward()
                optimizer.step()
                plan.step()
            losses.append(judged(words))
            if losses[-1] < losses[best]:
                best, kept = epoch, {name: tensor.detach() for name, tensor in values().items()}
        return Fit(kept, tuple(losses), best)


def split(samples: int) -> tuple[Tensor, Tensor]:
    """Numbers of the samples to learn from and of those that judge; too few to split are all for both."""
    every = torch.arange(samples)
    if samples < _JUDGES:
        return every, every
    judging = every % _JUDGES == _JUDGES - 1
    return every[~judging], every[judging]
