"""What long work says while it runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """One sign of life: `done` of `total` units of `stage`; `detail` names the unit at hand.

    `tokens` counts what this stage put through the whole model itself, not what it found done already.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    tokens: int = 0


# A callback may raise to stop the work: every long loop calls it at least about once a second.
Progress = Callable[[Update], None]
# Eighths of a line, from the lowest to the full one.
_BARS = "".join(chr(0x2581 + eighth) for eighth in range(8))


def bars(values: Sequence[float], most: int = 24) -> str:
    """The last values as a line of small bars, for where there is room for words alone."""
    shown = [value for value in values[-most:] if math.isfinite(value)]
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    return "".join(_BARS[round((len(_BARS) - 1) * (value - low) / ((high - low) or 1.0))] for value in shown)


def silent(update: Update) -> None:
    """Ignore all updates."""
