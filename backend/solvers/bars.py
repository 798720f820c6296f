"""A curve in words."""

import math
from collections.abc import Sequence

# Eighths of a line, from the lowest to the full one.
_BARS = "".join(chr(0x2581 + eighth) for eighth in range(8))


def bars(values: Sequence[float], most: int = 24) -> str:
    """The last values as a line of small bars, for where there is room for words alone."""
    shown = [value for value in values[-most:] if math.isfinite(value)]
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    return "".join(_BARS[round((len(_BARS) - 1) * (value - low) / ((high - low) or 1.0))] for value in shown)
