"""Student's t: how many standard errors a mean of few values must be away from zero to count.

    A(t | n) = P(|T| < t),  θ = arctan(t / sqrt n)
    n even:  sin θ (1 + 1/2 cos² θ + (1·3)/(2·4) cos⁴ θ + .. to cos^(n-2) θ)
    n odd:   2/π (θ + sin θ (cos θ + 2/3 cos³ θ + (2·4)/(3·5) cos⁵ θ + .. to cos^(n-2) θ))

Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
"""

import math
from functools import cache

_LEVEL = 0.95


@cache
def reach(values: int) -> float:
    """Standard errors that the mean of so many normal values with mean zero stays within in 95 of 100 cases.

    Infinite for one value, 12.7 for two, 2.36 for eight, towards 1.96 for many.
    """
    if values < 2:
        return math.inf
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, values - 1) < _LEVEL else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """A(t | freedom)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    # The next term has two more powers of the cosine and the next factor (k - 1) / k.
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
