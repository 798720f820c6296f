"""Many prompts through several models: a table of answers, and the sets of prompts that the app brings."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ui.answers import parts_at
from ui.charts import DENSE
from ui.panel import STATES, badge, card, table
from ui.texts import say

_SHOWN = 90
SETS: dict[str, tuple[str, ...]] = {
    say("compare.facts"): (
        "The capital of Australia is",
        "Water boils at a temperature of",
        "The largest planet of the solar system is",
        "The author of Romeo and Juliet is",
        "The chemical symbol of gold is",
    ),
    say("compare.arithmetic"): (
        "12 + 30 =",
        "7 times 8 is",
        "Half of 50 is",
        "If I have 5 apples and eat 2, I have",
        "The next number in 2, 4, 8, 16 is",
    ),
    say("compare.french"): (
        "La capitale de l'Italie est",
        "Les quatre saisons de l'année sont",
        "Bonjour, je m'appelle Marie et",
        "Traduisez en anglais : le chat dort. Réponse :",
    ),
    say("compare.code"): (
        "def is_prime(n):",
        "# Sort a list of numbers in Python\n",
        "for i in range(10):",
        "SELECT name FROM users WHERE",
    ),
    say("compare.instructions"): (
        "Write one sentence about the sea.",
        "List three colors:",
        "Explain in one sentence what a bridge is for.",
        "Give a synonym of happy:",
    ),
}


def lines_of(text: str) -> list[str]:
    """One prompt a line: empty lines and repetitions are left out, `\\n` in a line is a line break."""
    found = (line.strip().replace("\\n", "\n") for line in text.splitlines())
    return list(dict.fromkeys(line for line in found if line.strip()))


def text_of(prompts: Sequence[str]) -> str:
    """The inverse of `lines_of`."""
    return "\n".join(prompt.replace("\n", "\\n") for prompt in prompts)


def matrix(groups: Sequence[Sequence[Mapping[str, Any]]], names: Mapping[str, str], chosen: str = "") -> str:
    """A row a prompt, a column a model; a cell opens its group."""
    groups = [group for group in groups if group]
    if not groups:
        return ""
    first = groups[0]
    head = ["", *(names.get(row["run_id"], row["run_id"]) if row["run_id"] else DENSE for row in first)]
    over = sum(row["status"] not in ("queued", "running") for group in groups for row in group)
    total = sum(map(len, groups))
    lines = []
    for group in groups:
        reference = group[0] if group[0]["run_id"] is None else None
        cells = [_cell(row, reference if row is not group[0] else None, chosen) for row in group]
        lines.append([f'<span class="mono">{escape(group[0]["prompt"][:_SHOWN])}</span>', *cells])
    told = (
        say("compare.answers_so_far", over=over, total=total)
        if over < total
        else say("compare.answers", total=total)
    )
    if over == total and first[0]["run_id"] is None and len(first) > 1:
        same = sum(_is_same(row, group[0]) for group in groups for row in group[1:])
        told += say("compare.same_answers", same=same, total=total - len(groups))
    return card(
        f'<p class="note" id="matrix-told">{told}.</p>{table(head, lines, numeric_from=99)}', "matrix"
    )


def _cell(row: Mapping[str, Any], reference: Mapping[str, Any] | None, chosen: str) -> str:
    text = (row["text"] or "").strip()
    shown = escape(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")
    if row["status"] in ("queued", "running"):
        note = badge(say("compare.waiting") if row["status"] == "queued" else say("compare.writing"), "info")
    elif row["status"] != "done":
        note = badge(STATES[row["status"]], "bad" if row["status"] == "failed" else "warn")
    elif reference is None or reference["status"] != "done":
        note = ""
    elif _is_same(row, reference):
        note = badge(say("compare.same_as_dense"), "good")
    else:
        note = badge(say("compare.from_token", token=parts_at(row, reference) + 1), "warn")
    pressed = "true" if row["group_id"] == chosen else "false"
    return (
        f'<button type="button" class="cell" data-send data-action="cell" '
        f'data-run="{escape(row["group_id"])}" aria-pressed="{pressed}">{note}<span>{shown}</span></button>'
    )


def _is_same(row: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    return row["status"] == reference["status"] == "done" and row["tokens"] == reference["tokens"]
