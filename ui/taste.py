"""A blind tasting as markup: the two answers, the invitation, and how the models stand."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import urlencode

import segno

from backend.preferences import FEW_VOTERS, Standing
from backend.tastings import Asked, Sitting, Tasting
from store import results
from store.database import Database
from ui.charts import Tasted, taste, taste_colour
from ui.panel import banner, button, card, code, link, table, top
from ui.quantities import MISSING, age, is_number, significant
from ui.texts import many, say

_VOTES = (
    ("left", say("tasting.a_is_better")),
    ("right", say("tasting.b_is_better")),
    ("tie", say("tasting.no_difference")),
    ("bad", say("tasting.both_are_bad")),
)


def ballot(tasting: Tasting, sitting: Sitting) -> str:
    """What a voter sees: nothing in it tells which answer is whose."""
    head = top(f"<h3>{escape(tasting.title)}</h3>", button(say("tasting.results_so_far"), "results"))
    if not tasting.is_written:
        total = len(tasting.answers)
        return card(
            f"{head}<p>{say('tasting.answers_are_written', written=tasting.written, total=total)}</p>"
            f"{_bar(tasting.written, total)}",
            "ballot",
        )
    if not sitting.total:
        return card(f"{head}<p>{_nothing(tasting)}</p>", "ballot")
    if sitting.asked is None:
        thanks = say("tasting.thanks")
        return card(
            f"{head}<p>{thanks}</p><p>{button(say('tasting.show_the_results'), 'results')}</p>", "ballot"
        )
    told = f'<p class="note">{say("tasting.pair", done=sitting.done + 1, total=sitting.total)}</p>'
    return card(f"{head}{told}{_bar(sitting.done, sitting.total)}{_pair(sitting.asked)}", "ballot", "tasting")


def _pair(asked: Asked) -> str:
    sides = "".join(
        f'<div class="lane"><h3>{say("tasting.answer", name=name)}</h3>'
        f'<div class="text">{escape(answer["text"] or "")}</div></div>'
        for name, answer in (("A", asked.left), ("B", asked.right))
    )
    votes = "".join(
        f'<button type="button" class="act vote" data-send data-action="vote" data-choice="{choice}" '
        f'data-ticket="{asked.ticket}" data-key="{key}"><kbd>{key}</kbd>{label}</button>'
        for key, (choice, label) in enumerate(_VOTES, start=1)
    )
    return (
        f'<p class="asked">{escape(asked.prompt)}</p><div class="lanes">{sides}</div>'
        f'<div class="votes" role="group" aria-label="{escape(say("tasting.your_vote"))}">{votes}</div>'
    )


def _nothing(tasting: Tasting) -> str:
    if tasting.failures:
        return say("tasting.no_answers", why=escape(tasting.failures[0]))
    if not tasting.answers or all(answer["status"] != "done" for answer in tasting.answers.values()):
        return say("tasting.answers_are_gone")
    return say("tasting.all_the_same")


def _bar(done: int, total: int) -> str:
    return f'<div class="bar"><i style="width:{100 * done / max(1, total):.0f}%"></i></div>'


def invitation(url: str) -> str:
    """The link that others join by, and its QR code."""
    drawn = segno.make(url, error="m", micro=False).svg_inline(
        scale=4, border=3, light="#ffffff", omitsize=True
    )
    return card(
        f"<h3>{say('tasting.invite_others')}</h3><p>{say('tasting.invitation')}</p>"
        f'{code(url, "invitation")}'
        f'<div class="qr" role="img" aria-label="{escape(say("tasting.qr_code"))}">{drawn}</div>',
        "invite",
    )  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """One run of a tasting: how people like it and how far it is from dense."""

    number: int
    run_id: str
    name: str
    kl: float | None
    kl_error: float
    standing: Standing


def verdicts(database: Database, tasting: Tasting, found: Sequence[Standing]) -> list[Verdict]:
    """The runs that are still there, the nearest to dense first, then those without a KL."""
    points = results.points(database)
    points = points[points["id"].isin([run for run in tasting.runs if run])]
    if "divergence.kl" in points:
        points = points[points["divergence.kl"].notna()]
        # One protocol for all, or the distances do not compare: the one that most of the runs have.
        common = points.groupby("protocol")["id"].nunique()
        points = points[points["protocol"] == common.idxmax()] if len(common) else points
    else:
        points = points.iloc[:0]
    kl = {row["id"]: row for row in points.to_dict("records")}
    names = {run["id"]: run["chain"] for run in results.runs(
        database, ids=[run for run in tasting.runs if run]
    ).to_dict("records")}  # fmt: skip
    rows = []
    for number, run_id in enumerate(tasting.runs):
        if run_id is None or run_id not in names:
            continue
        near = kl.get(run_id, {})
        error = near.get("divergence.kl.stderr")
        rows.append(
            Verdict(
                number, run_id, names[run_id], near.get("divergence.kl"), error if is_number(error) else 0.0,
                found[number],
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row.kl is None, row.kl or 0.0))


def answer_to_the_question(rows: Sequence[Verdict], votes: int) -> str:
    """Where people start to notice, in a sentence."""
    told = many("tasting.votes", votes)
    noticed = [row for row in rows if row.kl is not None and row.standing.high < 0]
    if noticed:
        first = noticed[0]
        unnoticed = [row.kl for row in rows if row.kl is not None and row.kl < (first.kl or 0.0)]
        beside = say("tasting.still_passes", kl=significant(max(unnoticed), 3)) if unnoticed else ""
        return say("tasting.noticed", kl=significant(first.kl, 3), name=first.name, beside=beside, told=told)
    if any(row.standing.high < 0 for row in rows):
        return say("tasting.noticed_without_kl", told=told)
    return say("tasting.not_noticed", told=told)


def outcome(tasting: Tasting, rows: Sequence[Verdict], votes: Sequence[Mapping[str, Any]]) -> str:
    """The results in words and numbers."""
    people = len({vote["voter"] for vote in votes})
    cast = [vote for vote in votes if vote["choice"] != "same"]
    bad = sum(vote["choice"] == "bad" for vote in votes)
    same = len(votes) - len(cast)
    head = top(f"<h3>{escape(tasting.title)}</h3>", button(say("tasting.back_to_the_vote"), "ballot"))
    sentence = f'<p class="verdict" id="verdict">{escape(answer_to_the_question(rows, len(cast)))}</p>'
    lines = []
    for row in rows:
        standing = row.standing
        named = (
            f'<i class="swatch" style="background:{taste_colour(rows.index(row))}"></i>'
            f'<a href="./?{urlencode({"run": row.run_id})}">{escape(row.name)}</a>'
        )
        lines.append(
            [
                named,
                significant(row.kl, 3),
                f"{standing.strength:+.2f} "
                '<span class="subtle">'
                f"{say('tasting.from_to', low=standing.low, high=standing.high)}</span>",
                _chance(standing.strength),
                f"{standing.won} / {standing.tied} / {standing.lost}",
                str(standing.bad),
            ]
        )
    head_row = (
        "",
        say("tasting.kl"),
        say("tasting.score"),
        say("tasting.preferred_to_dense"),
        say("tasting.won_tied_lost"),
        say("tasting.both_bad"),
    )
    gone = sum(run is not None for run in tasting.runs) - len(rows)
    notes = [
        many("tasting.voters", people, votes=len(cast), bad=bad, same=same),
        say("tasting.method", people=FEW_VOTERS),
    ]
    if gone:
        notes.append(many("tasting.removed", gone))
    told = "".join(f'<p class="note">{note}</p>' for note in notes)
    return card(f"{head}{sentence}{table(head_row, lines)}{told}", "outcome-card")


def _chance(strength: float) -> str:
    return f"{100 / (1 + math.exp(-strength)):.0f} %"


def figure(rows: Sequence[Verdict]) -> str | None:
    """The plot as JSON; None when no distance from dense is known."""
    placed = [
        Tasted(
            row.name, row.kl, row.kl_error, row.standing.strength, row.standing.low, row.standing.high,
            say("tasting.hover", kl=significant(row.kl, 3), chance=_chance(row.standing.strength)),
        )
        for row in rows if row.kl is not None
    ]  # fmt: skip
    return json.dumps(taste(placed), separators=(",", ":")) if placed else None


def listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tastings there are."""
    if not rows:
        return ""
    lines = [
        [
            f'<a href="?{urlencode({"id": row["id"]})}">{escape(row["title"])}</a>',
            age(row["created"]),
            say("tasting.people_and_votes", people=row["voters"], votes=row["votes"])
            if row["votes"]
            else MISSING,
            link(say("tasting.results"), "?" + urlencode({"id": row["id"], "results": 1})),
        ]
        for row in rows
    ]
    return card(
        f"<h3>{say('tasting.tastings')}</h3>"
        f"{table(('', say('tasting.made'), say('tasting.votes_column'), ''), lines)}",
        "tastings",
    )


def unknown(tasting_id: str) -> str:
    """What stands where there is no such tasting."""
    return banner(say("tasting.no_such_tasting", tasting_id=escape(repr(tasting_id[:12]))), "bad")
