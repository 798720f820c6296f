"""The card of a paper's claim: the idea, both runs, the verdict with its noise, what to do next."""

import re
from html import escape
from urllib.parse import urlencode

from backend.registry import Method
from ui.panel import badge, button, link, paper, table, top
from ui.quantities import TITLES, byte_size, duration, is_number, significant, with_error
from ui.standings import Side, Standing

_SENTENCE_END = re.compile(r"(?<=\.) +(?=[A-Z])")
_TONES = {"holds": "good", "does not hold": "bad", "within noise": "warn", "broken": "bad"}
_WAITING = {"missing": "not run", "done": "not measured"}


def claim_card(standing: Standing, problem: str = "") -> str:
    """All about one claim; `problem` is why it could not be queued."""
    method = standing.method
    name = f'<b>{escape(method.name)}</b> <span class="note">{escape(method.kind)}</span>'
    refused = f'<p class="bad-ink">{escape(problem)}</p>' if problem else ""
    return (
        f'<div class="panel claim" id="claim-{escape(method.id)}" data-verdict="{escape(state(standing))}">'
        f"{top(f'<span>{name}</span>', _state_badge(standing))}"
        f"<h3>{escape(standing.claim.text)}</h3>"
        f'<p>{escape(method.summary)}</p><p class="note">{citation(method)}</p>'
        f"{_sides(standing)}{_progress(standing)}{_said(standing)}{refused}"
        f'<div class="acts">{_acts(standing)}</div>{_file(method)}</div>'
    )


def state(standing: Standing) -> str:
    """The verdict, or what stands between now and one: running, queued, failed, not tested."""
    if standing.verdict.word != "not tested":
        return standing.verdict.word
    statuses = {side.status for side in standing.sides}
    return next((known for known in ("failed", "running", "queued") if known in statuses), "not tested")


def citation(method: Method) -> str:
    """Who wrote it, which a method's docstring ends with, and the link."""
    words = method.doc.strip().split("\n\n")[-1].replace("\n", " ")
    return f"{escape(_SENTENCE_END.split(words)[-1])} {paper(method.paper)}"


def _state_badge(standing: Standing) -> str:
    word = state(standing)
    return badge(word, _TONES.get(word, {"running": "info", "failed": "bad"}.get(word, "")))


def _sides(standing: Standing) -> str:
    metric = standing.claim.metric
    lines = []
    for title, side in (("claimed better", standing.better), ("than", standing.worse)):
        chain = escape(side.recipe.chain())
        if side.run:
            chain = f'<a href="./?{escape(urlencode({"run": side.run_id}))}">{chain}</a>'
        packed = byte_size(side.outcome.packed) if side.outcome else ""
        shown = (
            with_error(metric, side.value, side.stderr)
            if side.outcome
            else _WAITING.get(side.status, side.status)
        )
        if side.outcome and side.outcome.broken:
            shown = badge("broken", "bad")
        lines.append((f'<span class="subtle">{title}</span>', chain, shown, packed))
    return table(("", "Run", TITLES[metric], "Packed"), lines, numeric_from=2)


def _progress(standing: Standing) -> str:
    running = [side for side in standing.sides if side.status == "running"]
    told = []
    for side in running:
        fraction = side.run["fraction"] if side.run else None
        width = 100 * fraction if is_number(fraction) else 0.0
        left = side.run["eta_seconds"] if side.run else None
        rest = f", about {duration(left)} left" if is_number(left) else ""
        told.append(
            f'<p class="note">Now running: {escape(side.recipe.chain())}, {width:.0f} %{rest}.</p>'
            f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
            f' aria-valuenow="{width:.0f}"><i style="width:{width:.1f}%"></i></div>'
        )
    for side in standing.sides:
        if side.status == "failed" and side.run:
            why = str(side.run["error"] or "it failed").strip().splitlines()[-1]
            told.append(f'<p class="bad-ink">{escape(side.recipe.chain())}: {escape(why)}</p>')
    return "".join(told)


def _said(standing: Standing) -> str:
    said, (better, worse) = standing.verdict, standing.sides
    if standing.apart:
        return (
            "<p>Both ran, but under different protocols (another device, say), so they are not compared.</p>"
        )
    if said.word == "not tested":
        return ""
    if said.word == "broken":
        causes = [
            f"{escape(side.recipe.chain())}: {escape(side.outcome.broken)}."
            for side in standing.sides
            if side.outcome and side.outcome.broken
        ]
        return f"<p>{' '.join(causes)} A model that does not work has no loss to compare.</p>"
    apart = significant(abs(said.difference), 3)
    noise = f" ± {significant(said.stderr, 2)}" if said.stderr is not None else ""
    way = "lower" if said.difference < 0 else "higher"
    what = "loss" if standing.claim.metric == "perplexity" else "divergence"
    windows = len(better.outcome.windows)
    sentence = (
        f"The {what} of <b>{escape(better.recipe.chain())}</b> is {way} by <b>{apart}{noise}</b> "
        f"nats a token, the mean of the differences on {windows} window{'' if windows == 1 else 's'}"
    )
    if said.stderr is None:
        sentence += "; one window says nothing about noise"
    elif abs(said.difference) <= 2 * said.stderr:
        sentence += ": within two standard errors"
    else:
        sentence += ": beyond two standard errors"
    return f"{_strip(standing)}<p>{sentence}, {_bytes(better, worse, standing.claim.more_bytes)}.</p>"


def _bytes(better: Side, worse: Side, more_bytes: bool) -> str:
    more = better.outcome.packed - worse.outcome.packed
    if more == 0:
        return "at the same bytes"
    if more < 0:
        return f"with {byte_size(-more)} less"
    allowed = "as the claim says" if more_bytes else "which the claim does not allow"
    return f"with {byte_size(more)} more, {allowed}"


def _strip(standing: Standing) -> str:
    """The differences on a line: a dot each window, a bar of two standard errors about the mean."""
    said, (better, worse) = standing.verdict, standing.sides
    dots = [a - b for a, b in zip(better.outcome.windows, worse.outcome.windows, strict=True)]
    reach = 2 * (said.stderr or 0.0)
    first, last = said.difference - reach, said.difference + reach
    low, high = min(0.0, first, *dots), max(0.0, last, *dots)
    width = (high - low) or 1.0
    low, width = low - 0.06 * width, 1.12 * width

    def at(value: float) -> str:
        return f"{100 * (value - low) / width:.2f}%"

    points = "".join(f'<i class="dot" style="left:{at(value)}"></i>' for value in dots)
    span = f"left:{at(first)};width:{100 * (last - first) / width:.2f}%"
    look = _TONES.get(said.word, "")
    label = f"Differences of {len(dots)} windows, mean {significant(said.difference, 3)}"
    marks = (
        f'<i class="zero" style="left:{at(0.0)}"></i>{points}<i class="span" style="{span}"></i>'
        f'<i class="mean" style="left:{at(said.difference)}"></i>'
    )
    ends = "<span>\N{LEFTWARDS ARROW} loses less</span><span>loses more \N{RIGHTWARDS ARROW}</span>"
    return (
        f'<div class="strip {look}" role="img" aria-label="{label}">{marks}</div>'
        f'<div class="ends note">{ends}</div>'
    )


def _acts(standing: Standing) -> str:
    wanted = len(standing.wanted)
    acts = []
    if wanted:
        again = any(side.status == "failed" for side in standing.sides)
        runs = f"{wanted} run{'' if wanted == 1 else 's'}"
        label = f"Try again ({runs})" if again else f"Test it on this model ({runs})"
        acts.append(button(label, "test", standing.method.id))
    if {side.status for side in standing.sides} & {"queued", "running"}:
        acts.append(link("Open the queue", "queue"))
    if all(side.run and side.run["artifact"] and side.status == "done" for side in standing.sides):
        ids = ",".join(side.run_id for side in standing.sides)
        acts.append(link("Compare the answers", f"compare?runs={ids}"))
    return "".join(acts)


def _file(method: Method) -> str:
    return (
        f'<details id="about-{escape(method.id)}"><summary class="note">Formula and limits</summary>'
        f'<pre class="doc">{escape(method.doc.strip())}</pre></details>'
    )
