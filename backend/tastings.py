"""Blind tastings: unlabeled answers of two models to one prompt, votes, and how the models stand by them.

Everybody is asked about pairs in an order of their own, left and right as chance wants. Which pair that is,
and which side is whose, stays here: a page gets the two texts and a ticket that stands for the pair.
"""

import hashlib
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from backend.errors import UserError
from backend.jobs import Jobs, group_ids
from backend.preferences import Ballot, Standing, standings
from store import results, tastings

MOST_RUNS = 4
# More than this in one sitting, and people click on to have it behind them.
MOST_ASKED = 24
LONGEST_TITLE = 120
VOTES = ("left", "right", "tie", "bad")
_OVER = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Asked:
    """A pair as one voter sees it."""

    number: int
    ticket: str
    prompt: str
    left: dict[str, Any]
    right: dict[str, Any]


@dataclass(frozen=True)
class Sitting:
    """How far a voter is; `asked` is None when there is nothing left to ask."""

    asked: Asked | None
    done: int
    total: int


@dataclass(frozen=True)
class Tasting:
    """A tasting with its answers by (prompt, model); the first model, None, is the dense one."""

    id: str
    title: str
    user: str
    model: str
    runs: tuple[str | None, ...]
    prompts: tuple[str, ...]
    answers: dict[tuple[int, int], dict[str, Any]]

    @property
    def is_written(self) -> bool:
        """Whether no answer is still on its way."""
        return all(answer["status"] in _OVER for answer in self.answers.values())

    @property
    def written(self) -> int:
        """How many answers are finished."""
        return sum(answer["status"] in _OVER for answer in self.answers.values())

    @property
    def failures(self) -> list[str]:
        """Why answers are missing."""
        told = (answer["error"] for answer in self.answers.values() if answer["status"] == "failed")
        return list(dict.fromkeys(str(error).strip().splitlines()[-1] for error in told if error))

    def pairs(self) -> list[tuple[int, int, int]]:
        """(prompt, model, model) of every pair; a pair's number is its place."""
        found = combinations(range(len(self.runs)), 2)
        models = list(found)
        return [(prompt, one, other) for prompt in range(len(self.prompts)) for one, other in models]

    def usable(self, prompt: int, model: int) -> bool:
        """Whether this answer can be shown: it was finished, and its run is still there."""
        return self.answers.get((prompt, model), {}).get("status") == "done"


class Tastings:
    """What pages ask about tastings."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs, self._database = jobs, jobs.database

    def make(
        self,
        run_ids: Sequence[str],
        prompts: Sequence[str],
        settings: dict[str, Any],
        title: str = "",
        user: str = "anonymous",
    ) -> str:
        """The id of a new tasting of these runs and the dense model; its answers are queued.

        UserError for runs of several models, and for too many or too few of anything.
        """
        ids = list(dict.fromkeys(run_ids))
        if not 1 <= len(ids) <= MOST_RUNS:
            raise UserError(f"{len(ids)} runs are chosen; taste 1 to {MOST_RUNS} beside the dense model")
        run = results.run(self._database, ids[0])
        if run is None:
            raise UserError(f"there is no run {ids[0][:12]!r}")
        title = title.strip()[:LONGEST_TITLE] or f"{len(prompts)} prompts, {len(ids) + 1} models"
        wanted = [None, *ids]
        set_id = self._jobs.generate_many(
            run["model"], wanted, [(prompt, settings) for prompt in prompts], user
        )
        tasting_id = uuid.uuid4().hex[:12]
        kept = {"model": run["model"], "runs": wanted, "prompts": list(prompts), "set": set_id}
        tastings.create(self._database, tasting_id, title, user, kept)
        return tasting_id

    def newest(self) -> list[dict[str, Any]]:
        """The last tastings and how many votes they have."""
        return tastings.newest(self._database)

    def get(self, tasting_id: str) -> Tasting | None:
        """The tasting as it is now."""
        row = tastings.one(self._database, tasting_id)
        if row is None:
            return None
        kept = row["settings"]
        groups = group_ids(kept["set"], len(kept["prompts"]))
        found = results.generations(self._database, *groups)
        found = found.astype(object).where(found.notna(), None)
        answers = {
            (groups.index(answer["group_id"]), int(answer["position"])): {
                str(key): value for key, value in answer.items()
            }
            for answer in found.to_dict("records")
        }
        return Tasting(
            row["id"], row["title"], row["user"], kept["model"],
            tuple(kept["runs"]), tuple(kept["prompts"]), answers,
        )  # fmt: skip

    def sitting(self, tasting: Tasting, voter: str) -> Sitting:
        """What this person is asked next."""
        given = {vote["pair"] for vote in tastings.votes(self._database, tasting.id, voter)}
        line = _line(tasting, voter)
        todo = [asked for asked in line if asked.number not in given and not _equal(asked)]
        total = sum(not _equal(asked) for asked in line)
        return Sitting(todo[0] if todo else None, total - len(todo), total)

    def vote(self, tasting: Tasting, voter: str, ticket: str, choice: str) -> bool:
        """Whether the vote counts: it does once, for the pair that this person is being asked about.

        Equal answers are not shown. They count as `same` for those whose turn has passed them: who cannot
        see a difference has no preference.
        """
        if choice not in VOTES:
            raise UserError(f"{choice[:20]!r} is no vote; allowed: {', '.join(VOTES)}")
        asked = self.sitting(tasting, voter).asked
        if asked is None or asked.ticket != ticket:
            return False
        counted = self._keep(tasting, voter, asked, choice)
        given = {vote["pair"] for vote in tastings.votes(self._database, tasting.id, voter)}
        for passed in _line(tasting, voter):
            if passed.number in given:
                continue
            if not _equal(passed):
                break
            self._keep(tasting, voter, passed, "same")
        return counted

    def standings(self, tasting: Tasting) -> tuple[list[Standing], list[dict[str, Any]]]:
        """(how the models stand, the votes that this rests on); those on removed runs do not count."""
        places = {answer["id"]: model for (_, model), answer in tasting.answers.items()}
        votes = [
            vote for vote in tastings.votes(self._database, tasting.id)
            if vote["left_id"] in places and vote["right_id"] in places
        ]  # fmt: skip
        ballots = [
            Ballot(vote["voter"], places[vote["left_id"]], places[vote["right_id"]], vote["choice"])
            for vote in votes
        ]
        return standings(ballots, len(tasting.runs)), votes

    def _keep(self, tasting: Tasting, voter: str, asked: Asked, choice: str) -> bool:
        return tastings.vote(
            self._database, tasting.id, voter, asked.number, asked.left["id"], asked.right["id"], choice
        )


def _line(tasting: Tasting, voter: str) -> list[Asked]:
    """The pairs in this person's order: the same at every visit, whatever was voted meanwhile."""
    chance = random.Random(f"{tasting.id}/{voter}")
    order = [(number, chance.random() < 0.5) for number in range(len(tasting.pairs()))]
    chance.shuffle(order)
    pairs, line = tasting.pairs(), []
    for number, turned in order:
        prompt, one, other = pairs[number]
        if not (tasting.usable(prompt, one) and tasting.usable(prompt, other)):
            continue
        sides = (other, one) if turned else (one, other)
        ticket = hashlib.sha256(f"{tasting.id}/{voter}/{number}".encode()).hexdigest()[:16]
        left, right = (tasting.answers[prompt, side] for side in sides)
        line.append(Asked(number, ticket, tasting.prompts[prompt], left, right))
    return line[:MOST_ASKED]


def _equal(asked: Asked) -> bool:
    return (asked.left["text"] or "").strip() == (asked.right["text"] or "").strip()
