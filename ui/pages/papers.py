"""Papers: a claim of each method, its paper's or ours, run on the reader's model, with verdict and noise."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from backend.assets import EMBEDDED_MODEL
from backend.errors import UserError
from backend.jobs import Jobs
from backend.models import catalogue
from backend.recipe import Calibration
from backend.text import same_text, texts
from store import results
from ui.claim_card import WORDS, claim_card, state
from ui.live import live
from ui.pages.queue import worker_notice
from ui.panel import address, banner, button, card, panel
from ui.standings import EFFORTS, Standing, claiming, standings
from ui.texts import many, say
from ui.visitor import user_of

_ALL = "all"
# Of several claims, where it differs from the word for one.
_PLURAL = {"holds": say("papers.hold"), "does not hold": say("papers.do_not_hold")}
_EFFORTS = {"quick": say("papers.quick"), "full": say("papers.full")}


def summary(found: Sequence[Standing]) -> str:
    """How many claims stand how, and the button that queues all that are left."""
    counted = Counter(map(state, found))
    told = ", ".join(
        f"<b>{counted[word]}</b> {_PLURAL.get(word, told_) if counted[word] > 1 else told_}"
        for word, told_ in WORDS.items()
        if counted[word]
    )
    wanted = {recipe.to_json() for standing in found for recipe in standing.wanted}
    runs = many("papers.runs", len(wanted))
    rest = button(say("papers.test_all", runs=runs), "test", _ALL) if wanted else ""
    return f'<div class="acts summary"><span>{told}</span>{rest}</div>'


def overview(jobs: Jobs, model: str, text: str, effort: str, problems: Mapping[str, str]) -> str:
    """All cards on this model; why there are none where the model or the text cannot be found."""
    if not claiming():
        return card(
            f"<h3>{say('papers.no_claims')}</h3><p>{say('papers.no_claims_yet')}</p>",
            look="empty",
        )
    try:
        found = standings(jobs.database, jobs.host, model, text, effort)
    except UserError as error:
        return banner(escape(str(error)), "bad")
    notices = [banner(escape(problem), "bad") for name, problem in problems.items() if name == _ALL]
    waiting = any(side.status == "queued" for standing in found for side in standing.sides)
    if waiting and not results.workers(jobs.database, jobs.host.stale_after)["alive"].any():
        notices.append(worker_notice(jobs, results.queue(jobs.database)))
    if same_text(text, text):
        notices.append(banner(say("papers.same_file")))
    cards = "".join(claim_card(standing, problems.get(standing.method.id, "")) for standing in found)
    return f'{"".join(notices)}{summary(found)}<div class="claims">{cards}</div>'


def queue_missing(jobs: Jobs, model: str, text: str, effort: str, wanted: str, user: str) -> dict[str, str]:
    """Queue the runs that a claim, or all of them, still need: {method id or `all`: why it could not be}."""
    try:
        found = standings(jobs.database, jobs.host, model, text, effort)
    except UserError as error:
        return {_ALL: str(error)}
    problems = {}
    for standing in found:
        if wanted not in (_ALL, standing.method.id) or not standing.wanted:
            continue
        try:
            jobs.submit_sweep(standing.wanted, user=user, source="claim")
        except UserError as error:
            problems[standing.method.id] = str(error)
    return problems


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    host = jobs.host
    gr.HTML(_LEAD, apply_default_css=False, elem_classes="plain")
    with gr.Row(equal_height=False):
        models = [(f"{known.title} ({known.id})", known.id) for known in catalogue(host)]
        model = gr.Dropdown(
            models, value=EMBEDDED_MODEL, label=say("common.model"), allow_custom_value=True,
            elem_id="claims-model", info=say("common.model_hint"), scale=4, min_width=260,
        )  # fmt: skip
        known_texts = [(f"{known.title} ({known.name})", known.name) for known in texts(host)]
        text = gr.Dropdown(
            known_texts, value=Calibration().text, label=say("common.text"), allow_custom_value=True,
            info=say("papers.text_hint"), scale=4, min_width=260, elem_id="claims-text",
        )  # fmt: skip
        efforts = [(_effort(name, sections[1]), name) for name, sections in EFFORTS.items()]
        effort = gr.Dropdown(
            efforts, value="quick", label=say("papers.effort"), scale=3, min_width=260,
            elem_id="claims-effort", info=say("papers.effort_hint"),
        )  # fmt: skip
    shown = panel("claims")
    here = address("address")
    problems, drawn = gr.State({}), gr.State("")
    pulse = live("papers-pulse", 2, minds=("results",))
    controls = [model, text, effort]

    def look(*values: Any) -> str:
        chosen, told, much = _settled(values)
        return overview(jobs, chosen, told, much, {})

    def opened(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        values = _settled([query.get(name) for name in ("model", "text", "effort")])
        markup = overview(jobs, *values, {})
        return [*values, markup, {}, markup]

    def changed(*values: Any) -> list[Any]:
        chosen, told, much = _settled(values)
        markup = overview(jobs, chosen, told, much, {})
        defaults = _settled([])
        pairs = zip(("model", "text", "effort"), (chosen, told, much), defaults, strict=True)
        query = urlencode({name: value for name, value, usual in pairs if value != usual})
        return [markup, {}, markup, f"?{query}"]

    def renewed(last: str, known: Mapping[str, str], *values: Any) -> Any:
        markup = overview(jobs, *_settled(values), known)
        # Most runs are such that no card is about: those redraw nothing.
        return gr.skip() if markup == last else [markup, markup]

    def pressed(event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        chosen = _settled(values)
        try:
            found = queue_missing(jobs, *chosen, str(event.run), user_of(request, host))
        except UserError as error:
            found = {_ALL: str(error)}
        markup = overview(jobs, *chosen, found)
        return [markup, found, markup]

    page.load(opened, None, [*controls, shown, problems, drawn], **quiet)
    for control in controls:
        control.input(changed, controls, [shown, problems, drawn, here], **quiet)
    shown.select(pressed, controls, [shown, problems, drawn], **quiet)
    pulse.select(renewed, [drawn, problems, *controls], [shown, drawn], concurrency_limit=None, **quiet)


def _settled(values: Sequence[Any]) -> tuple[str, str, str]:
    """(model, text, effort) of the controls or the address; what is empty or unknown is the default."""
    model, text, effort = (str(value or "").strip()[:500] for value in [*values, None, None, None][:3])
    return model or EMBEDDED_MODEL, text or Calibration().text, effort if effort in EFFORTS else "quick"


def _effort(name: str, evaluation: Mapping[str, Any]) -> str:
    return say(
        "papers.effort_of", name=_EFFORTS[name], windows=evaluation["windows"], length=evaluation["length"]
    )


_LEAD = f'<p class="lead">{say("papers.lead")}</p>'
