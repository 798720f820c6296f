"""About: what this is, what it can do, what it stands on, and the machine it runs on."""

import shutil
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradio as gr

from backend.assets import EMBEDDED_MODEL
from backend.jobs import Jobs
from backend.models import CARDS
from backend.registry import discover
from backend.text import texts
from store import results
from ui.forms import parameters
from ui.panel import card, facts, outside, panel, paper, table
from ui.quantities import byte_size, duration

_INTRODUCTION = """<div class="panel"><h3>Paretoscope</h3>
<p>Compressing a language model trades bytes against what the model still knows. Paretoscope makes that trade
visible: stack compression methods on a real model, let a worker run and measure them, and see which runs
no other run beats.</p>
<ul><li>What is measured is what was stored: the weights that are evaluated are decoded from the file.</li>
<li>Three sizes are never mixed: packed (all tensors), file (on disk) and peak memory while running.</li>
<li>Every number carries its protocol. Runs on other texts or windows never share a plot.</li>
<li>Runs that broke (not finite, loops, collapse) are kept and shown, but stay off the front.</li></ul>
<p class="note">1 MB is 10<sup>6</sup> bytes. Values after &plusmn; are one standard error over windows.
Speeds of compressed models are simulated: weights are decoded before use, a packed kernel would
differ.</p></div>"""


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
                {"nothing": "no text", "norms": "input norms", "gram": "Gram matrix"}[method.needs],
                paper(method.paper),
            )
        )
    head = ("Method", "What it does", "Parameters", "Needs", "Paper")
    return card(f"<h3>Methods</h3>{table(head, lines, numeric_from=9)}", "methods-table")


def metrics_table() -> str:
    """Every metric that is installed."""
    lines = [
        (f'<span class="mono">{escape(metric.id)}</span>', escape(metric.doc.strip().split("\n\n")[0]))
        for metric in discover().metrics.values()
    ]
    return card(f"<h3>Metrics</h3>{table(('Metric', 'What it measures'), lines, numeric_from=9)}")


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
    model_paper = outside("arXiv 2502.02737", "https://arxiv.org/abs/2502.02737")
    licence = outside("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/")
    return card(
        f"<h3>{escape(embedded.title)}</h3><p>{escape(embedded.note)}</p>"
        f'<p class="note">SmolLM2 by Hugging Face, Apache-2.0. Ben Allal et al. 2025, {model_paper}.</p>'
        f"<h4>Texts</h4>{table(('Text', 'Name in recipes', 'Licence', ''), lines, numeric_from=9)}"
        f'<p class="note">Article introductions by the contributors of Wikipedia, {licence}, cut into '
        "calibration, validation and test parts that share no article. WikiText-2: Merity et al. 2016. "
        "C4: Raffel et al. 2020. Penn Treebank: Marcus et al. 1993.</p>"
    )


def machine(jobs: Jobs) -> str:
    """Versions, device, and how full the data home is."""
    host = jobs.host
    workers = results.workers(jobs.database, host.stale_after)
    alive = workers[workers["alive"]]
    counted = results.counts(jobs.database)
    told = [
        (
            "Worker",
            ", ".join(f"{escape(w.id)} ({escape(w.device)})" for w in alive.itertuples()) or "none alive",
        ),
        ("Device asked for", escape(host.device)),
        (
            "Runs",
            ", ".join(f"{number} {escape(status)}" for status, number in sorted(counted.items())) or "none",
        ),
        ("Compressed models", byte_size(_size(host.artifacts))),
        ("Free on that disk", byte_size(shutil.disk_usage(host.home).free)),
        ("Log-in", "required" if host.auth else "open to all who reach this page"),
        ("Runs a person may have waiting", str(host.quota) if host.quota else "no limit"),
        ("A silent worker is given up after", duration(host.stale_after)),
    ]
    told += [(name, _version(name)) for name in ("torch", "transformers", "gradio", "dbos")]
    return card(f"<h3>This machine</h3>{facts(told)}", "machine")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def _version(package: str) -> str:
    try:
        return escape(version(package))
    except PackageNotFoundError:
        return "not installed"


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
