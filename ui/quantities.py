"""Numbers as people read them: bytes, times, ages, measurements and differences."""

import math
import time
from typing import TypeGuard

MISSING = "\N{EN DASH}"
# Of each, 0.9 is shown as 90 %.
_SHARES = ("divergence.agreement", "divergence.flips", "sanity.repetition")

# In the order in which cards and tables show them.
TITLES = {
    "perplexity": "Perplexity",
    "divergence.kl": "KL from dense, mean",
    "divergence.kl_median": "KL, median",
    "divergence.kl_p99": "KL, 99th percentile",
    "divergence.kl_reverse": "KL to dense, mean",
    "divergence.agreement": "Top-1 agreement",
    "divergence.flips": "Flips",
    "size.packed": "Packed size",
    "size.linears": "of it linears",
    "size.embeddings": "of it embeddings",
    "size.rest": "of it norms, biases",
    "size.file": "File on disk",
    "size.bits_per_weight": "Bits per compressed weight",
    "size.bits_per_parameter": "Bits per parameter",
    "memory.peak": "Peak memory",
    "speed.prefill": "Prefill",
    "speed.decode": "Decode",
    "sanity.repetition": "Repetition in samples",
    "sanity.finite": "All outputs finite",
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
        return "yes" if value else "no"
    if metric.startswith("speed."):
        return f"{significant(value, 3)} tok/s"
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
        return "same"
    if metric in _SHARES:
        return f"{100 * (value - reference):+.2f} points"
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
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def age(moment: object, now: float | None = None) -> str:
    """How long ago something happened (seconds since 1970), in one unit."""
    if not is_number(moment):
        return MISSING
    seconds = (time.time() if now is None else now) - moment
    if seconds < 5:
        return "just now"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return f"{int(seconds)} seconds ago"
