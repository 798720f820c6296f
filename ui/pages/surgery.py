"""Surgery: what each linear alone costs the model, predicted at once and measured on demand."""

import json
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from backend.errors import UserError
from backend.facts import facts
from backend.jobs import Jobs
from backend.registry import discover
from backend.text import check_text
from store import results
from ui import forms, learned
from ui.live import live
from ui.operation import cell, cost_map, history, outcome
from ui.panel import address, banner, panel
from ui.plot import plot
from ui.recipe_form import Template, added, staged
from ui.stages import method_menu, stage_card
from ui.subject import subject, subject_of
from ui.texts import say
from ui.visitor import user_of

_FIRST: list[Template] = [{"method": "quantize.gptq", "params": {"bits": 2}}]
_KINDS = ("prune", "quantize", "factorize", "compensate")
_LEVEL = "2-bit g64"
_MOST_KEPT = 12


def chain_of(stages: list[Template]) -> list[dict[str, Any]]:
    """The stages of the form as a recipe has them; UserError for a value, or a list of values."""
    chain = []
    for number, stage in enumerate(stages, start=1):
        fields = forms.parameters(discover().methods[stage["method"]].params)
        where = say("compress.stage_name", number=number, method=stage["method"])
        params = {field.name: forms.read(field, stage["values"][field.name], where) for field in fields}
        if several := [name for name, value in params.items() if isinstance(value, list)]:
            raise UserError(say("surgery.several_values", where=where, parameter=several[0]))
        if params.get("pattern", "free") != "free":
            params.pop("sparsity", None)
        chain.append({"method": stage["method"], "params": params})
    return chain


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    host, database = jobs.host, jobs.database
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    stages, shape = gr.State(staged(_FIRST)), gr.State(0)
    layer, done = gr.State(""), gr.State([])
    with gr.Row(equal_height=False):
        model, text = subject(host, "surgery", say("common.text"))
        level = gr.Dropdown(
            [_LEVEL], value=_LEVEL, label=say("surgery.sensitivity_to"), elem_id="surgery-level", scale=2,
            min_width=160, visible=False,
        )  # fmt: skip
    problem = panel("surgery-problem")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            heat = plot("sensitivity", say("surgery.map"))
            levels = panel("surgery-levels")

            @gr.render(inputs=[stages], triggers=[shape.change, page.load])
            def chain(current: list[Template]) -> None:
                for number, stage in enumerate(current, start=1):
                    stage_card(number, len(current), stage, stages, shape, quiet, everywhere=False)

            menu = panel("surgery-methods", method_menu(_KINDS))
            operate = gr.Button(say("surgery.operate"), variant="primary", elem_id="operate")
        with gr.Column(scale=4, min_width=320):
            chosen = panel("cell")
            result = panel("operation-panel")
            earlier = panel("operations-panel")
    here = address("address")
    pulse = live("surgery-pulse", 1, minds=("questions",))

    def drawn(model_: str, text_: str, level_: str, layer_: str, ids: list[str]) -> list[Any]:
        """Level choice, problem, map, levels card, cell, outcome, history, address."""
        try:
            layout = facts(model_, host)
            found = learned.budget_of(jobs, model_, text_)
            task = learned.task_of(jobs, model_, text_)
        except UserError as error:
            hidden = gr.update(visible=False)
            return [hidden, banner(escape(str(error)), "bad"), hidden, "", "", "", "", gr.skip()]
        names = [known.name for known in found.levels if known.stages] if found else []
        level_ = level_ if level_ in names else (_LEVEL if _LEVEL in names else (names or [""])[-1])
        number = (
            next((at for at, known in enumerate(found.levels) if known.name == level_), 0) if found else 0
        )
        alive = bool(results.workers(database, host.stale_after)["alive"].any())
        latest = results.task(database, ids[-1]) if ids else None
        query = {"model": model_, "text": text_, "level": level_, "layer": layer_}
        return [
            gr.update(choices=names, value=level_ or None, visible=bool(names)),
            "",
            gr.update(value=json.dumps(cost_map(layout, found, number, layer_)), visible=True),
            learned.building(task, alive),
            cell(layout, found, layer_),
            outcome(latest, found),
            history(database, ids, found),
            "?" + urlencode({key: value for key, value in query.items() if value}),
        ]

    def opened(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        model_, text_ = subject_of(host, query)
        layer_, level_ = query.get("layer", "")[:200], query.get("level", _LEVEL)[:60]
        return [model_, text_, layer_, *drawn(model_, text_, level_, layer_, [])]

    def pressed(
        event: gr.EventData, request: gr.Request, model_: str, text_: str, level_: str, layer_: str,
        ids: list[str], current: list[Template],
    ) -> list[Any]:  # fmt: skip
        try:
            user = user_of(request, host)
            action = getattr(event, "action", "open")
            if action == "learn":
                learned.learn(jobs, model_, text_, user)
            elif action == "cancel":
                task = learned.task_of(jobs, model_, text_)
                if task is not None and (not host.auth or task["user"] == user):
                    jobs.cancel_task(task["id"])
            elif action == "operate":
                ids = asked_for(model_, text_, layer_, ids, current, user)
            else:
                layer_ = str(event.run)[:200]
        except UserError as error:
            rest: list[Any] = [gr.skip()] * len(shown)
            rest[1] = banner(escape(str(error)), "bad")
            return [layer_, ids, *rest]
        return [layer_, ids, *drawn(model_, text_, level_, layer_, ids)]

    def asked_for(
        model_: str, text_: str, layer_: str, ids: list[str], current: list[Template], user: str
    ) -> list[str]:
        if not layer_:
            raise UserError(say("surgery.no_cell"))
        check_text(text_, host)
        wanted = {"layer": layer_, "stages": chain_of(current), **learned.asked(text_)}
        task_id = jobs.ask("surgery", model_, wanted, user)
        return [*(one for one in ids if one != task_id), task_id][-_MOST_KEPT:]

    def go(
        request: gr.Request, model_: str, text_: str, level_: str, layer_: str, ids: list[str],
        current: list[Template],
    ) -> list[Any]:  # fmt: skip
        try:
            ids = asked_for(model_, text_, layer_, ids, current, user_of(request, host))
        except UserError as error:
            rest: list[Any] = [gr.skip()] * len(shown)
            rest[1] = banner(escape(str(error)), "bad")
            return [ids, *rest]
        return [ids, *drawn(model_, text_, level_, layer_, ids)]

    def renewed(model_: str, text_: str, level_: str, layer_: str, ids: list[str]) -> Any:
        parts = drawn(model_, text_, level_, layer_, ids)
        # The map and the choice of levels change with the levels alone.
        if not parts[3]:
            parts[0] = parts[2] = gr.skip()
        return parts

    def add(event: gr.EventData, current: list[Template], version: int) -> list[Any]:
        try:
            return [added(current, str(event.method)), version + 1]
        except UserError as error:
            raise gr.Error(escape(str(error)), duration=8, print_exception=False) from None

    shown = [level, problem, heat, levels, chosen, result, earlier, here]
    asked = [model, text, level, layer, done]
    page.load(opened, None, [model, text, layer, *shown], **quiet)
    for control in (model, text, level):
        control.input(drawn, asked, shown, **quiet)
    for source in (heat, levels, result):
        source.select(pressed, [*asked, stages], [layer, done, *shown], **quiet)
    operate.click(go, [*asked, stages], [done, *shown], **quiet)
    menu.select(add, [stages, shape], [stages, shape], **quiet)
    pulse.select(renewed, asked, shown, concurrency_limit=None, **quiet)
