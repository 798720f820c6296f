"""What a run or sweep would weigh and take, before it is queued."""

from collections.abc import Sequence
from html import escape

import pandas as pd

from backend.estimate import Estimate, estimate
from backend.host import Host
from backend.recipe import Recipe
from backend.text import same_text
from ui.panel import figures, table
from ui.quantities import byte_size, duration

# A sweep's card adds up so many estimates; a larger one is scaled from them.
_MOST_ESTIMATES = 12


def plan(recipes: Sequence[Recipe], host: Host, history: pd.DataFrame) -> str:
    """The estimate card; UserError when a run cannot work."""
    looked = list(recipes)[:_MOST_ESTIMATES]
    estimates = [estimate(recipe, host, history) for recipe in looked]
    body = _one(estimates[0]) if len(recipes) == 1 else _many(looked, estimates, len(recipes))
    warning = ""
    first = recipes[0]
    if any(same_text(recipe.calibration.text, recipe.evaluation.text) for recipe in recipes) and first.stages:
        warning = (
            '<p class="warn-ink">Calibration and evaluation read the same file: the numbers will flatter.</p>'
        )
    return f'<div class="panel" id="estimate-card">{body}{warning}</div>'


def _one(told: Estimate) -> str:
    parts = [
        ("Linears", byte_size(told.linears_bytes)),
        ("Embeddings", byte_size(told.embeddings_bytes)),
        ("Norms, biases", byte_size(told.rest_bytes)),
        ("Dense model, to compare", byte_size(told.dense_bytes)),
    ]
    numbers = {
        "packed": byte_size(told.packed_bytes),
        "of dense": f"{100 * told.packed_bytes / told.dense_bytes:.1f} %",
        "time, about": duration(told.seconds),
        "peak memory, about": byte_size(told.peak_bytes),
    }
    return (
        f"<h3>Before the run</h3>{figures(numbers)}{table(('Packed size', ''), parts)}"
        f'<p class="note">{escape(told.formula)}</p><p class="note">{_trust(told)}</p>'
    )


def _many(looked: Sequence[Recipe], estimates: Sequence[Estimate], count: int) -> str:
    sizes = [told.packed_bytes for told in estimates]
    seconds = sum(told.seconds for told in estimates) * count / len(estimates)
    numbers = {
        "runs": str(count),
        "packed": f"{byte_size(min(sizes))} to {byte_size(max(sizes))}",
        "time, about": duration(seconds),
        "peak memory, up to": byte_size(max(told.peak_bytes for told in estimates)),
    }
    lines = [
        (escape(recipe.chain()), byte_size(told.packed_bytes), duration(told.seconds))
        for recipe, told in zip(looked, estimates, strict=True)
    ]
    rest = f'<p class="note">and {count - len(looked)} more</p>' if count > len(looked) else ""
    return (
        f"<h3>Before the sweep</h3>{figures(numbers)}{table(('Run', 'packed', 'time'), lines)}{rest}"
        f'<p class="note">{_trust(estimates[0])}</p>'
    )


def _trust(told: Estimate) -> str:
    sizes = "Sizes are counted exactly. 1 MB is 10<sup>6</sup> bytes."
    if told.seconds_error is None:
        return f"{sizes} Time is a first guess until runs have finished on this machine."
    return f"{sizes} For past runs here the time was off by {100 * told.seconds_error:.0f} % (median)."
