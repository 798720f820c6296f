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
from ui.texts import say

# A sweep's card adds up so many estimates; a larger one is scaled from them.
_MOST_ESTIMATES = 12


def plan(recipes: Sequence[Recipe], host: Host, history: pd.DataFrame) -> str:
    """The estimate card; UserError when a run cannot work."""
    looked = list(recipes)[:_MOST_ESTIMATES]
    estimates = [estimate(recipe, host, history) for recipe in looked]
    body = _one(estimates[0]) if len(recipes) == 1 else _many(looked, estimates, len(recipes))
    warning = ""
    first = recipes[0]
    leaks = any(same_text(text, recipe.evaluation.text) for recipe in recipes for text in recipe.texts)
    if leaks and first.stages:
        warning = f'<p class="warn-ink">{say("compress.same_file")}</p>'
    return f'<div class="panel" id="estimate-card">{body}{warning}</div>'


def _one(told: Estimate) -> str:
    parts = [
        (say("compress.linears"), byte_size(told.linears_bytes)),
        (say("compress.embeddings"), byte_size(told.embeddings_bytes)),
        (say("compress.norms_biases"), byte_size(told.rest_bytes)),
        (say("compress.dense_model_to_compare"), byte_size(told.dense_bytes)),
    ]
    numbers = {
        say("compress.packed"): byte_size(told.packed_bytes),
        say("compress.of_dense"): f"{100 * told.packed_bytes / told.dense_bytes:.1f} %",
        say("compress.time_about"): duration(told.seconds),
        say("compress.peak_memory_about"): byte_size(told.peak_bytes),
    }
    head = (say("metric.packed"), "")
    return (
        f"<h3>{say('compress.before_the_run')}</h3>{figures(numbers)}{table(head, parts)}"
        f'<p class="note">{escape(told.formula)}</p><p class="note">{_trust(told)}</p>{_notes(told)}'
    )


def _notes(told: Estimate) -> str:
    return "".join(f'<p class="warn-ink">{escape(note)}</p>' for note in told.notes)


def _many(looked: Sequence[Recipe], estimates: Sequence[Estimate], count: int) -> str:
    sizes = [told.packed_bytes for told in estimates]
    seconds = sum(told.seconds for told in estimates) * count / len(estimates)
    numbers = {
        say("compress.runs"): str(count),
        say("compress.packed"): say(
            "compress.from_to", least=byte_size(min(sizes)), most=byte_size(max(sizes))
        ),
        say("compress.time_about"): duration(seconds),
        say("compress.peak_memory_up_to"): byte_size(max(told.peak_bytes for told in estimates)),
    }
    lines = [
        (escape(recipe.chain()), byte_size(told.packed_bytes), duration(told.seconds))
        for recipe, told in zip(looked, estimates, strict=True)
    ]
    more = count - len(looked)
    rest = f'<p class="note">{say("common.and_more", rest=more)}</p>' if more else ""
    head = (say("common.run"), say("compress.packed"), say("compress.time"))
    return (
        f"<h3>{say('compress.before_the_sweep')}</h3>{figures(numbers)}{table(head, lines)}{rest}"
        f'<p class="note">{_trust(estimates[0])}</p>{_notes(estimates[0])}'
    )


def _trust(told: Estimate) -> str:
    sizes = say("compress.sizes_are_exact")
    if told.seconds_error is None:
        return say("compress.time_is_a_guess", sizes=sizes)
    told_ = say("compress.time_was_off", sizes=sizes, error=100 * told.seconds_error)
    if told.peak_error is not None:
        told_ += " " + say("compress.peak_was_off", error=100 * told.peak_error)
    return told_
