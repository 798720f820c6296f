"""Answers side by side, and what differs between them."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Any

from backend.jobs import Jobs
from store import results
from store.database import Database
from ui.charts import DENSE
from ui.pages.queue import worker_notice
from ui.panel import badge, top
from ui.texts import say

_OVER = ("done", "failed", "cancelled")
# A word with the space before it: so that taking all of them together gives the text again.
_WORD = re.compile(r"\s*\S+|\s+$")


def divergence(
    text: str, tokens: Sequence[Sequence[Any]], reference: str, reference_tokens: Sequence[Sequence[Any]]
) -> tuple[int, int] | None:
    """Where in the text the first token stands that the reference does not have, and its length.

    None if the answers are equal. Goes by characters when an answer's pieces do not spell its text.
    """
    pieces = [str(piece) for _, piece in tokens]
    if tokens and reference_tokens and "".join(pieces).startswith(text):
        ids, other = [token for token, _ in tokens], [token for token, _ in reference_tokens]
        if ids == other:
            return None
        at = next((n for n, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), -1)
        if at < 0:
            at = min(len(ids), len(other))
        start = len("".join(pieces[:at]))
        return min(start, len(text)), len(pieces[at]) if at < len(pieces) else 0
    if text == reference:
        return None
    pairs = enumerate(zip(text, reference, strict=False))
    return next((at for at, (mine, other) in pairs if mine != other), min(len(text), len(reference))), 1


def lane(
    title: str,
    answer: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
    beside: str = DENSE,
    words: bool = False,
) -> str:
    """One answer; what differs from the reference is tinted from the first differing token on.

    With `words`, the words that it has and the reference has not are marked instead, and those it lacks.
    """
    text, status = answer["text"] or "", answer["status"]
    writing = status in ("queued", "running")
    told, body = "", escape(text)
    if reference is not None and text and (reference["text"] or "") and not writing:
        apart = divergence(text, answer["tokens"], reference["text"] or "", reference["tokens"])
        if apart is None:
            told = badge(say("common.word_for_word_the_same"), "good")
        elif reference["status"] == "done":
            start, length = apart
            length = min(length, len(text) - start)
            body = (
                f'{escape(text[:start])}<mark class="first">{escape(text[start : start + length])}</mark>'
                f'<span class="after">{escape(text[start + length :])}</span>'
            )
            if words:
                body = word_differences(text, reference["text"] or "")
            told = badge(
                say("compare.parts_at", beside=beside, token=parts_at(answer, reference) + 1), "warn"
            )
    states = {
        "queued": badge(say("compare.waiting")),
        "running": badge(say("compare.writing"), "info"),
        "failed": badge(say("common.failed"), "bad"),
    }
    state = states.get(status, badge(say("common.cancelled"), "warn") if status == "cancelled" else told)
    failure = (
        f'<p class="bad-ink">{escape(str(answer["error"]).strip().splitlines()[-1])}</p>'
        if answer["error"]
        else ""
    )
    caret = ' caret"' if status == "running" else '"'
    head = top(f"<h3>{escape(title)}</h3>", state)
    return (
        f'<div class="lane" data-status="{status}">{head}{failure}<div class="text{caret}>{body}</div></div>'
    )


def word_differences(text: str, reference: str) -> str:
    """Markup of a text with the words put in and left out against the reference."""
    mine, theirs = _WORD.findall(text), _WORD.findall(reference)
    shown = []
    for kind, a, b, c, d in SequenceMatcher(None, theirs, mine, autojunk=False).get_opcodes():
        if kind == "equal":
            shown.append(escape("".join(mine[c:d])))
            continue
        if a < b:
            shown.append(f"<del>{escape(''.join(theirs[a:b]))}</del>")
        if c < d:
            shown.append(f"<ins>{escape(''.join(mine[c:d]))}</ins>")
    return "".join(shown)


def parts_at(answer: Mapping[str, Any], reference: Mapping[str, Any]) -> int:
    """How many tokens an answer shares with the reference from the beginning on."""
    count = 0
    for mine, theirs in zip(answer["tokens"], reference["tokens"], strict=False):
        if mine[0] != theirs[0]:
            break
        count += 1
    return count


def answers_of(database: Database, *group_ids: str) -> list[dict[str, Any]]:
    """The answers of groups; what is missing is None."""
    found = results.generations(database, *group_ids)
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def is_over(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether none of these answers is still on its way."""
    return all(row["status"] in _OVER for row in rows)


def lanes(jobs: Jobs, group_id: str, words: bool = False) -> tuple[str, bool]:
    """All answers of a group side by side, and whether all of them are finished."""
    rows = answers_of(jobs.database, group_id) if group_id else []
    if not rows:
        return "", True
    names = {run["id"]: run["chain"] for run in results.runs(
        jobs.database, ids=[row["run_id"] for row in rows if row["run_id"]]
    ).to_dict("records")}  # fmt: skip
    over = is_over(rows)
    notice = ""
    if not over and not results.workers(jobs.database, jobs.host.stale_after)["alive"].any():
        notice = worker_notice(jobs, ())
    body = "".join(
        lane(
            names.get(row["run_id"], DENSE) if row["run_id"] else DENSE,
            row,
            rows[0] if number else None,
            words=words,
        )
        for number, row in enumerate(rows)
    )
    prompt = (
        f'<p class="note">{say("compare.prompt_was")} '
        f'<span class="mono">{escape(rows[0]["prompt"][:400])}</span></p>'
    )
    return f'{notice}{prompt}<div class="lanes">{body}</div>', over
