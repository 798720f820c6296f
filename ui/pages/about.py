"""About: what this is, what it can do, what it stands on, and the machine it runs on."""

import shutil
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradio as gr

from backend.assets import EMBEDDED_MODEL
from backend.host import Host
from backend.jobs import Jobs
from backend.models import CARDS
from backend.precision import known_products
from backend.registry import discover
from backend.text import texts
from store import results
from ui.forms import parameters
from ui.panel import STATES, card, facts, outside, panel, paper, table
from ui.quantities import byte_size, duration
from ui.texts import say

_INTRODUCTION = (
    f'<div class="panel"><h3>Paretoscope</h3>\n'
    f"<p>{say('about.introduction')}</p>\n"
    f"<ul><li>{say('about.what_is_measured')}</li>\n"
    f"<li>{say('about.three_sizes')}</li>\n"
    f"<li>{say('about.protocols')}</li>\n"
    f"<li>{say('about.broken_runs')}</li></ul>\n"
    f'<p class="note">{say("about.units")}</p></div>'
)

_NEEDS = {
    "nothing": say("about.no_text"),
    "norms": say("about.input_norms"),
    "gram": say("about.gram_matrix"),
    "inputs": say("about.inputs"),
}


def methods_table() -> str:
    """Every method that is installed, as its own file describes it."""
    lines = []
    for method in discover().methods.values():
        names = ", ".join(parameter.name for parameter in parameters(method.params))
        lines.append(
            (
                f'<span class="mono">{escape(method.id)}</span>',
                escape(method.summary),
                f'<span class="mono subtle">{escape(names)}</span>',
                _NEEDS[method.needs],
                paper(method.paper),
            )
        )
    head = (
        say("about.method"),
        say("about.what_it_does"),
        say("about.parameters"),
        say("about.needs"),
        say("about.paper"),
    )
    return card(f"<h3>{say('about.methods')}</h3>{table(head, lines, numeric_from=9)}", "methods-table")


def metrics_table() -> str:
    """Every metric that is installed."""
    lines = [
        (f'<span class="mono">{escape(metric.id)}</span>', escape(metric.doc.strip().split("\n\n")[0]))
        for metric in discover().metrics.values()
    ]
    head = (say("about.metric"), say("about.what_it_measures"))
    return card(f"<h3>{say('about.metrics')}</h3>{table(head, lines, numeric_from=9)}")


def sources(jobs: Jobs) -> str:
    """The embedded model and the texts, with their licences."""
    embedded = next(card for card in CARDS if card.id == EMBEDDED_MODEL)
    lines = [
        (
            escape(text.title),
            f'<span class="mono">{escape(text.name)}</span>',
            escape(text.licence),
            escape(text.note),
        )
        for text in texts(jobs.host)
    ]
    head = (say("common.text"), say("about.name_in_recipes"), say("about.licence"), "")
    model_paper = outside("arXiv 2502.02737", "https://arxiv.org/abs/2502.02737")
    licence = outside("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/")
    return card(
        f"<h3>{escape(embedded.title)}</h3><p>{escape(embedded.note)}</p>"
        f'<p class="note">{say("about.embedded_model", model_paper=model_paper)}</p>'
        f"<h4>{say('about.texts')}</h4>{table(head, lines, numeric_from=9)}"
        f'<p class="note">{say("about.embedded_texts", licence=licence)}</p>'
    )


def machine(jobs: Jobs) -> str:
    """Versions, device, and how full the data home is."""
    host = jobs.host
    workers = results.workers(jobs.database, host.stale_after)
    alive = workers[workers["alive"]]
    counted = results.counts(jobs.database)
    told = [
        (
            say("about.worker"),
            ", ".join(f"{escape(w.id)} ({escape(w.device)})" for w in alive.itertuples())
            or say("about.none_alive"),
        ),
        (say("about.device_asked_for"), escape(host.device)),
        (say("about.computed_in"), _computed(host)),
        (
            say("about.runs"),
            ", ".join(f"{number} {STATES[status]}" for status, number in sorted(counted.items()))
            or say("about.none"),
        ),
        (say("about.compressed_models"), byte_size(_size(host.artifacts))),
        (say("about.free_on_that_disk"), byte_size(shutil.disk_usage(host.home).free)),
        (say("about.log_in"), say("about.required") if host.auth else say("about.open")),
        (say("about.quota"), str(host.quota) if host.quota else say("about.no_limit")),
        (say("about.stale_after"), duration(host.stale_after)),
    ]
    told += [(name, _version(name)) for name in ("torch", "transformers", "gradio", "dbos")]
    return card(f"<h3>{say('about.this_machine')}</h3>{facts(told)}", "machine")


def _computed(host: Host) -> str:
    """What 16-bit models are computed in, and how fast this processor multiplies each type."""
    known = sorted(known_products(host).items(), key=lambda pair: -pair[1])
    speeds = ", ".join(say("about.product_speed", type=name, speed=f"{speed:,.0f}") for name, speed in known)
    return escape(f"{host.compute} ({speeds or say('about.not_measured_yet')})")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def _version(package: str) -> str:
    try:
        return escape(version(package))
    except PackageNotFoundError:
        return say("about.not_installed")


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            panel("about", _INTRODUCTION + methods_table() + metrics_table())
        with gr.Column(scale=3, min_width=320):
            here = panel("here")
            panel("sources", sources(jobs))
    page.load(lambda: machine(jobs), None, here, **quiet)
