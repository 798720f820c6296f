"""Adam on many parameters for as long as it takes: judged in between, saved in between, the best kept.

Every step draws from a generator of its own, so that a run that was stopped goes on as if it had not been.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.solvers.bars import bars
from backend.views import Kept

Values = dict[str, Tensor]
_BETAS = (0.9, 0.95)
_EPS = 1e-20
# Seconds of work that a stop may cost.
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Found:
    """What was kept of the best judgement, and the loss at each: at the start and after so many steps."""

    best: Mapping[str, Tensor]
    losses: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def at(self) -> int:
        """Which judgement the best is."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)


def descend(
    values: Values,
    gradients: Callable[[Values, Tensor, float, torch.Generator], Values],
    judged: Callable[[Values], float],
    rounded: Callable[[Values], Values],
    learned: Tensor,
    batch: int,
    epochs: int,
    judgements: int,
    rate: float,
    seed: int,
    kept: Kept,
    told: Callable[[int, int, str], None],
) -> Found:
    """`values`, which are changed in place, as they lost least, in the form that is kept of them.

    gradients   (values, numbers of samples, share of the way, generator) -> gradient of each value
    judged      the loss of the values in the form that is kept
    learned     numbers of the samples to learn from; `batch` of them a step
    rate        of Adam; it falls to nothing along a cosine
    """
    per_epoch = math.ceil(len(learned) / batch)
    total = epochs * per_epoch
    stops = sorted({round(total * number / judgements) for number in range(judgements + 1)})
    moments = {f"{name}#{which}": torch.zeros_like(each) for name, each in values.items() for which in "mv"}
    step, losses, steps, best = 0, [], [], {}
    if (state := kept.load()) is not None:
        step, losses = int(state["step"]), state["losses"].tolist()
        steps = [int(one) for one in state["steps"]]
        for name in (*values, *moments):
            (values if name in values else moments)[name].copy_(state[name])
        best = {name.removeprefix("best."): each for name, each in state.items() if name[:5] == "best."}
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        marks = {"step": step, "losses": losses, "steps": steps}
        numbers = {name: torch.tensor(told_, dtype=torch.float64) for name, told_ in marks.items()}
        kept.save({**values, **moments, **numbers, **{f"best.{name}": each for name, each in best.items()}})
        saved = time.monotonic()

    while True:
        if step in stops and step not in steps:
            losses.append(judged(values))
            steps.append(step)
            if losses[-1] == min(losses):
                best = rounded(values)
            save()
        elif time.monotonic() - saved > _SAVE_SECONDS:
            save()
        if step == total:
            return Found(best, tuple(losses), tuple(steps))
        words = f"step {step + 1} of {total}, held-out loss {min(losses):.3f} of {losses[0]:.3f}"
        told(step, total, f"{words} {bars(losses)}".rstrip())
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(learned), generator=_generator(seed, total + epoch))
        some = learned[order[place * batch : (place + 1) * batch]]
        found = gradients(values, some, step / total, _generator(seed, step))
        step += 1
        _adam(values, found, moments, rate * (1 + math.cos(math.pi * (step - 1) / total)) / 2, step)


def _adam(values: Values, gradients: Values, moments: Values, rate: float, step: int) -> None:
    """One step in place, tensor by tensor, so that no more than one more of each is in memory."""
    first, second = _BETAS
    for name, value in values.items():
        gradient, mean, square = gradients.pop(name), moments[f"{name}#m"], moments[f"{name}#v"]
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = (square / (1 - second**step)).sqrt_().add_(_EPS)
        value.addcdiv_(mean, size, value=-rate / (1 - first**step))


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + 7919 * number) % 2**63)
