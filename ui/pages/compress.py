"""Compress: build a chain of methods, see what it would weigh and take, queue it."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.errors import UserError
from backend.estimate import Estimate, estimate
from backend.host import Host
from backend.jobs import Jobs
from backend.models import CARDS, catalogue
from backend.recipe import Calibration, Evaluation, Recipe, parse_sweep
from backend.registry import Method, discover
from backend.text import same_text, texts
from store import results
from ui import forms
from ui.panel import banner, figures, link, panel, paper, table
from ui.quantities import byte_size, duration
from ui.visitor import user_of

MOST_STAGES = 5
MOST_RUNS = 500
# A sweep's card adds up so many estimates; a larger one is scaled from them.
_MOST_ESTIMATES = 12
# Past runs that a live estimate learns from: enough for a median, few enough to keep up with typing.
_PAST_RUNS = 40

Template = dict[str, Any]

PRESETS: dict[str, list[Template]] = {
    "4-bit rounding": [{"method": "quantize.rtn", "params": {"bits": 4}}],
    "GPTQ, 2 to 4 bits": [{"method": "quantize.gptq", "params": {"bits": [2, 3, 4]}}],
    "3 bits, group sizes": [{"method": "quantize.gptq", "params": {"bits": 3, "group_size": [32, 64, 192]}}],
    "SparseGPT 2:4": [{"method": "prune.sparsegpt", "params": {"pattern": "2:4"}}],
    "Wanda, 30 to 60 %": [{"method": "prune.wanda", "params": {"sparsity": [0.3, 0.4, 0.5, 0.6]}}],
    "2:4 repaired by EoRA": [
        {"method": "prune.wanda", "params": {"pattern": "2:4"}},
        {"method": "compensate.eora", "params": {"rank": [32, 64, 128]}},
    ],
    "3 bits repaired by EoRA": [
        {"method": "quantize.gptq", "params": {"bits": 3}},
        {"method": "compensate.eora", "params": {"rank": 64}},
    ],
    "Pruned, quantized, repaired": [
        {"method": "prune.sparsegpt", "params": {"pattern": "2:4"}},
        {"method": "quantize.gptq", "params": {"bits": 4}},
        {"method": "compensate.eora", "params": {"rank": 32}},
    ],
}
_CALIBRATION = forms.parameters(Calibration, without=("text",))
_EVALUATION = forms.parameters(Evaluation, without=("text", "metrics"))
_HINTS = {
    "samples": "Blocks of calibration text",
    "length": "Tokens of one block",
    "windows": "Windows of evaluation text",
    "seed": "Picks the blocks",
    "order": "Inputs from the compressed prefix, linear by linear, or of the dense model",
}


def staged(chain: Sequence[Mapping[str, Any]]) -> list[Template]:
    """The stages of a recipe as the page keeps them: what every field shows, and a key of its own."""
    stages = []
    for number, stage in enumerate(chain[:MOST_STAGES]):
        method = discover().methods.get(str(stage.get("method")))
        if method is None:
            raise UserError(f"stage {number + 1}: there is no method {str(stage.get('method'))[:60]!r}")
        given = stage.get("params", {})
        values = {
            field.name: forms.shown(field, given.get(field.name)) for field in forms.parameters(method.params)
        }
        stages.append({"key": number, "method": method.id, "values": values, "only": stage.get("only") or ""})
    return stages


def template_of(
    model: str,
    stages: Sequence[Template],
    calibration: tuple[str, Sequence[Any]],
    evaluation: tuple[str, Sequence[Any], Sequence[str]],
) -> Template:
    """The form as a sweep's template: (text, field values) of calibration, and the metrics of evaluation."""
    chain = []
    for number, stage in enumerate(stages, start=1):
        fields = forms.parameters(discover().methods[stage["method"]].params)
        where = f"stage {number}, {stage['method']}"
        params = {field.name: forms.read(field, stage["values"][field.name], where) for field in fields}
        if params.get("pattern", "free") != "free":
            # A pattern zeroes half by itself; what the idle field shows must not contradict it.
            params.pop("sparsity", None)
        entry: Template = {"method": stage["method"], "params": params}
        if stage["only"].strip():
            entry["only"] = stage["only"].strip()
        chain.append(entry)
    text, values = calibration
    scored_text, scored_values, metrics = evaluation
    return {
        "version": 1,
        "model": (model or "").strip(),
        "stages": chain,
        "calibration": {"text": text, **forms.read_all(_CALIBRATION, values, "calibration")},
        "evaluation": {
            "text": scored_text,
            **forms.read_all(_EVALUATION, scored_values, "evaluation"),
            "metrics": list(metrics),
        },
    }


def recipes_of(template: Template | str) -> list[Recipe]:
    """All recipes that a template names; UserError on the first that is wrong, or when there are too many."""
    recipes = parse_sweep(template).expand()
    if len(recipes) > MOST_RUNS:
        raise UserError(f"this sweep has {len(recipes)} runs; allowed from the page: at most {MOST_RUNS}")
    return recipes


def form_of(template: Mapping[str, Any]) -> tuple[str, list[Template], list[Any], list[Any]]:
    """A recipe or sweep as (model, stages, calibration row, evaluation row) of the form."""
    chain = template.get("stages") or []
    if any(not isinstance(stage, Mapping) or not isinstance(stage.get("method"), str) for stage in chain):
        raise UserError("recipe: the form holds one chain of methods; queue this JSON as it is instead")
    if len(chain) > MOST_STAGES:
        raise UserError(f"recipe: it has {len(chain)} stages, the form holds {MOST_STAGES}; queue the JSON")
    first, second = template.get("calibration") or {}, template.get("evaluation") or {}
    calibration = [first.get("text", Calibration().text)]
    calibration += [forms.shown(field, first.get(field.name)) for field in _CALIBRATION]
    evaluation = [second.get("text", Evaluation().text)]
    evaluation += [forms.shown(field, second.get(field.name)) for field in _EVALUATION]
    evaluation.append(list(second.get("metrics", Evaluation().metrics)))
    return str(template.get("model") or CARDS[0].id), staged(chain), calibration, evaluation


def added(stages: list[Template], method: str) -> list[Template]:
    """The stages with a new one of this method at the end."""
    if len(stages) >= MOST_STAGES:
        raise UserError(f"a chain has at most {MOST_STAGES} stages")
    (stage,) = staged([{"method": method}])
    return [*stages, stage | {"key": 1 + max((other["key"] for other in stages), default=-1)}]


def moved(stages: list[Template], key: int, by: int) -> list[Template]:
    """The stages with one moved up (-1), down (1) or, for 0, taken away."""
    at = next((index for index, stage in enumerate(stages) if stage["key"] == key), None)
    if at is None:
        return stages
    rest = stages[:at] + stages[at + 1 :]
    if by == 0:
        return rest
    to = min(max(0, at + by), len(rest))
    return [*rest[:to], stages[at], *rest[to:]]


def edited(stages: list[Template], key: int, name: str, value: Any) -> list[Template]:
    """The stages with one field changed; the name `only` is the glob over layers."""
    changed = []
    for stage in stages:
        if stage["key"] == key:
            stage = (
                stage | {"only": value or ""}
                if name == "only"
                else stage | {"values": stage["values"] | {name: value}}
            )
        changed.append(stage)
    return changed


def plan(recipes: Sequence[Recipe], host: Host, history: pd.DataFrame) -> str:
    """The estimate card; UserError when a run cannot work."""
    looked = list(recipes)[:_MOST_ESTIMATES]
    estimates = [estimate(recipe, host, history) for recipe in looked]
    body = _one(estimates[0]) if len(recipes) == 1 else _many(looked, estimates, len(recipes))
    warning = ""
    first = recipes[0]
    if any(same_text(recipe.calibration.text, recipe.evaluation.text) for recipe in recipes) and first.stages:
        warning = (
            '<p class="warn-ink">Calibration and evaluation read the same file: the numbers will flatter.</p>'
        )
    return f'<div class="panel" id="estimate-card">{body}{warning}</div>'


def _one(told: Estimate) -> str:
    parts = [
        ("Linears", byte_size(told.linears_bytes)),
        ("Embeddings", byte_size(told.embeddings_bytes)),
        ("Norms, biases", byte_size(told.rest_bytes)),
        ("Dense model, to compare", byte_size(told.dense_bytes)),
    ]
    numbers = {
        "packed": byte_size(told.packed_bytes),
        "of dense": f"{100 * told.packed_bytes / told.dense_bytes:.1f} %",
        "time, about": duration(told.seconds),
        "peak memory, about": byte_size(told.peak_bytes),
    }
    return (
        f"<h3>Before the run</h3>{figures(numbers)}{table(('Packed size', ''), parts)}"
        f'<p class="note">{escape(told.formula)}</p><p class="note">{_trust(told)}</p>'
    )


def _many(looked: Sequence[Recipe], estimates: Sequence[Estimate], count: int) -> str:
    sizes = [told.packed_bytes for told in estimates]
    seconds = sum(told.seconds for told in estimates) * count / len(estimates)
    numbers = {
        "runs": str(count),
        "packed": f"{byte_size(min(sizes))} to {byte_size(max(sizes))}",
        "time, about": duration(seconds),
        "peak memory, up to": byte_size(max(told.peak_bytes for told in estimates)),
    }
    lines = [
        (escape(recipe.chain()), byte_size(told.packed_bytes), duration(told.seconds))
        for recipe, told in zip(looked, estimates, strict=True)
    ]
    rest = f'<p class="note">and {count - len(looked)} more</p>' if count > len(looked) else ""
    return (
        f"<h3>Before the sweep</h3>{figures(numbers)}{table(('Run', 'packed', 'time'), lines)}{rest}"
        f'<p class="note">{_trust(estimates[0])}</p>'
    )


def _trust(told: Estimate) -> str:
    sizes = "Sizes are counted exactly. 1 MB is 10<sup>6</sup> bytes."
    if told.seconds_error is None:
        return f"{sizes} Time is a first guess until runs have finished on this machine."
    return f"{sizes} For past runs here the time was off by {100 * told.seconds_error:.0f} % (median)."


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
        said.append(f"{fresh} run{'' if fresh == 1 else 's'} queued.")
    if known:
        said.append(
            f"{known} {'was' if known == 1 else 'were'} asked for before and {'is' if known == 1 else 'are'} "
            "not done twice."
        )
    lines = [
        (
            f'<a href="queue?{urlencode({"run": submitted.run_id})}" class="mono">{submitted.run_id}</a>',
            escape(recipe.chain()),
            "queued" if submitted.created else "known",
        )
        for submitted, recipe in list(zip(made, recipes, strict=True))[:12]
    ]
    rest = f'<p class="note">and {len(made) - len(lines)} more</p>' if len(made) > len(lines) else ""
    return (
        f'<div class="panel" id="queued-card"><h3>{" ".join(said)}</h3>'
        f"{table(('Run', 'Chain', ''), lines, numeric_from=2)}{rest}"
        f'<div class="acts">{link("Watch the queue", "queue")} {link("Explore", "./")}</div></div>'
    )


def stage_head(number: int, method: Method) -> str:
    """What stands above a stage's fields."""
    name = f'{number}. {escape(method.name)} <span class="note">{escape(method.kind)}</span>'
    return f'<p class="title">{name}</p><p class="note">{escape(method.summary)} {paper(method.paper)}</p>'


def method_menu() -> str:
    """One small button a method, by kind."""
    kinds: dict[str, list[Method]] = {}
    for method in discover().methods.values():
        kinds.setdefault(method.kind, []).append(method)
    order = sorted(kinds, key=lambda kind: ("prune quantize factorize compensate".find(kind) % 100, kind))
    groups = []
    for kind in order:
        chips = "".join(
            f'<button type="button" class="act" data-send data-method="{escape(method.id)}"'
            f' title="{escape(method.summary)}">{escape(method.name)}</button>'
            for method in kinds[kind]
        )
        groups.append(f'<div class="chips"><span class="note">{escape(kind)}</span>{chips}</div>')
    return f'<div class="menu"><p class="title">Add a stage</p>{"".join(groups)}</div>'


def preset_menu() -> str:
    """One small button a preset."""
    chips = "".join(
        f'<button type="button" class="act" data-send data-preset="{escape(name)}">{escape(name)}</button>'
        for name in PRESETS
    )
    return f'<div class="chips"><span class="note">Start from</span>{chips}</div>'


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    host = jobs.host
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    stages, shape = gr.State([]), gr.State(0)

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            cards = catalogue(host)
            model = gr.Dropdown(
                [(f"{card.title} ({card.id})", card.id) for card in cards], value=cards[0].id, label="Model",
                info="Or write a hub id, or a folder on the server", allow_custom_value=True, elem_id="model",
            )  # fmt: skip
            presets = panel("presets", preset_menu())

            @gr.render(inputs=[stages], triggers=[shape.change])
            def chain(current: list[Template]) -> None:
                if not current:
                    gr.HTML(_NO_STAGES, apply_default_css=False, elem_classes="plain")
                for number, stage in enumerate(current, start=1):
                    _stage_card(number, len(current), stage, stages, shape, quiet)

            menu = panel("methods", method_menu())
            with gr.Accordion("Calibration text", open=False, elem_id="calibration"):
                calibration_text, *calibration = _text_fields(host, "calibration", _CALIBRATION)
            with gr.Accordion("Evaluation text and metrics", open=False, elem_id="evaluation"):
                evaluation_text, *evaluation = _text_fields(host, "evaluation", _EVALUATION)
                metrics = gr.CheckboxGroup(
                    list(discover().metrics), value=list(Evaluation().metrics), label="Metrics",
                    info="Size and sanity are always measured", elem_id="metrics",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320, elem_classes="sticky"):
            problem = panel("problem")
            card = panel("estimate")
            queue = gr.Button("Queue this run", variant="primary", elem_id="queue-button")
            outcome = panel("outcome")
            with gr.Accordion("Recipe as JSON", open=False, elem_id="recipe-json"):
                text = gr.Code(language="json", label="recipe.json", interactive=True, max_lines=28, lines=8)
                with gr.Row():
                    take = gr.Button("Load into the form", size="sm", min_width=90, elem_id="load-json")
                    queue_text = gr.Button("Queue this JSON", size="sm", min_width=90, elem_id="queue-json")

    fields = [model, stages, calibration_text, *calibration, evaluation_text, *evaluation, metrics]
    drawn = [problem, card, queue, text]

    def template(values: Sequence[Any]) -> Template:
        split = 3 + len(_CALIBRATION)
        return template_of(
            values[0],
            values[1],
            (values[2], values[3:split]),
            (values[split], values[split + 1 : -1], values[-1]),
        )

    def look(*values: Any) -> list[Any]:
        try:
            built = template(values)
            recipes = recipes_of(built)
            count = len(recipes)
            label = "Queue this run" if count == 1 else f"Queue {count} runs"
            written = json.dumps(built, indent=1, ensure_ascii=False)
        except UserError as error:
            return [*_refused(error), gr.skip()]
        try:
            history = results.recent_seconds(jobs.database, limit=_PAST_RUNS)
            estimated = plan(recipes, host, history)
        except UserError as error:
            return [*_refused(error), written]
        return ["", estimated, gr.update(value=label, interactive=True), written]

    def fill(told: Mapping[str, Any], version: int) -> list[Any]:
        chosen, chain_, first, second = form_of(told)
        return [chosen, chain_, *first, *second, version + 1]

    def opened(request: gr.Request, version: int) -> list[Any]:
        query = dict(request.query_params)
        try:
            if run := query.get("from"):
                found = results.run(jobs.database, run[:12])
                if found is None:
                    raise UserError(f"there is no run {run[:12]!r} to start from")
                return [*fill(found["recipe"], version), ""]
            if given := query.get("recipe"):
                recipes_of(given)
                return [*fill(json.loads(given), version), ""]
        except UserError as error:
            return [*fill(_START, version), banner(escape(str(error)), "bad")]
        return [*fill(_START, version), ""]

    def preset(event: gr.EventData, version: int) -> list[Any]:
        return [staged(PRESETS[event.preset]), version + 1]

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
    loaded.then(look, fields, drawn, **quiet)
    presets.select(preset, shape, [stages, shape], **quiet)
    menu.select(add, [stages, shape], [stages, shape], **quiet)
    stages.change(look, fields, drawn, trigger_mode="always_last", **quiet)
    for control in (model, calibration_text, *calibration, evaluation_text, *evaluation, metrics):
        control.change(look, fields, drawn, trigger_mode="always_last", **quiet)
    take.click(load_text, [text, shape], [*fields, shape], **quiet).then(look, fields, drawn, **quiet)
    queue.click(enqueue, fields, outcome, api_visibility="private")
    queue_text.click(enqueue_text, text, outcome, api_visibility="private")


def _stage_card(
    number: int, count: int, stage: Template, stages: gr.State, shape: gr.State, quiet: Mapping[str, Any]
) -> None:
    method, key = discover().methods[stage["method"]], stage["key"]
    with gr.Column(elem_classes="stage", elem_id=f"stage-{number}"):
        with gr.Row(equal_height=False, elem_classes="stage-head"):
            gr.HTML(stage_head(number, method), apply_default_css=False, elem_classes="plain", scale=6)
            for label, by, hint, usable in (
                ("↑", -1, "up", number > 1), ("↓", 1, "down", number < count), ("✕", 0, "remove", True),
            ):  # fmt: skip
                change = gr.Button(
                    label, size="sm", scale=0, min_width=34, interactive=usable, elem_classes="tight",
                    elem_id=f"stage-{number}-{hint}",
                )  # fmt: skip
                change.click(
                    lambda current, version, by=by: (moved(current, key, by), version + 1),
                    [stages, shape], [stages, shape], **quiet,
                )  # fmt: skip
        with gr.Row(equal_height=False, elem_classes="fields"):
            inputs = [
                (parameter.name, forms.field(parameter, stage["values"][parameter.name]))
                for parameter in forms.parameters(method.params)
            ]
            only = gr.Textbox(
                stage["only"], label="Only layers", info="A pattern over layer names; empty is all",
                placeholder="*.mlp.*", max_lines=1, min_width=130, interactive=True,
            )  # fmt: skip
        for name, component in (*inputs, ("only", only)):
            # Not `input`: Gradio's text boxes do not send it for a paste or a deletion.
            component.change(
                lambda value, current, name=name: edited(current, key, name, value),
                [component, stages], stages, trigger_mode="always_last", **quiet,
            )  # fmt: skip


def _text_fields(host: Host, name: str, parameters: Sequence[forms.Parameter]) -> list[Any]:
    known = [(f"{text.title} ({text.name})", text.name) for text in texts(host)]
    with gr.Row(equal_height=False):
        chosen = gr.Dropdown(
            known, value=Calibration().text, label="Text", allow_custom_value=True, min_width=260,
            info="Or file:PATH of a .txt or .jsonl on the server", elem_id=f"{name}-text",
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


_START: Template = {"model": CARDS[0].id, "stages": PRESETS["3 bits repaired by EoRA"]}
_NO_STAGES = (
    '<div class="panel empty"><h3>No stages</h3><p>As it stands this measures the dense model itself, '
    "the reference of every plot. Add a stage to compress it.</p></div>"
)
_NOT_ESTIMATED = (
    '<div class="panel"><h3>Before the run</h3><p class="note">Nothing to estimate yet.</p></div>'
)
