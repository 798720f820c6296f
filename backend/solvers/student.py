"""Student's t: how many standard errors a mean of few values must be away from zero to count."""

import math
from functools import cache

from scipy.special import stdtrit

# Share of cases that claims and comparisons ask for.
_LEVEL = 0.95


@cache
def reach(values: int, level: float = _LEVEL, fitted: int = 1) -> float:
    """Standard errors that the mean of normal values with mean zero stays within, in that share of cases.

    `fitted` counts what was estimated from the values beside their spread. Infinite where nothing is left to
    tell the spread by; 2.36 for eight values at 95 %, towards 1.96 for many.
    """
    freedom = values - fitted
    return float(stdtrit(freedom, (1 + level) / 2)) if freedom > 0 else math.inf
