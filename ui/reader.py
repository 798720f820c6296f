"""A text token by token under several models: the component, and the card of one token."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ui.answers import lane
from ui.panel import banner, button, card, table, top
from ui.quantities import significant
from ui.texts import say, script

# What stands in braces here, the script fills in.
_WORDS = script(
    loss=say("compare.tint_loss"),
    more=say("compare.tint_more"),
    kl=say("compare.tint_kl"),
    nats=say("compare.nats"),
    dense=say("common.dense"),
    token=say("compare.token_in_numbers", loss="{loss}", dense="{dense}", kl="{kl}", rank="{rank}"),
    dense_token=say("compare.dense_token_in_numbers", loss="{loss}"),
    tokens=say("compare.tokens_of", name="{name}"),
    means=say("compare.mean_loss_and_kl", loss="{loss}", kl="{kl}"),
    mean=say("compare.mean_loss", loss="{loss}"),
    range=say("compare.from_to", low="{low}", high="{high}"),
    tint=say("compare.tint_by"),
)
_SCRIPT = _WORDS + Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def reader(elem_id: str) -> gr.HTML:
    """An empty reader; its value is `payload(...)`, and `select` tells `run` ("" is dense) and `at`."""
    return gr.HTML(
        None, html_template='<div class="reader"></div>', js_on_load=_SCRIPT, elem_id=elem_id,
        elem_classes="plain", apply_default_css=False,
    )  # fmt: skip


def payload(result: Mapping[str, Any], names: Mapping[str, str], order: Sequence[str]) -> str:
    """What the reader shows, as JSON: the result of a reading, the runs' names and their order."""
    return json.dumps({"text": result, "names": dict(names), "order": list(order)}, separators=(",", ":"))


def state_of(task: Mapping[str, Any]) -> str:
    """How far a reading is, as markup; "" when it is finished."""
    if task["status"] == "done":
        cut = task["result"].get("cut")
        return f'<p class="note">{say("compare.cut", count=len(task["result"]["ids"]))}</p>' if cut else ""
    if task["status"] == "failed":
        told = str(task["error"] or "").strip().splitlines() or [say("compare.unknown")]
        return banner(say("compare.not_read", why=escape(told[-1])), "bad")
    if task["status"] == "cancelled":
        return banner(say("compare.reading_stopped"))
    if task["status"] == "queued":
        return banner(say("compare.reading_waits"), "quiet")
    done, total = task["done"] or 0, task["total"] or 1
    return banner(say("compare.reading", done=min(done + 1, total), total=total), "quiet")


def at_of(result: Mapping[str, Any], run: str, at: str) -> int | None:
    """The place that a click names; None when there is no such token or run."""
    if not at.isdecimal() or len(at) > 6 or (run and run not in result["runs"]):
        return None
    return int(at) if int(at) < len(result["ids"]) - 1 else None


def token_card(result: Mapping[str, Any], run: str, name: str, at: int) -> str:
    """Both models' guesses at one place, and the way on from there."""
    pieces, ids, dense = result["pieces"], result["ids"], result["dense"]
    before = "".join(pieces[str(token)] for token in ids[: at + 1])[-160:]
    token = ids[at + 1]
    head = top(
        f"<h3>{say('compare.token', place=at + 2, piece=_piece(pieces[str(token)]))}</h3>",
        button(say("common.close"), "close"),
    )
    told = f'<p class="note">{say("compare.after")} <span class="mono">{escape(before)}</span></p>'
    columns = [(say("common.dense"), dense)] + ([(name, result["runs"][run])] if run else [])
    rows = []
    for place in range(max(len(own["top"][at]) for _, own in columns)):
        line = [str(place + 1)]
        for _, own in columns:
            guess = own["top"][at][place : place + 1]
            line.append(f"{_piece(pieces[str(guess[0][0])])} {100 * guess[0][1]:.1f} %" if guess else "")
        rows.append(line)
    losses = [say("compare.loss"), *(significant(own["loss"][at], 3) for _, own in columns)]
    way = ""
    if run and dense["top"][at]:
        first = _piece(pieces[str(dense["top"][at][0][0])])
        way = f'<p class="acts">{button(say("compare.force"), "force", run)} {first}</p>'
    return card(
        f"{head}{told}{table(['', *(title for title, _ in columns)], [*rows, losses])}{way}", "token-card"
    )


def _piece(piece: str) -> str:
    shown = piece.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") or "∅"
    return f'<span class="mono piece">{escape(shown)}</span>'


def forced(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any], name: str) -> str:
    """What a run wrote by itself from a place on, and what it wrote after the dense model's token."""
    if len(rows) < 2:
        return ""
    free, after = rows
    begin = [token for token in after["settings"]["begin"]]
    token = _piece(result["pieces"].get(str(begin[-1]), ""))
    title = f"<h3>{say('compare.from_token_on', name=escape(name), token=len(begin))}</h3>"
    sides = lane(say("compare.by_itself"), free, None) + lane(
        say("compare.with_the_dense_token"), after, free, say("compare.the_other")
    )
    return card(
        f'{title}<p class="note">{say("compare.forced", token=token)}</p><div class="lanes">{sides}</div>',
        "forced",
    )


def begin_of(result: Mapping[str, Any], at: int) -> tuple[list[int], int]:
    """(the exact tokens before the one that was clicked, the dense model's first guess there)."""
    return list(result["ids"][: at + 1]), int(result["dense"]["top"][at][0][0])
