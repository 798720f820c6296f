"""The chain of a recipe on the page: presets, the menu of methods, a card a stage."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from backend.registry import Method, discover
from ui import forms
from ui.panel import paper
from ui.recipe_form import Template, edited, moved
from ui.texts import say

PRESETS: dict[str, list[Template]] = {
    say("compress.preset_rounding"): [{"method": "quantize.rtn", "params": {"bits": 4}}],
    say("compress.preset_gptq"): [{"method": "quantize.gptq", "params": {"bits": [2, 3, 4]}}],
    say("compress.preset_group_sizes"): [
        {"method": "quantize.gptq", "params": {"bits": 3, "group_size": [32, 64, 192]}}
    ],
    say("compress.preset_sparsegpt"): [{"method": "prune.sparsegpt", "params": {"pattern": "2:4"}}],
    say("compress.preset_wanda"): [{"method": "prune.wanda", "params": {"sparsity": [0.3, 0.4, 0.5, 0.6]}}],
    say("compress.preset_pattern_repaired"): [
        {"method": "prune.wanda", "params": {"pattern": "2:4"}},
        {"method": "compensate.eora", "params": {"rank": [32, 64, 128]}},
    ],
    say("compress.preset_bits_repaired"): [
        {"method": "quantize.gptq", "params": {"bits": 3}},
        {"method": "compensate.eora", "params": {"rank": 64}},
    ],
    say("compress.preset_three_stages"): [
        {"method": "prune.sparsegpt", "params": {"pattern": "2:4"}},
        {"method": "quantize.gptq", "params": {"bits": 4}},
        {"method": "compensate.eora", "params": {"rank": 32}},
    ],
    say("compress.preset_bits_by_need"): [
        {"method": "allocate.fisher", "params": {"bits": 3, "reach": 2}},
        {"method": "quantize.gptq", "params": {"bits": 3}},
    ],
    say("compress.preset_searched"): [
        {"method": "allocate.evopress", "params": {"over": "sparsity", "sparsity": 0.6, "reach": 2}},
        {"method": "prune.sparsegpt", "params": {"sparsity": 0.6}},
    ],
    say("compress.preset_two_bits"): [
        {"method": "quantize.awq", "params": {"bits": 2, "group_size": 32}},
        {"method": "recover.blocks", "params": {"codes": True, "samples": 64}},
    ],
    say("compress.preset_four_by_four"): [
        {
            "method": "quantize.activations",
            "params": {
                "input_bits": 4,
                "number": "float",
                "per": "channel",
                "exponent_bits": 0,
                "search": 12,
            },
        },
        {"method": "quantize.llm_fp4", "params": {"bits": 4, "group_size": -1}},
    ],
    say("compress.preset_learned_masks"): [
        {"method": "prune.wanda", "params": {"pattern": "2:4"}},
        {"method": "prune.maskllm", "params": {"pattern": "2:4", "samples": 16, "epochs": 2}},
    ],
    say("compress.preset_fewer_blocks"): [{"method": "prune.blocks", "params": {"blocks": [1, 2, 4]}}],
}


def stage_head(number: int, method: Method) -> str:
    """What stands above a stage's fields."""
    name = f'{number}. {escape(method.name)} <span class="note">{escape(method.kind)}</span>'
    return f'<p class="title">{name}</p><p class="note">{escape(method.summary)} {paper(method.paper)}</p>'


def method_menu(only: Sequence[str] = ()) -> str:
    """One small button a method, by kind; `only` of these kinds."""
    kinds: dict[str, list[Method]] = {}
    for method in discover().methods.values():
        if only and method.kind not in only:
            continue
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
    return f'<div class="menu"><p class="title">{say("compress.add_a_stage")}</p>{"".join(groups)}</div>'


def preset_menu() -> str:
    """One small button a preset."""
    chips = "".join(
        f'<button type="button" class="act" data-send data-preset="{escape(name)}">{escape(name)}</button>'
        for name in PRESETS
    )
    return f'<div class="chips"><span class="note">{say("compress.start_from")}</span>{chips}</div>'


def stage_card(
    number: int,
    count: int,
    stage: Template,
    stages: gr.State,
    shape: gr.State,
    quiet: Mapping[str, Any],
    everywhere: bool = True,
) -> None:
    """One stage of the form; not `everywhere`: which layers it covers is not asked."""
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
                stage["only"], label=say("compress.only_layers"), info=say("compress.only_layers_hint"),
                placeholder="*.mlp.*", max_lines=1, min_width=130, interactive=True, visible=everywhere,
            )  # fmt: skip
        for name, component in (*inputs, ("only", only)):
            # Not `input`: Gradio's text boxes do not send it for a paste or a deletion.
            component.change(
                lambda value, current, name=name: edited(current, key, name, value),
                [component, stages], stages, trigger_mode="always_last", **quiet,
            )  # fmt: skip
