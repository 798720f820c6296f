"""Compress: build a chain of methods, see what it would weigh and take, queue it."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from backend.errors import UserError
from backend.host import Host
from backend.jobs import Jobs
from backend.models import CARDS, catalogue
from backend.recipe import Calibration, Evaluation, Recipe, parse_recipe
from backend.registry import discover
from backend.text import texts
from store import results
from ui import forms
from ui.estimate_card import plan
from ui.panel import banner, button, link, panel, table
from ui.recipe_form import CALIBRATION, EVALUATION, Template, added, form_of, recipes_of, staged, template_of
from ui.stages import PRESETS, method_menu, preset_menu, stage_card
from ui.texts import many, say
from ui.visitor import user_of

# Past runs that a live estimate learns from: enough for a median, few enough to keep up with typing.
_PAST_RUNS = 40
_HINTS = {
    "samples": say("compress.samples_hint"),
    "length": say("compress.length_hint"),
    "windows": say("compress.windows_hint"),
    "seed": say("compress.seed_hint"),
    "order": say("compress.order_hint"),
}


def queued(jobs: Jobs, recipes: Sequence[Recipe], user: str) -> str:
    """Queue the recipes and say what became of each."""
    if len(recipes) == 1:
        made = [jobs.submit(recipes[0], user=user)]
    else:
        _, made = jobs.submit_sweep(recipes, user=user, source="sweep")
    fresh = sum(submitted.created for submitted in made)
    known = len(made) - fresh
    said = []
    if fresh:
        said.append(many("compress.queued_runs", fresh))
    if known:
        said.append(many("compress.known_runs", known))
    lines = [
        (
            f'<a href="queue?{urlencode({"run": submitted.run_id})}" class="mono">{submitted.run_id}</a>',
            escape(recipe.chain()),
            say("common.queued") if submitted.created else say("compress.known"),
        )
        for submitted, recipe in list(zip(made, recipes, strict=True))[:12]
    ]
    more = len(made) - len(lines)
    rest = f'<p class="note">{say("common.and_more", rest=more)}</p>' if more else ""
    return (
        f'<div class="panel" id="queued-card"><h3>{" ".join(said)}</h3>'
        f"{table((say('common.run'), say('compress.chain'), ''), lines, numeric_from=2)}{rest}"
        f'<div class="acts">{link(say("common.watch_the_queue"), "queue")} '
        f"{link(say('common.explore'), './')}</div></div>"
    )


def plan_note(plan_: Mapping[str, Any]) -> str:
    """That single linears have values of their own, and the way to leave them out."""
    if not plan_:
        return ""
    drop = button(say("compress.drop_the_plan"), "drop-plan")
    return banner(f'{many("compress.planned", len(plan_))} <span class="acts">{drop}</span>', "quiet")


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    host = jobs.host
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    stages, shape, given = gr.State([]), gr.State(0), gr.State({})

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            cards = catalogue(host)
            model = gr.Dropdown(
                [(f"{card.title} ({card.id})", card.id) for card in cards], value=cards[0].id,
                label=say("common.model"), info=say("common.model_hint"), allow_custom_value=True,
                elem_id="model",
            )  # fmt: skip
            presets = panel("presets", preset_menu())

            @gr.render(inputs=[stages], triggers=[shape.change])
            def chain(current: list[Template]) -> None:
                if not current:
                    gr.HTML(_NO_STAGES, apply_default_css=False, elem_classes="plain")
                for number, stage in enumerate(current, start=1):
                    stage_card(number, len(current), stage, stages, shape, quiet)

            planned = panel("plan-note")
            menu = panel("methods", method_menu())
            with gr.Accordion(say("compress.calibration_text"), open=False, elem_id="calibration"):
                calibration_text, *calibration = _text_fields(host, "calibration", CALIBRATION)
            with gr.Accordion(say("compress.evaluation_text_and_metrics"), open=False, elem_id="evaluation"):
                evaluation_text, *evaluation = _text_fields(host, "evaluation", EVALUATION)
                metrics = gr.CheckboxGroup(
                    list(discover().metrics), value=list(Evaluation().metrics), label=say("compress.metrics"),
                    info=say("compress.metrics_hint"), elem_id="metrics",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320, elem_classes="sticky"):
            problem = panel("problem")
            card = panel("estimate")
            queue = gr.Button(say("compress.queue_this_run"), variant="primary", elem_id="queue-button")
            outcome = panel("outcome")
            with gr.Accordion(say("compress.recipe_as_json"), open=False, elem_id="recipe-json"):
                text = gr.Code(language="json", label="recipe.json", interactive=True, max_lines=28, lines=8)
                with gr.Row():
                    take = gr.Button(
                        say("compress.load_into_the_form"), size="sm", min_width=90, elem_id="load-json"
                    )
                    queue_text = gr.Button(
                        say("compress.queue_this_json"), size="sm", min_width=90, elem_id="queue-json"
                    )

    fields = [model, stages, calibration_text, *calibration, evaluation_text, *evaluation, metrics, given]
    drawn = [problem, card, queue, text, planned]

    def template(values: Sequence[Any]) -> Template:
        split = 3 + len(CALIBRATION)
        return template_of(
            values[0],
            values[1],
            (values[2], values[3:split]),
            (values[split], values[split + 1 : -2], values[-2]),
            values[-1],
        )

    def look(*values: Any) -> list[Any]:
        try:
            built = template(values)
            recipes = recipes_of(built)
            count = len(recipes)
            label = (
                say("compress.queue_this_run") if count == 1 else say("compress.queue_several", count=count)
            )
            written = json.dumps(built, indent=1, ensure_ascii=False)
        except UserError as error:
            return [*_refused(error), gr.skip(), plan_note(values[-1])]
        try:
            history = results.recent_seconds(jobs.database, limit=_PAST_RUNS)
            estimated = plan(recipes, host, history)
        except UserError as error:
            return [*_refused(error), written, plan_note(values[-1])]
        return [
            "", estimated, gr.update(value=label, interactive=True), written, plan_note(values[-1])
        ]  # fmt: skip

    def fill(told: Mapping[str, Any], version: int) -> list[Any]:
        chosen, chain_, first, second, plan_ = form_of(told)
        return [chosen, chain_, *first, *second, plan_, version + 1]

    def opened(request: gr.Request, version: int) -> list[Any]:
        query = dict(request.query_params)
        try:
            if run := query.get("from") or query.get("plan-of"):
                found = results.run(jobs.database, run[:12])
                if found is None:
                    raise UserError(say("compress.no_run_to_start_from", run=run[:12]))
                recipe = found["recipe"]
                if "plan-of" in query and (plan_ := found["report"].get("plan")):
                    recipe = parse_recipe(recipe).with_plan(plan_).model_dump(mode="json")
                return [*fill(recipe, version), ""]
            if given := query.get("recipe"):
                recipes_of(given)
                return [*fill(json.loads(given), version), ""]
        except UserError as error:
            return [*fill(_START, version), banner(escape(str(error)), "bad")]
        return [*fill(_START, version), ""]

    def preset(event: gr.EventData, version: int) -> list[Any]:
        return [staged(PRESETS[event.preset]), {}, version + 1]

    def add(event: gr.EventData, current: list[Template], version: int) -> list[Any]:
        return [_shown(added, current, str(event.method)), version + 1]

    def load_text(written: str, version: int) -> list[Any]:
        _shown(recipes_of, written)
        return _shown(fill, json.loads(written), version)

    def enqueue(request: gr.Request, *values: Any) -> str:
        return _told(lambda: queued(jobs, recipes_of(template(values)), user_of(request, host)))

    def enqueue_text(request: gr.Request, written: str) -> str:
        return _told(lambda: queued(jobs, recipes_of(written), user_of(request, host)))

    loaded = page.load(opened, shape, [*fields, shape, outcome], **quiet)
    # One after the other: an estimate of the values before must not arrive after that of the newest.
    looking: dict[str, Any] = {**quiet, "concurrency_limit": 1, "concurrency_id": "estimate"}
    loaded.then(look, fields, drawn, **looking)
    presets.select(preset, shape, [stages, given, shape], **quiet)
    planned.select(lambda: {}, None, given, **quiet)
    given.change(look, fields, drawn, trigger_mode="always_last", **looking)
    menu.select(add, [stages, shape], [stages, shape], **quiet)
    stages.change(look, fields, drawn, trigger_mode="always_last", **looking)
    for control in (model, calibration_text, *calibration, evaluation_text, *evaluation, metrics):
        control.change(look, fields, drawn, trigger_mode="always_last", **looking)
    take.click(load_text, [text, shape], [*fields, shape], **quiet).then(look, fields, drawn, **looking)
    queue.click(enqueue, fields, outcome, api_visibility="private")
    queue_text.click(enqueue_text, text, outcome, api_visibility="private")


def _text_fields(host: Host, name: str, parameters: Sequence[forms.Parameter]) -> list[Any]:
    known = [(f"{text.title} ({text.name})", text.name) for text in texts(host)]
    with gr.Row(equal_height=False):
        chosen = gr.Dropdown(
            known, value=Calibration().text, label=say("common.text"), allow_custom_value=True, min_width=260,
            info=say("compress.text_hint"), elem_id=f"{name}-text",
        )  # fmt: skip
    with gr.Row(equal_height=False, elem_classes="fields"):
        fields = [
            forms.field(parameter, elem_id=f"{name}-{parameter.name}", info=_HINTS.get(parameter.name))
            for parameter in parameters
        ]
    return [chosen, *fields]


def _refused(error: UserError) -> list[Any]:
    return [banner(escape(str(error)), "bad"), _NOT_ESTIMATED, gr.update(interactive=False)]


def _shown(act: Callable[..., Any], *values: Any) -> Any:
    """A UserError as the page's own notice."""
    try:
        return act(*values)
    except UserError as error:
        raise gr.Error(escape(str(error)), duration=12, print_exception=False) from None


def _told(act: Callable[[], str]) -> str:
    try:
        return act()
    except UserError as error:
        return banner(escape(str(error)), "bad")


_START: Template = {"model": CARDS[0].id, "stages": PRESETS[say("compress.preset_bits_repaired")]}
_NO_STAGES = (
    f'<div class="panel empty"><h3>{say("compress.no_stages")}</h3>'
    f"<p>{say('compress.no_stages_yet')}</p></div>"
)
_NOT_ESTIMATED = (
    f'<div class="panel"><h3>{say("compress.before_the_run")}</h3>'
    f'<p class="note">{say("compress.no_estimate")}</p></div>'
)
