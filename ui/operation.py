"""Surgery on one linear, as its page shows it: the map of what cells cost, one cell, and what came out."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from backend.budget import Budget
from backend.facts import ModelFacts
from backend.levels import choice_of
from backend.recipe import parse_recipe
from store import results
from store.database import Database
from ui.answers import divergence
from ui.charts import Figure, heat_map
from ui.layer_map import in_order
from ui.panel import STATES, badge, banner, button, card, figures, table, top
from ui.quantities import byte_size, significant, with_error
from ui.texts import say


def cost_map(layout: ModelFacts, found: Budget | None, level: int, chosen: str) -> Figure:
    """Predicted KL when only one cell gets a level; without predictions the sizes of the linears."""
    rows, hovers = [], {}
    for name, (outputs, inputs) in layout.layers.items():
        block, projection = layout.family.place(name)
        cost = None
        told = say("surgery.weights", outputs=outputs, inputs=inputs)
        if found is not None:
            at = found.layers.index(name)
            cost = found.losses[at][level]
            told = say(
                "surgery.predicted_and_error",
                cost=significant(cost, 3),
                error=significant(found.errors[at][level], 3),
            )
        rows.append(
            {"layer": name, "block": block, "projection": projection, "cost": cost, "size": outputs * inputs}
        )
        hovers[name] = f"<b>{escape(name)}</b><br>{told}<br>{say('surgery.click_to_operate')}"
    cells = in_order(pd.DataFrame(rows)).set_index("layer")
    if found is None:
        return heat_map(cells, "size", say("surgery.map_of_sizes"), hovers, False, chosen)
    title = say("surgery.map_of_costs", level=escape(found.levels[level].name))
    return heat_map(cells, "cost", title, hovers, False, chosen, log=True)


def cell(layout: ModelFacts, found: Budget | None, layer: str) -> str:
    """The chosen linear: its shape, and what each level is predicted to cost there."""
    if layer not in layout.layers:
        return card(
            f"<h3>{say('layers.one_linear')}</h3><p>{say('surgery.choose_a_cell')}</p>",
            "cell-card",
        )
    outputs, inputs = layout.layers[layer]
    body = (
        f"<h3 class='mono'>{escape(layer)}</h3><p class='note'>"
        f"{say('surgery.shape', outputs=outputs, inputs=inputs)}</p>"
    )
    if found is not None:
        at = found.layers.index(layer)
        order = sorted(range(len(found.levels)), key=lambda number: -found.bytes[at][number])
        lines = [
            (
                escape(found.levels[number].name), byte_size(found.bytes[at][number]),
                significant(found.errors[at][number], 3), significant(found.losses[at][number], 3),
            )
            for number in order
        ]  # fmt: skip
        head = (say("budget.level"), say("surgery.bytes"), say("surgery.layer_error"))
        body += table((*head, say("surgery.predicted_kl")), lines)
    return card(body, "cell-card")


def predicted(found: Budget | None, layer: str, stages: Sequence[dict[str, Any]]) -> float | None:
    """What the sensitivities say of an operation, where its chain is one of the levels."""
    if found is None or layer not in found.layers:
        return None
    recipe = parse_recipe({"model": found.model, "stages": list(stages), "calibration": {"order": "dense"}})
    choice = choice_of(recipe, found.levels, [layer])
    return None if choice is None else found.losses[found.layers.index(layer)][choice[layer]]


def outcome(task: dict[str, Any] | None, found: Budget | None) -> str:
    """One operation: how far it is, why it failed, or what it did to the model."""
    if task is None:
        return ""
    name = f"<h3>{escape(task['arguments']['layer'])}</h3>"
    if task["status"] in ("queued", "running"):
        told = task["stage"] or say("budget.waits_for_a_worker")
        return card(f"{top(name, badge(told, 'info'))}<p class='note'>{say('surgery.soon')}</p>", "operation")
    if task["status"] != "done":
        why = str(task["error"] or say("common.cancelled")).strip().splitlines()[-1]
        return banner(say("surgery.not_done", status=STATES[task["status"]], why=escape(why)), "bad")
    made = task["result"]
    guess = predicted(found, made["layer"], task["arguments"]["stages"])
    numbers = {
        say("surgery.kl_from_dense"): with_error("divergence.kl", made["kl"], made["kl_stderr"]),
        say("surgery.predicted"): significant(guess, 3) if guess is not None else "",
        say("surgery.perplexity", dense=significant(made["dense_perplexity"])): significant(
            made["perplexity"]
        ),
        say("surgery.layer_error"): significant(made["error"], 3),
        say("surgery.of_its_bytes"): f"{100 * made['bytes'] / made['dense_bytes']:.0f} %",
    }
    answers = "".join(_answer(answer) for answer in made["answers"])
    heading = f"<h3>{escape(made['chain'])}</h3>"
    note = say("surgery.measured_on", tokens=made["tokens"], seconds=made["seconds"])
    return card(
        f"{top(heading, button(say('surgery.again'), 'operate'))}"
        f"{figures({label: value for label, value in numbers.items() if value})}"
        f"<p class='note'>{note}</p>{answers}",
        "operation",
    )


def _answer(answer: dict[str, str]) -> str:
    dense, changed = answer["dense"], answer["changed"]
    prompt = f"<span class='note mono'>{escape(answer['prompt'])}</span>"
    apart = divergence(changed, [], dense, [])
    if apart is None:
        told, body = badge(say("common.word_for_word_the_same"), "good"), escape(changed)
    else:
        told = badge(say("surgery.parts_from_dense"), "warn")
        body = f'{escape(changed[: apart[0]])}<span class="after">{escape(changed[apart[0] :])}</span>'
    return (
        f"<div class='lane said'>{top(prompt, told)}"
        f"<div class='text'>{body}</div><details><summary class='note'>{say('common.dense')}</summary>"
        f"<div class='text'>{escape(dense)}</div></details></div>"
    )


def history(database: Database, task_ids: Sequence[str], found: Budget | None) -> str:
    """The operations of this visit that have ended, the last one first."""
    lines = []
    for task_id in reversed(task_ids):
        task = results.task(database, task_id)
        if task is None or task["status"] != "done":
            continue
        made = task["result"]
        guess = predicted(found, made["layer"], task["arguments"]["stages"])
        lines.append(
            (
                escape(made["chain"]), with_error("divergence.kl", made["kl"], made["kl_stderr"]),
                significant(guess, 3) if guess is not None else "", byte_size(made["bytes"]),
            )
        )  # fmt: skip
    if len(lines) < 2:
        return ""
    return card(
        f"<h3>{say('surgery.operations')}</h3>"
        f"{table(('', say('surgery.kl'), say('surgery.predicted'), say('surgery.bytes')), lines)}",
        "operations",
    )
