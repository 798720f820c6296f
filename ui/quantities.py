"""Numbers as people read them: bytes, times, ages, measurements and differences."""

import math
import time
from typing import TypeGuard

from ui.texts import many, say

MISSING = "\N{EN DASH}"
# Of each, 0.9 is shown as 90 %.
_SHARES = ("divergence.agreement", "divergence.flips", "sanity.repetition")

# In the order in which cards and tables show them.
TITLES = {
    "perplexity": say("metric.perplexity"),
    "divergence.kl": say("metric.kl"),
    "divergence.kl_median": say("metric.kl_median"),
    "divergence.kl_p99": say("metric.kl_p99"),
    "divergence.kl_reverse": say("metric.kl_reverse"),
    "divergence.agreement": say("metric.agreement"),
    "divergence.flips": say("metric.flips"),
    "size.packed": say("metric.packed"),
    "size.linears": say("metric.linears"),
    "size.embeddings": say("metric.embeddings"),
    "size.rest": say("metric.rest"),
    "size.file": say("metric.file"),
    "size.bits_per_weight": say("metric.bits_per_weight"),
    "size.bits_per_parameter": say("metric.bits_per_parameter"),
    "memory.peak": say("metric.peak"),
    "speed.prefill": say("metric.prefill"),
    "speed.decode": say("metric.decode"),
    "sanity.repetition": say("metric.repetition"),
    "sanity.finite": say("metric.finite"),
}


def is_number(value: object) -> TypeGuard[float]:
    """Whether a cell of a result table holds a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def byte_size(count: object) -> str:
    """134500000 -> 134.5 MB; a megabyte is 10^6 bytes everywhere in the app."""
    if not is_number(count):
        return MISSING
    size = float(count)
    if size < 999.5:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.2f} TB"


def significant(value: object, digits: int = 4) -> str:
    """A plain number with so many significant digits; an exponent only where a person would write one."""
    if not is_number(value):
        return MISSING
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -5 < size < 6:
        return f"{value:.{max(0, digits - 2)}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def share(value: object) -> str:
    """0.9423 -> 94.23 %."""
    return f"{100 * value:.2f} %" if is_number(value) else MISSING


def measured(metric: str, value: object) -> str:
    """A measurement in the unit that its name says."""
    if not is_number(value):
        return MISSING
    if metric.startswith("size.bits"):
        return significant(value, 3)
    if metric.startswith(("size.", "memory.")):
        return byte_size(value)
    if metric in _SHARES:
        return share(value)
    if metric == "sanity.finite":
        return say("number.yes") if value else say("number.no")
    if metric.startswith("speed."):
        return say("common.tokens_a_second", speed=significant(value, 3))
    return significant(value)


def with_error(metric: str, value: object, stderr: object) -> str:
    """A measurement with its standard error, when there is one."""
    text = measured(metric, value)
    if text == MISSING or not is_number(stderr) or not stderr:
        return text
    return f"{text} ± {share(stderr) if metric in _SHARES else significant(stderr, 2)}"


def difference(metric: str, value: object, reference: object) -> str:
    """How far a measurement is from the reference: points for shares, per cent for what has a scale."""
    if not is_number(value) or not is_number(reference):
        return ""
    if metric.startswith("sanity."):
        return ""
    if value == reference:
        return say("number.same")
    if metric in _SHARES:
        return say("number.points", points=100 * (value - reference))
    # The dense model diverges from itself by nothing, so there is nothing to divide by.
    if metric.startswith("divergence.") or reference <= 0:
        return ""
    ratio = value / reference
    return f"{100 * (ratio - 1):+.1f} %" if ratio < 10 else f"\N{MULTIPLICATION SIGN} {significant(ratio, 3)}"


def duration(seconds: object) -> str:
    """75 -> 1 min 15 s."""
    if not is_number(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return (
            say("number.minutes_and_seconds", minutes=minutes, rest=rest)
            if rest and minutes < 10
            else say("number.minutes", minutes=minutes)
        )
    hours, minutes = divmod(minutes, 60)
    return say("number.hours_and_minutes", hours=hours, minutes=minutes) if minutes else f"{hours} h"


def age(moment: object, now: float | None = None) -> str:
    """How long ago something happened (seconds since 1970), in one unit."""
    if not is_number(moment):
        return MISSING
    seconds = (time.time() if now is None else now) - moment
    if seconds < 5:
        return say("number.just_now")
    if seconds >= 86400:
        return many("number.days_ago", int(seconds // 86400))
    if seconds >= 3600:
        return many("number.hours_ago", int(seconds // 3600))
    if seconds >= 60:
        return many("number.minutes_ago", int(seconds // 60))
    return say("number.seconds_ago", seconds=int(seconds))
