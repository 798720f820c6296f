"""What long work says while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

# What work calls itself that goes block by block: one walk that compresses, and a look at what linears are
# given.
WALK, SURVEY = "compress", "statistics"


@dataclass(frozen=True)
class Update:
    """One sign of life: `done` of `total` units of `stage`; `detail` names the unit at hand.

    `tokens` counts what this stage put through the whole model itself, not what it found done already.
    `share` is how much of all the work is done, where somebody knows more of it than this stage.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    tokens: int = 0
    share: float | None = None


# A callback may raise to stop the work: every long loop calls it at least about once a second.
Progress = Callable[[Update], None]


def silent(update: Update) -> None:
    """Ignore all updates."""
