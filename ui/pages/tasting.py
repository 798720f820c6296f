"""Tasting: people choose between unlabeled answers, and so tell where compression begins to be noticed."""

import re
import uuid
from html import escape
from typing import Any
from urllib.parse import urlencode, urlsplit

import gradio as gr

from backend.errors import UserError
from backend.jobs import MOST_PROMPTS, Jobs
from backend.tastings import MOST_RUNS, Tastings
from store import results
from ui import taste
from ui.matrix import lines_of
from ui.pages.compare import choices
from ui.pages.queue import worker_notice
from ui.panel import address, banner, panel
from ui.plot import plot
from ui.texts import say
from ui.visitor import user_of

PROMPTS = (
    "Name three things that plants need to grow.",
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "A train leaves at 3 pm and travels for two hours. When does it arrive?",
    "Give me a recipe for pancakes.",
    "What is the difference between a lake and a river?",
    "Write a polite email asking for a day off.",
)
_VOTER = re.compile(r"[0-9a-f]{32}")


def join_url(href: str, tasting_id: str) -> str:
    """The tasting's address as the browser knows this page; "" when it is no web address."""
    try:
        parts = urlsplit(href[:500])
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}?{urlencode({'id': tasting_id})}"


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    tastings, database = Tastings(jobs), jobs.database
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # Who votes without a log-in: the browser remembers. The secret only keeps the two apart from others.
    known = gr.BrowserState("", storage_key="paretoscope-voter", secret="paretoscope-voter")
    problem = panel("tasting-problem")
    with gr.Column(visible=False, elem_id="maker") as maker:
        gr.HTML(_LEAD, apply_default_css=False, elem_classes="plain")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                picked = gr.Dropdown(
                    [], multiselect=True, max_choices=MOST_RUNS, label=say("common.runs"),
                    info=say("tasting.runs_hint"), elem_id="taste-runs",
                )  # fmt: skip
                prompts = gr.Textbox(
                    "\n".join(PROMPTS), label=say("tasting.prompts"),
                    info=say("common.one_a_line", most=MOST_PROMPTS), lines=8, max_lines=20,
                    max_length=40_000, elem_id="taste-prompts",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=320):
                title = gr.Textbox(
                    "", label=say("tasting.title"), placeholder=say("tasting.title_hint"), max_length=120
                )
                most = gr.Slider(16, 256, 80, step=8, label=say("common.new_tokens"))
                temperature = gr.Slider(
                    0, 2, 0, step=0.05, label=say("common.temperature"), info=say("common.temperature_hint")
                )
                chat = gr.Checkbox(
                    True,
                    label=say("tasting.chat"),
                    info=say("common.chat_hint"),
                    elem_id="taste-chat",
                )
                make = gr.Button(say("tasting.make"), variant="primary", elem_id="make-tasting")
        listed = panel("taste-list")
    body = panel("taste-body")
    drawn = plot("taste-plot", say("tasting.plot"))
    invite = panel("taste-invite")
    here = address("address")
    href = gr.Textbox("", visible="hidden", elem_id="taste-href")
    current, view, seen = gr.State(""), gr.State("ballot"), gr.State("")
    timer = gr.Timer(2.0, active=False)

    def voter_of(request: gr.Request, kept: object) -> str:
        """The log-in name; without one, what the browser remembers, and nothing that could not be that."""
        user = user_of(request, jobs.host)
        if jobs.host.auth:
            return user[:64]
        return kept if isinstance(kept, str) and _VOTER.fullmatch(kept) else ""

    def shown(tasting_id: str, voter: str, what: str) -> list[Any]:
        """[body, plot, timer, seen]: the last tells in short what is shown, to see whether it changed."""
        tasting = tastings.get(tasting_id)
        if tasting is None:
            return [taste.unknown(tasting_id), _NO_PLOT, gr.update(active=False), ""]
        notice = ""
        if not tasting.is_written and not results.workers(database, jobs.host.stale_after)["alive"].any():
            notice = worker_notice(jobs, ())
        if what == "results":
            found, votes = tastings.standings(tasting)
            rows = taste.verdicts(database, tasting, found)
            drawing = taste.figure(rows) if votes else None
            return [
                notice + taste.outcome(tasting, rows, votes),
                gr.update(value=drawing, visible=drawing is not None),
                gr.update(active=True), f"results {len(votes)} {len(rows)}",
            ]  # fmt: skip
        sitting = tastings.sitting(tasting, voter)
        return [
            notice + taste.ballot(tasting, sitting), _NO_PLOT, gr.update(active=not tasting.is_written),
            f"ballot {tasting.written} {sitting.done} {bool(notice)}",
        ]  # fmt: skip

    def query(tasting_id: str, what: str) -> str:
        return "?" + urlencode({"id": tasting_id} | ({"results": 1} if what == "results" else {}))

    def opened(request: gr.Request, kept: object, where: str) -> list[Any]:
        asked = dict(request.query_params)
        tasting_id, what = asked.get("id", "")[:16], "results" if asked.get("results") else "ballot"
        kept = kept if isinstance(kept, str) and _VOTER.fullmatch(kept) else uuid.uuid4().hex
        try:
            voter = voter_of(request, kept)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in range(11))]
        if tasting_id and tastings.get(tasting_id) is not None:
            url = join_url(where, tasting_id)
            return [
                "", gr.update(visible=False), gr.skip(), "", *shown(tasting_id, voter, what),
                taste.invitation(url) if url else "", tasting_id, what, kept,
            ]  # fmt: skip
        wanted = [run[:12] for run in asked.get("runs", "").split(",") if run][:MOST_RUNS]
        offered = choices(database, wanted)
        usable = [run for run in dict.fromkeys(wanted) if run in {run_id for _, run_id in offered}]
        return [
            taste.unknown(tasting_id) if tasting_id else "", gr.update(visible=True),
            gr.update(choices=offered, value=usable), taste.listed(tastings.newest()),
            "", _NO_PLOT, gr.update(active=False), "", "", "", "ballot", kept,
        ]  # fmt: skip

    def made(
        request: gr.Request, ids: list[str] | None, text: str, named: str, tokens: float, heat: float,
        as_chat: bool, kept: object, where: str,
    ) -> list[Any]:  # fmt: skip
        settings = {"max_tokens": int(tokens or 0), "temperature": heat or 0, "chat": bool(as_chat)}
        try:
            voter = voter_of(request, kept)
            user = user_of(request, jobs.host)
            tasting_id = tastings.make(ids or [], lines_of(text or ""), settings, named or "", user)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in range(10))]
        url = join_url(where, tasting_id)
        return [
            "", gr.update(visible=False), "", *shown(tasting_id, voter, "ballot"),
            taste.invitation(url) if url else "", tasting_id, "ballot", query(tasting_id, "ballot"),
        ]  # fmt: skip

    def pressed(
        event: gr.EventData, request: gr.Request, tasting_id: str, what: str, kept: object
    ) -> list[Any]:
        try:
            voter = voter_of(request, kept)
            if event.action == "vote":
                tasting = tastings.get(tasting_id)
                if not voter:
                    raise UserError(say("tasting.no_data_kept"))
                if tasting is not None:
                    tastings.vote(tasting, voter, str(event.ticket), str(event.choice))
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in range(6))]
        if event.action in ("results", "ballot"):
            what = str(event.action)
        return ["", *shown(tasting_id, voter, what), what, query(tasting_id, what)]

    def tick(request: gr.Request, tasting_id: str, what: str, kept: object, before: str) -> list[Any]:
        parts = shown(tasting_id, voter_of(request, kept), what)
        return [gr.skip()] * 4 if parts[-1] == before else parts

    parts = [body, drawn, timer, seen]
    page.load(
        opened, [known, href],
        [problem, maker, picked, listed, *parts, invite, current, view, known],
        js="(known, href) => [known, location.href]", **quiet,
    )  # fmt: skip
    make.click(
        made, [picked, prompts, title, most, temperature, chat, known, href],
        [problem, maker, listed, *parts, invite, current, view, here],
        js="(...given) => [...given.slice(0, -1), location.href]", **quiet,
    )  # fmt: skip
    body.select(pressed, [current, view, known], [problem, *parts, view, here], **quiet)
    timer.tick(tick, [current, view, known, seen], parts, concurrency_limit=None, **quiet)


_NO_PLOT = gr.update(value=None, visible=False)
_LEAD = f'<p class="lead">{say("tasting.lead")}</p>'
