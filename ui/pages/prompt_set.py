"""Compare, a set of prompts: every prompt through every model, as a table."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from backend.errors import UserError
from backend.jobs import MOST_PROMPTS, Jobs, group_ids
from store import results
from ui.answers import answers_of, is_over, lanes
from ui.matrix import SETS, lines_of, matrix, text_of
from ui.panel import banner, panel
from ui.texts import say
from ui.visitor import user_of

# (request, runs, with dense, sampling) -> (model, the runs to ask, settings); UserError.
Asked = Callable[..., tuple[str, list[str | None], dict[str, Any]]]
_OWN = say("compare.own")


def parse(named: str) -> tuple[str, int]:
    """(set id, how many prompts) of an address; ("", 0) when it names none."""
    set_id, _, count = named[:40].partition(".")
    if not (set_id.isalnum() and count.isdecimal() and 1 <= int(count) <= MOST_PROMPTS):
        return "", 0
    return set_id, int(count)


def shown(jobs: Jobs, named: str, chosen: str = "") -> tuple[str, bool]:
    """The table of a set, and whether all of its answers are finished."""
    set_id, count = parse(named)
    rows = answers_of(jobs.database, *group_ids(set_id, count)) if set_id else []
    groups = [[row for row in rows if row["group_id"] == group] for group in group_ids(set_id, count)]
    ids = [row["run_id"] for row in rows if row["run_id"]]
    names = {run["id"]: run["chain"] for run in results.runs(jobs.database, ids=ids).to_dict("records")}
    return matrix(groups, names, chosen), is_over(rows)


def build(
    page: gr.Blocks, jobs: Jobs, asked: Asked, inputs: Sequence[Any], words: gr.Checkbox, here: gr.HTML
) -> None:
    """Lay the tab out and wire it; `inputs` are the components that `asked` reads."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    first = next(iter(SETS))
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=220):
            kind = gr.Radio(
                [*SETS, _OWN], value=first, label=say("compare.questions_about"), elem_id="set-kind"
            )
            with gr.Row():
                start = gr.Button(say("compare.ask_all"), variant="primary", elem_id="ask-all", min_width=110)
                stop = gr.Button(say("common.stop"), interactive=False, elem_id="stop-all", min_width=80)
        with gr.Column(scale=5, min_width=320):
            text = gr.Textbox(
                text_of(SETS[first]), label=say("compare.questions"),
                info=say("common.one_a_line", most=MOST_PROMPTS), lines=5, max_lines=14, max_length=40_000,
                elem_id="questions",
            )  # fmt: skip
    problem = panel("set-problem")
    table = panel("set-table")
    detail = panel("set-detail")
    named, chosen = gr.State(""), gr.State("")
    timer = gr.Timer(1.0, active=False)

    def both(set_name: str, group: str, marked: bool) -> list[Any]:
        told, over = shown(jobs, set_name, group)
        own = parse(set_name)[0] and group.startswith(f"{parse(set_name)[0]}.")
        return [told, lanes(jobs, group, marked)[0] if own else "", gr.update(active=not over)]

    def opened(request: gr.Request) -> list[Any]:
        set_name = dict(request.query_params).get("set", "")[:40]
        told, over = shown(jobs, set_name)
        notice = ""
        if set_name and not told:
            notice = banner(say("compare.no_such_set"), "bad")
        return [
            notice,
            told,
            set_name if told else "",
            gr.update(active=not over),
            gr.update(interactive=not over),
        ]

    def ask(request: gr.Request, lines: str, *given: Any) -> list[Any]:
        try:
            user = user_of(request, jobs.host)
            model, wanted, settings = asked(*given)
            prompts = lines_of(lines or "")
            set_id = jobs.generate_many(model, wanted, [(prompt, settings) for prompt in prompts], user)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in range(7))]
        set_name = f"{set_id}.{len(prompts)}"
        told, _ = shown(jobs, set_name)
        return [
            "", told, "", set_name, "", gr.update(active=True), gr.update(interactive=True),
            f"&set={set_name}",
        ]  # fmt: skip

    def tick(set_name: str, group: str, marked: bool) -> list[Any]:
        told, sides, running = both(set_name, group, marked)
        return [told, sides, running, gr.update(interactive=running["active"])]

    def pressed(event: gr.EventData, set_name: str, marked: bool) -> list[Any]:
        group = str(event.run)[:32]
        told, sides, _ = both(set_name, group, marked)
        return [told, sides, group]

    def cancel(request: gr.Request, set_name: str) -> None:
        user_of(request, jobs.host)
        for group in group_ids(*parse(set_name)):
            jobs.cancel_generation(group)

    page.load(opened, None, [problem, table, named, timer, stop], **quiet)
    kind.input(
        lambda wanted: text_of(SETS[wanted]) if wanted in SETS else gr.skip(), kind, text, **quiet
    )  # fmt: skip
    start.click(
        ask, [text, *inputs], [problem, table, detail, named, chosen, timer, stop, here], **quiet
    )  # fmt: skip
    timer.tick(tick, [named, chosen, words], [table, detail, timer, stop], concurrency_limit=None, **quiet)
    table.select(pressed, [named, words], [table, detail, chosen], **quiet)
    words.input(both, [named, chosen, words], [table, detail, timer], **quiet)
    stop.click(cancel, named, None, **quiet)
