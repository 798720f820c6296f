"""The card of a claim: whose it is, the idea, both runs, the verdict with its noise, what to do next."""

import re
from html import escape
from urllib.parse import urlencode

from backend.registry import Claim, Method
from backend.solvers import student
from ui.panel import STATES, badge, button, link, paper, table, top
from ui.quantities import TITLES, byte_size, duration, is_number, significant, with_error
from ui.shipped_claims import shipped
from ui.standings import Side, Standing
from ui.texts import many, say

_SENTENCE_END = re.compile(r"(?<=\.) +(?=[A-Z])")
_TONES = {
    "holds": "good",
    "does not hold": "bad",
    "within noise": "warn",
    "broken": "bad",
    "baseline broken": "warn",
}
# How a claim stands, as people read it.
WORDS = {
    "holds": say("papers.holds"),
    "within noise": say("papers.within_noise"),
    "does not hold": say("papers.does_not_hold"),
    "broken": say("common.broken"),
    "baseline broken": say("papers.baseline_broken"),
    "failed": say("common.failed"),
    "running": say("common.running"),
    "queued": say("common.queued"),
    "not tested": say("papers.not_tested"),
}
_WHOSE = {"paper": say("papers.whose_paper"), "ours": say("papers.whose_ours")}
_WAITING = {"missing": say("papers.not_run"), "done": say("papers.not_measured")}


def claim_card(standing: Standing, problem: str = "") -> str:
    """All about one claim; `problem` is why it could not be queued."""
    method = standing.method
    name = f'<b>{escape(method.name)}</b> <span class="note">{escape(method.kind)}</span>'
    refused = f'<p class="bad-ink">{escape(problem)}</p>' if problem else ""
    return (
        f'<div class="panel claim" id="claim-{escape(method.id)}" data-verdict="{escape(state(standing))}">'
        f"{top(f'<span>{name}</span>', _state_badge(standing))}"
        f"<h3>{escape(standing.claim.text)}</h3>{_whose(standing.claim)}"
        f'<p>{escape(method.summary)}</p><p class="note">{citation(method)}</p>'
        f"{_sides(standing)}{_progress(standing)}{_said(standing)}{_shipped(standing)}{refused}"
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


def _whose(claim: Claim) -> str:
    """Whether the paper makes this comparison; what it claims itself where it makes another."""
    says = say("papers.paper_says", says=escape(claim.paper_says)) if claim.paper_says else ""
    return f'<p class="whose">{badge(_WHOSE[claim.whose])} {says}</p>'


def _state_badge(standing: Standing) -> str:
    word = state(standing)
    return badge(WORDS[word], _TONES.get(word, {"running": "info", "failed": "bad"}.get(word, "")))


def _sides(standing: Standing) -> str:
    metric = standing.claim.metric
    lines = []
    for title, side in (
        (say("papers.claimed_better"), standing.better),
        (say("papers.than"), standing.worse),
    ):
        chain = escape(side.recipe.chain())
        if side.run:
            chain = f'<a href="./?{escape(urlencode({"run": side.run_id}))}">{chain}</a>'
        packed = byte_size(side.outcome.packed) if side.outcome else ""
        shown = (
            with_error(metric, side.value, side.stderr)
            if side.outcome
            else _WAITING.get(side.status) or STATES[side.status]
        )
        if side.outcome and side.outcome.broken:
            shown = badge(STATES["broken"], "bad")
        lines.append((f'<span class="subtle">{title}</span>', chain, shown, packed))
    return table(("", say("common.run"), TITLES[metric], say("papers.packed")), lines, numeric_from=2)


def _progress(standing: Standing) -> str:
    running = [side for side in standing.sides if side.status == "running"]
    told = []
    for side in running:
        fraction = side.run["fraction"] if side.run else None
        width = 100 * fraction if is_number(fraction) else 0.0
        left = side.run["eta_seconds"] if side.run else None
        rest = say("papers.about_left", left=duration(left)) if is_number(left) else ""
        told.append(
            '<p class="note">'
            f"{say('papers.now_running', chain=escape(side.recipe.chain()), width=width, rest=rest)}</p>"
            f'<div class="bar" role="progressbar" aria-label="{escape(say("common.progress"))}"'
            ' aria-valuemin="0" aria-valuemax="100"'
            f' aria-valuenow="{width:.0f}"><i style="width:{width:.1f}%"></i></div>'
        )
    for side in standing.sides:
        if side.status == "failed" and side.run:
            why = str(side.run["error"] or say("papers.it_failed")).strip().splitlines()[-1]
            told.append(f'<p class="bad-ink">{escape(side.recipe.chain())}: {escape(why)}</p>')
    return "".join(told)


def _said(standing: Standing) -> str:
    said, (better, worse) = standing.verdict, standing.sides
    if standing.apart:
        return f"<p>{say('papers.two_protocols')}</p>"
    if said.word == "not tested":
        return ""
    causes = " ".join(
        f"{escape(side.recipe.chain())}: {escape(side.outcome.broken)}."
        for side in standing.sides
        if side.outcome and side.outcome.broken
    )
    if said.difference is None:
        return f"<p>{say('papers.nothing_is_shown', causes=causes)}</p>"
    apart = significant(abs(said.difference), 3)
    noise = f" ± {significant(said.stderr, 2)}" if said.stderr is not None else ""
    way = say("papers.lower") if said.difference < 0 else say("papers.higher")
    what = say("papers.loss") if standing.claim.metric == "perplexity" else say("papers.divergence")
    windows = len(better.outcome.windows)
    sentence = many(
        "papers.difference",
        windows,
        what=what,
        chain=escape(better.recipe.chain()),
        way=way,
        apart=apart,
        noise=noise,
    )
    if said.stderr is None:
        sentence += say("papers.one_window")
    elif abs(said.difference) <= student.reach(windows) * said.stderr:
        sentence += say("papers.within_the_interval")
    else:
        sentence += say("papers.beyond_the_interval")
    sentence += f", {_bytes(better, worse, standing.claim.more_bytes)}."
    return f"{_strip(standing)}<p>{sentence}</p>"


def _shipped(standing: Standing) -> str:
    """What this version measured itself, as long as nothing was measured here."""
    row = shipped(standing) if state(standing) == "not tested" else None
    if row is None:
        return ""
    numbers = []
    for side in (row["better"], row["worse"]):
        value = significant(side[row["metric"]], 4)
        numbers.append(f"{value} ({say('common.broken')})" if side["broken"] else value)
    apart = row["difference"]
    difference = "" if apart is None else say("papers.apart", apart=f"{apart:+.3f} ± {row['stderr']:.3f}")
    told = say(
        "papers.shipped",
        metric=TITLES[row["metric"]],
        better=numbers[0],
        worse=numbers[1],
        difference=difference,
        windows=row["windows"],
        length=row["evaluation"]["length"],
        samples=row["calibration"]["samples"],
        tokens=row["calibration"]["length"],
        order=say("papers.dense_order") if row["calibration"]["order"] == "dense" else "",
    )
    return f'<p class="note shipped">{badge(WORDS[row["verdict"]], _TONES[row["verdict"]])} {told}</p>'


def _bytes(better: Side, worse: Side, more_bytes: bool) -> str:
    more = better.outcome.packed - worse.outcome.packed
    if more == 0:
        return say("papers.same_bytes")
    if more < 0:
        return say("papers.fewer_bytes", more=byte_size(-more))
    allowed = say("papers.allowed") if more_bytes else say("papers.not_allowed")
    return say("papers.more_bytes", more=byte_size(more), allowed=allowed)


def _strip(standing: Standing) -> str:
    """The differences on a line: a dot each window, a bar of the 95 % interval about the mean."""
    said, (better, worse) = standing.verdict, standing.sides
    dots = [a - b for a, b in zip(better.outcome.windows, worse.outcome.windows, strict=True)]
    reach = student.reach(len(dots)) * said.stderr if said.stderr else 0.0
    first, last = said.difference - reach, said.difference + reach
    low, high = min(0.0, first, *dots), max(0.0, last, *dots)
    width = (high - low) or 1.0
    low, width = low - 0.06 * width, 1.12 * width

    def at(value: float) -> str:
        return f"{100 * (value - low) / width:.2f}%"

    points = "".join(f'<i class="dot" style="left:{at(value)}"></i>' for value in dots)
    span = f"left:{at(first)};width:{100 * (last - first) / width:.2f}%"
    look = _TONES.get(said.word, "")
    label = say("papers.strip", count=len(dots), mean=significant(said.difference, 3))
    marks = (
        f'<i class="zero" style="left:{at(0.0)}"></i>{points}<i class="span" style="{span}"></i>'
        f'<i class="mean" style="left:{at(said.difference)}"></i>'
    )
    ends = f"<span>{say('papers.loses_less')}</span><span>{say('papers.loses_more')}</span>"
    return (
        f'<div class="strip {look}" role="img" aria-label="{escape(label)}">{marks}</div>'
        f'<div class="ends note">{ends}</div>'
    )


def _acts(standing: Standing) -> str:
    wanted = len(standing.wanted)
    acts = []
    if wanted:
        again = any(side.status == "failed" for side in standing.sides)
        runs = many("papers.runs", wanted)
        label = say("papers.try_again", runs=runs) if again else say("papers.test", runs=runs)
        acts.append(button(label, "test", standing.method.id))
    if {side.status for side in standing.sides} & {"queued", "running"}:
        acts.append(link(say("common.open_the_queue"), "queue"))
    if all(side.run and side.run["artifact"] and side.status == "done" for side in standing.sides):
        ids = ",".join(side.run_id for side in standing.sides)
        acts.append(link(say("papers.compare"), f"compare?runs={ids}"))
    return "".join(acts)


def _file(method: Method) -> str:
    return (
        f'<details id="about-{escape(method.id)}"><summary class="note">{say("papers.formula")}</summary>'
        f'<pre class="doc">{escape(method.doc.strip())}</pre></details>'
    )
