"""How long a test may take: seconds of an idle core of the machine that the limit was set on."""

import time

import numpy as np

# A test that takes longer says so with the mark `slow`, and `make test` leaves it out.
MOST_SECONDS = 20.0
# Seconds of `_piece` on that core.
_REFERENCE = 0.03


def slowness() -> float:
    """How many times slower this machine is right now, with all else that it does; at least 1."""
    start = time.perf_counter()
    for _ in range(3):
        _piece()
    return max(1.0, (time.perf_counter() - start) / 3 / _REFERENCE)


def too_long(seconds: float) -> str | None:
    """What is wrong with a test without the mark that took so long, if anything is."""
    if seconds <= MOST_SECONDS or seconds <= (limit := MOST_SECONDS * slowness()):
        return None
    return (
        f"took {seconds:.1f} s, and a test without the mark `slow` may take {MOST_SECONDS:.0f} s "
        f"({limit:.0f} s on this machine as it is now): make it shorter, or mark it"
    )


def _piece() -> None:
    """Some of what tests do: products, and Python itself."""
    matrix = np.ones((384, 384), dtype=np.float32)
    for _ in range(8):
        matrix = matrix @ matrix / 384
    total = 0
    for number in range(400_000):
        total += number % 7
