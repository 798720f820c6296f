"""Compare, a text: every model reads the same text, token by token."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from backend.errors import UserError
from backend.jobs import LONGEST_PROMPT, Jobs, group_ids
from backend.sampling import printable
from store import results
from ui.answers import answers_of, is_over
from ui.panel import banner, panel
from ui.reader import at_of, begin_of, forced, payload, reader, state_of, token_card
from ui.texts import say
from ui.visitor import user_of

_TEXT = (
    "The Eiffel Tower is a wrought-iron lattice tower in Paris. It was built in 1889 for the World's Fair."
)


def question(
    text: str, runs: Sequence[dict[str, Any]], answer: Sequence[int] = (), chat: bool = False
) -> dict[str, Any]:
    """The arguments of a reading; UserError for a text that cannot be one."""
    text = printable(text)
    if not text.strip() or len(text) > LONGEST_PROMPT:
        raise UserError(say("compare.wrong_length", count=len(text), most=LONGEST_PROMPT))
    told: dict[str, Any] = {"text": text, "artifacts": [[run["id"], run["artifact"]] for run in runs]}
    return told | ({"answer": list(answer), "chat": chat} if answer else {})


def dense_answer(jobs: Jobs, group: str) -> tuple[str, list[int], bool]:
    """(prompt, token ids, whether inside the chat template) of what the dense model wrote in a group."""
    for row in answers_of(jobs.database, group) if group else []:
        if row["run_id"] is None and row["status"] == "done" and row["tokens"]:
            ids = [token for token, _ in row["tokens"]]
            return row["prompt"], ids, bool(row["settings"].get("chat"))
    raise UserError(say("compare.no_dense_answer"))


def build(
    page: gr.Blocks, jobs: Jobs, chosen_runs: Callable[[Sequence[str]], list[dict[str, Any]]],
    picked: gr.Dropdown, sampling: Sequence[Any], settings_of: Callable[..., dict[str, Any]],
    group: gr.State, here: gr.HTML,
) -> None:  # fmt: skip
    """Lay the tab out and wire it; `group` is the group of answers that the page shows."""
    database = jobs.database
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    text = gr.Textbox(
        _TEXT, label=say("common.text"), lines=4, max_lines=12, max_length=LONGEST_PROMPT,
        elem_id="text-to-read", info=say("compare.text_hint"),
    )  # fmt: skip
    with gr.Row():
        start = gr.Button(
            say("compare.read_this_text"), variant="primary", elem_id="read-text", min_width=200, scale=0
        )
        own = gr.Button(say("compare.read_dense_answer"), elem_id="read-answer", min_width=330, scale=0)
        stop = gr.Button(
            say("common.stop"), interactive=False, elem_id="stop-reading", min_width=100, scale=0
        )
    state = panel("read-state")
    tokens = reader("reader")
    told = panel("token")
    written = panel("forced-lanes")
    task_id, place, set_id = gr.State(""), gr.State(("", -1)), gr.State("")
    timer = gr.Timer(0.8, active=False)

    def names_of(ids: Sequence[str]) -> dict[str, str]:
        return {run["id"]: run["chain"] for run in results.runs(database, ids=ids).to_dict("records")}

    def shown(task: str) -> list[Any]:
        """[state, reader, timer, stop] of a reading."""
        row = results.task(database, task) if task else None
        if row is None or row["kind"] != "read":
            notice = banner(say("compare.no_such_reading"), "bad") if task else ""
            return [notice, None, gr.update(active=False), gr.update(interactive=False)]
        busy = row["status"] in ("queued", "running")
        value = None
        if row["status"] == "done":
            order = [run for run, _ in row["arguments"]["artifacts"]]
            value = payload(row["result"], names_of(order), order)
        return [state_of(row), value, gr.update(active=busy), gr.update(interactive=busy)]

    def asked(
        request: gr.Request, ids: Sequence[str], what: Callable[[], tuple[str, Sequence[int], bool]]
    ) -> Any:
        try:
            user = user_of(request, jobs.host)
            runs = chosen_runs(ids)
            if not runs:
                raise UserError(say("compare.choose_a_run_to_read"))
            if missing := [run["id"] for run in runs if not run["artifact"]]:
                raise UserError(say("compare.no_artifact", run=missing[0]))
            given, answer, chat = what()
            task = jobs.ask("read", runs[0]["model"], question(given, runs, answer, chat), user)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in range(7))]
        return [*shown(task), task, "", "", f"&read={task}"]

    def read_text(request: gr.Request, ids: list[str] | None, given: str) -> Any:
        return asked(request, ids or [], lambda: (given or "", (), False))

    def read_answer(request: gr.Request, ids: list[str] | None, shown_group: str) -> Any:
        return asked(request, ids or [], lambda: dense_answer(jobs, shown_group))

    def opened(request: gr.Request) -> list[Any]:
        task = dict(request.query_params).get("read", "")[:16]
        row = results.task(database, task) if task else None
        given = row["arguments"].get("text") if row and row["kind"] == "read" else None
        return [*shown(task), task, gr.update(value=given) if given else gr.skip()]

    def pressed(event: gr.EventData, task: str) -> list[Any]:
        row = results.task(database, task) if task else None
        run = str(event.run or "")
        at = at_of(row["result"], run, str(event.at)) if row and row["result"] else None
        if row is None or at is None:
            return ["", ("", -1)]
        return [token_card(row["result"], run, names_of([run]).get(run, run), at), (run, at)]

    def on_card(
        event: gr.EventData, request: gr.Request, task: str, where: tuple[str, int], *given: Any
    ) -> Any:
        run, at = where
        if event.action != "force":
            return ["", gr.skip(), gr.skip(), gr.skip()]
        row = results.task(database, task)
        if row is None or not run or at < 0:
            return [gr.skip()] * 4
        begin, token = begin_of(row["result"], at)
        settings = settings_of(*given) | {"chat": False}
        try:
            user = user_of(request, jobs.host)
            questions = [("", settings | {"begin": ids}) for ids in (begin, [*begin, token])]
            made = jobs.generate_many(row["model"], [run], questions, user)
        except UserError as error:
            return [gr.skip(), banner(escape(str(error)), "bad"), gr.skip(), gr.skip()]
        return [gr.skip(), continued(made, task, run)[0], made, gr.update(active=True)]

    def continued(made: str, task: str, run: str) -> tuple[str, bool]:
        """What was written on from the chosen token, and whether it is finished."""
        if not made:
            return "", True
        rows = answers_of(database, *group_ids(made, 2))
        row = results.task(database, task)
        if row is None or not row["result"]:
            return "", True
        return forced(rows, row["result"], names_of([run]).get(run, run)), is_over(rows)

    def tick(task: str, made: str, where: tuple[str, int], before: str) -> list[Any]:
        row = results.task(database, task) if task else None
        busy = row is not None and row["status"] in ("queued", "running")
        sides, over = continued(made, task, where[0])
        # The text itself is large, and need not be sent anew for every word that is written below it.
        fresh = shown(task)[:2] if busy or not before else [gr.skip(), gr.skip()]
        active = busy or not over
        return [
            *fresh, gr.update(active=active), gr.update(interactive=busy), sides,
            "" if busy else "read",
        ]  # fmt: skip

    def cancel(request: gr.Request, task: str) -> None:
        user_of(request, jobs.host)
        if task:
            jobs.cancel_task(task)

    seen = gr.State("")
    parts = [state, tokens, timer, stop]
    page.load(opened, None, [*parts, task_id, text], **quiet)
    asking = [*parts, task_id, told, written, here]
    start.click(read_text, [picked, text], asking, **quiet).then(
        lambda: ("", ""), None, [seen, set_id], **quiet
    )  # fmt: skip
    own.click(read_answer, [picked, group], asking, **quiet).then(
        lambda: ("", ""), None, [seen, set_id], **quiet
    )  # fmt: skip
    tokens.select(pressed, task_id, [told, place], **quiet)
    told.select(on_card, [task_id, place, *sampling], [told, written, set_id, timer], **quiet)
    timer.tick(
        tick, [task_id, set_id, place, seen], [*parts, written, seen], concurrency_limit=None, **quiet
    )  # fmt: skip
    stop.click(cancel, task_id, None, **quiet)
