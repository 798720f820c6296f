"""Compare: the same prompts and texts through several compressed models and the dense one, side by side."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from backend.errors import UserError
from backend.jobs import Jobs
from store import results
from store.database import Database
from ui.answers import lanes
from ui.charts import DENSE
from ui.pages import prompt_set, reading
from ui.panel import address, banner, card, link, panel
from ui.side_by_side import numbers, recipe_differences
from ui.texts import say
from ui.visitor import user_of

MOST_RUNS = 4
# The picker offers the newest; older ones come in by link.
_MOST_CHOICES = 400
PROMPTS = (
    "The three laws of thermodynamics are",
    "Once upon a time, in a village by the sea,",
    "List three reasons why people sleep:",
    "def fibonacci(n):",
    "La capitale de la France est",
)


def choices(database: Database, selected: Sequence[str]) -> list[tuple[str, str]]:
    """(label, run id) of the runs that can be compared: they have an artifact and are not the dense model."""
    points = results.points(database)
    usable = points[(points["status"] == "done") & points["artifact"].notna() & (points["chain"] != DENSE)]
    usable = usable.drop_duplicates("id")
    usable = pd.concat([usable[usable["id"].isin(list(selected))], usable.head(_MOST_CHOICES)])
    usable = usable.drop_duplicates("id")
    several = usable["model"].nunique() > 1
    return [
        (f"{chain} ({run}{', ' + model if several else ''})", run)
        for run, chain, model in zip(usable["id"], usable["chain"], usable["model"], strict=True)
    ]


def chosen_runs(database: Database, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The runs with these ids, in their order; UserError when one is unknown or of another model."""
    if len(wanted) > MOST_RUNS:
        raise UserError(say("compare.too_many_runs", count=len(wanted), most=MOST_RUNS))
    found = []
    for run_id in dict.fromkeys(wanted):
        run = results.run(database, run_id)
        if run is None:
            raise UserError(say("compare.no_such_run", run_id=run_id[:12]))
        found.append(run)
    models = sorted({run["model"] for run in found})
    if len(models) > 1:
        raise UserError(say("compare.several_models", models=", ".join(models)))
    return found


def settings_of(temperature: Any, top_p: Any, most: Any, seed: Any, chat: Any) -> dict[str, Any]:
    """The settings of a generation from the components that hold them."""
    return {
        "temperature": temperature, "top_p": top_p, "max_tokens": int(most or 0), "seed": int(seed or 0),
        "chat": bool(chat),
    }  # fmt: skip


def asked_of(
    database: Database, ids: Sequence[str] | None, with_dense: bool, *sampling: Any
) -> tuple[str, list[str | None], dict[str, Any]]:
    """(model, the runs to ask, settings); None among the runs is the dense model, and comes first."""
    runs = chosen_runs(database, ids or [])
    if not runs:
        raise UserError(say("compare.choose_a_run"))
    wanted: list[str | None] = [None] if with_dense else []
    return runs[0]["model"], [*wanted, *(run["id"] for run in runs)], settings_of(*sampling)


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    database = jobs.database
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            picked = gr.Dropdown(
                [], multiselect=True, max_choices=MOST_RUNS, label=say("common.runs"),
                info=say("compare.runs_hint"), elem_id="pick-runs",
            )  # fmt: skip
            with gr.Row():
                dense = gr.Checkbox(
                    True,
                    label=say("compare.with_the_dense_model"),
                    info=say("compare.dense_hint"),
                    min_width=160,
                )
                chat = gr.Checkbox(label=say("compare.chat"), info=say("common.chat_hint"), min_width=160)
                words = gr.Checkbox(
                    label=say("compare.mark_words"), info=say("compare.mark_words_hint"), min_width=160,
                    elem_id="mark-words",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320, elem_id="sampling"):
            with gr.Row():
                temperature = gr.Slider(
                    0,
                    2,
                    0,
                    step=0.05,
                    label=say("common.temperature"),
                    info=say("common.temperature_hint"),
                    min_width=140,
                )
                top_p = gr.Slider(
                    0.05,
                    1,
                    1,
                    step=0.05,
                    label=say("compare.top_p"),
                    info=say("compare.top_p_hint"),
                    min_width=140,
                )
            with gr.Row():
                most = gr.Slider(
                    8, 512, 96, step=8, label=say("common.new_tokens"), min_width=140, elem_id="max-tokens"
                )
                seed = gr.Number(0, label=say("compare.seed"), precision=0, minimum=0, min_width=140)
    sampling = [temperature, top_p, most, seed, chat]
    problem = panel("compare-problem")
    group = gr.State("")
    here = address("address")
    with gr.Tabs(elem_id="compare-tabs") as tabs:
        with gr.Tab(say("compare.ask"), id="one"):
            prompt = gr.Textbox(
                PROMPTS[0],
                label=say("compare.prompt"),
                lines=3,
                max_lines=8,
                max_length=20_000,
                elem_id="prompt",
            )
            with gr.Row():
                start = gr.Button(
                    say("compare.generate"), variant="primary", elem_id="generate", min_width=160, scale=0
                )
                stop = gr.Button(
                    say("common.stop"), interactive=False, elem_id="stop", min_width=100, scale=0
                )
            gr.Examples(
                [[text] for text in PROMPTS],
                [prompt],
                label=say("compare.examples"),
                api_visibility="private",
            )
            written = panel("lanes")
        with gr.Tab(say("compare.ask_many"), id="set"):
            asked_here = partial(asked_of, database)
            prompt_set.build(page, jobs, asked_here, [picked, dense, *sampling], words, here)
        with gr.Tab(say("compare.read"), id="read"):
            runs_here = partial(chosen_runs, database)
            reading.build(page, jobs, runs_here, picked, sampling, settings_of, group, here)
    told = panel("compare-numbers")
    timer = gr.Timer(0.6, active=False)

    def below(ids: Sequence[str]) -> list[Any]:
        try:
            runs = chosen_runs(database, ids)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), ""]
        if not runs:
            return ["", _HOW]
        return ["", numbers(database, runs) + recipe_differences(runs) + _taste(runs)]

    def opened(request: gr.Request, marked: bool) -> list[Any]:
        asked = dict(request.query_params)
        ids = list(dict.fromkeys(run[:12] for run in asked.get("runs", "").split(",") if run))[:MOST_RUNS]
        known = choices(database, ids)
        usable = [run for run in ids if run in {run_id for _, run_id in known}]
        group_id = asked.get("group", "")[:32]
        text, over = lanes(jobs, group_id, marked)
        unknown = [run for run in ids if run not in usable]
        notice, table_ = below(usable)
        if unknown:
            notice = banner(say("compare.no_finished_run", runs=escape(", ".join(unknown))), "bad")
        tab = next((name for name in ("read", "set") if asked.get(name)), None)
        return [
            gr.update(choices=known, value=usable), notice, table_, text, group_id,
            gr.update(active=not over), gr.update(interactive=not over),
            gr.update(selected=tab) if tab else gr.skip(),
            f"&runs={','.join(usable)}" if asked.get("runs") else gr.skip(),
        ]  # fmt: skip

    def chosen(ids: list[str] | None) -> list[Any]:
        return [*below(ids or []), f"&runs={','.join(ids or [])}"]

    def generate(
        request: gr.Request, marked: bool, text: str, ids: list[str] | None, *given: Any
    ) -> list[Any]:
        try:
            user = user_of(request, jobs.host)
            model, wanted, settings = asked_of(database, ids, *given)
            group_id = jobs.generate(model, wanted, text or "", settings, user)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in range(5))]
        shown, _ = lanes(jobs, group_id, marked)
        return [
            "", shown, group_id, gr.update(active=True), gr.update(interactive=True), f"&group={group_id}",
        ]  # fmt: skip

    def tick(group_id: str, marked: bool) -> list[Any]:
        shown, over = lanes(jobs, group_id, marked)
        return [shown, gr.update(active=False) if over else gr.skip(), gr.update(interactive=not over)]

    def cancel(request: gr.Request, group_id: str) -> None:
        user_of(request, jobs.host)
        if group_id:
            jobs.cancel_generation(group_id)

    page.load(opened, words, [picked, problem, told, written, group, timer, stop, tabs, here], **quiet)
    picked.input(chosen, picked, [problem, told, here], **quiet)
    asked = [words, prompt, picked, dense, *sampling]
    start.click(generate, asked, [problem, written, group, timer, stop, here], **quiet)
    timer.tick(tick, [group, words], [written, timer, stop], concurrency_limit=None, **quiet)
    words.input(lambda group_id, marked: lanes(jobs, group_id, marked)[0], [group, words], written, **quiet)
    stop.click(cancel, group, None, **quiet)


def _taste(runs: Sequence[Mapping[str, Any]]) -> str:
    ids = ",".join(run["id"] for run in runs)
    return card(
        f"<h3>{say('compare.do_people_notice')}</h3>"
        f"<p>{say('compare.to_tasting', link=link(say('compare.blind_tasting'), f'tasting?runs={ids}'))}</p>",
        "to-tasting",
    )


_HOW = card(
    f"<h3>{say('compare.choose_runs_to_compare')}</h3>"
    f'<p>{say("compare.how_to")}</p><p class="note">{say("compare.numbers_appear_here")}</p>',
    "how-to-compare",
)
