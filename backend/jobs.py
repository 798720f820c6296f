"""What pages and the command line ask for: runs and generations are queued, cancelled, moved, removed.

The store says what a run is and how far; the queue engine (`backend.engine`) who works on what, and which
steps are finished. A ticket that is not the run's current one is turned away, so an old workflow never
touches a run that was cancelled, retried or moved. The work itself is `backend.worker`'s.
"""

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dbos import DBOSClient, error
from pydantic import ValidationError

from backend.engine import enqueue_generation, enqueue_run, enqueue_task, prepare_queue, workflow_id
from backend.errors import UserError
from backend.export import formats, packed_path
from backend.facts import facts
from backend.host import Host
from backend.identity import run_digest, with_absolute_paths
from backend.recipe import Recipe, sentence_of
from backend.rules import check_layers
from backend.sampling import Sampling, printable
from backend.shrink import shrunk
from backend.starter import starter_sweep
from backend.story import Story
from backend.sweep import parse_sweep
from backend.text import check_text
from store import files, generations, results, runs, stories, switches, tasks
from store.database import open_database

LONGEST_PROMPT = 20_000
MOST_ANSWERS = 8
MOST_PROMPTS = 40
# Another number makes kept answers of tasks unread.
TASK_FORMAT = 2


@dataclass(frozen=True)
class Submitted:
    """`created` is false when the same recipe was asked for before and is queued, running or done."""

    run_id: str
    created: bool


class Jobs:
    """What pages and the command line ask for. Enqueues and cancels only; the work is the worker's."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.home.mkdir(parents=True, exist_ok=True)
        self.database = open_database(host.database_url, host.journal)

    @cached_property
    def _client(self) -> DBOSClient:
        prepare_queue(self.host, self.database)
        return DBOSClient(system_database_url=self.host.queue_url)

    def close(self) -> None:
        """Give the connections back."""
        if "_client" in self.__dict__:
            self._client.destroy()
        self.database.close()

    def submit(
        self,
        recipe: Recipe,
        *,
        user: str = "anonymous",
        priority: int = 10,
        source: str = "page",
        sweep_id: str | None = None,
    ) -> Submitted:
        """Queue a recipe after checking it against its model and texts; UserError in one sentence."""
        recipe = with_absolute_paths(recipe)
        digest = self._check(recipe)
        try:
            run_id, ticket, created = runs.create_run(
                self.database,
                digest=digest,
                name=recipe.chain(),
                recipe=recipe.to_json(),
                model=recipe.model,
                chain=recipe.chain(),
                user=user,
                priority=priority,
                source=source,
                sweep_id=sweep_id,
                quota=self.host.quota,
            )
        except runs.QuotaReached as reached:
            raise UserError(f"{reached}; wait for one to finish or cancel one") from None
        if created:
            enqueue_run(self._client, runs.Spot(run_id, ticket, priority, ticket))
        return Submitted(run_id, created)

    def submit_sweep(
        self, recipes: Sequence[Recipe], *, user: str = "anonymous", priority: int = 20, source: str = "sweep"
    ) -> tuple[str, list[Submitted]]:
        """(sweep id, what became of each): all recipes are checked before the first is queued."""
        if not recipes:
            raise UserError("the sweep holds no recipe")
        for recipe in recipes:
            self._check(with_absolute_paths(recipe))
        waiting = sum(run.user == user for run in results.queue(self.database))
        if self.host.quota and waiting + len(recipes) > self.host.quota:
            raise UserError(
                f"the sweep has {len(recipes)} runs and {user} has {waiting} queued; "
                f"allowed: {self.host.quota} in all"
            )
        sweep_id = uuid.uuid4().hex[:12]
        shared = {"user": user, "source": source, "sweep_id": sweep_id}
        return sweep_id, [self.submit(recipe, priority=priority, **shared) for recipe in recipes]

    def submit_starter(self) -> list[Submitted]:
        """Queue the starter sweep when there was never a run here and the host wants one."""
        if not self.host.starter or results.counts(self.database):
            return []
        return self.submit_sweep(parse_sweep(starter_sweep()).expand(), source="starter")[1]

    def cancel(self, run_id: str, user: str | None = None) -> str:
        """The status after asking: a queued run is cancelled at once, a running one within two seconds."""
        row = self._own(run_id, user)
        status = runs.request_cancel(self.database, run_id, self.host.stale_after)
        if row["status"] == "queued" and status == "cancelled":
            self._drop(run_id, row["ticket"])
        return status or row["status"]

    def cancel_mine(self, user: str) -> int:
        """Cancel all that this user has queued or running; how many that were."""
        mine = results.runs(self.database, statuses=("queued", "running"))
        ids = [str(run_id) for run_id in mine.loc[mine["user"] == user, "id"]]
        for run_id in ids:
            self.cancel(run_id)
        return len(ids)

    def retry(self, run_id: str, user: str | None = None) -> bool:
        """Queue a failed or cancelled run again; finished blocks and a finished artifact are taken up."""
        row = self._own(run_id, user)
        ticket = runs.retry_run(self.database, run_id)
        if ticket is not None:
            enqueue_run(self._client, runs.Spot(run_id, ticket, row["priority"], ticket))
        return ticket is not None

    def retry_mine(self, user: str) -> int:
        """Queue all failed runs of this user again; how many that were."""
        failed = results.runs(self.database, statuses=("failed",))
        # The one that was asked for first is tried first again.
        mine = failed[failed["user"] == user].sort_values("created", kind="stable")["id"]
        return sum(self.retry(str(run_id)) for run_id in mine)

    def set_priority(self, run_id: str, priority: int, user: str | None = None) -> bool:
        """Move a queued run: lower runs first."""
        if not 1 <= priority <= 1000:
            raise UserError(f"priority {priority} is not allowed; take 1 (first) to 1000 (last)")
        row = self._own(run_id, user)
        spot = runs.set_priority(self.database, run_id, priority)
        if spot is not None:
            self._move(row["ticket"], spot)
        return spot is not None

    def move(self, run_id: str, by: int, user: str | None = None) -> None:
        """Let a queued run change places with its neighbour: -1 is earlier, 1 later; at the end it stays."""
        row = self._own(run_id, user)
        line = [run.id for run in results.queue(self.database) if run.status == "queued"]
        if run_id not in line:
            raise UserError(f"run {run_id} is not waiting any more")
        place = line.index(run_id) + by
        if not 0 <= place < len(line):
            return
        other = results.run(self.database, line[place])
        pair = (run_id, line[place]) if by > 0 else (line[place], run_id)
        spots = runs.swap(self.database, *pair)
        if other is None or spots is None:
            raise UserError(f"run {run_id} or its neighbour is not waiting any more")
        tickets = {run_id: row["ticket"], other["id"]: other["ticket"]}
        for spot in spots:
            self._move(tickets[spot.run_id], spot)

    def move_to_front(self, run_id: str, user: str | None = None) -> None:
        """Let a queued run be the next one."""
        row = self._own(run_id, user)
        spot = runs.move_to_front(self.database, run_id)
        if spot is None:
            raise UserError(f"run {run_id} is not waiting any more")
        self._move(row["ticket"], spot)

    def pause(self, user: str) -> bool:
        """Let no worker start another run; what runs goes on. Whether it was not paused before.

        Anybody may: the queue belongs to all who may log in.
        """
        return switches.turn_on(self.database, switches.PAUSED, {"by": user, "since": time.time()})

    def resume(self) -> bool:
        """Let the workers go on; whether the queue was paused."""
        return switches.turn_off(self.database, switches.PAUSED)

    def remove(self, run_id: str, user: str | None = None) -> None:
        """Take a run, its numbers and its artifact away for good."""
        row = self._own(run_id, user)
        if not runs.remove_run(self.database, run_id):
            raise UserError(f"run {run_id} is running; cancel it before removing it")
        if row["status"] == "queued":
            self._drop(run_id, row["ticket"])
        files.remove(self.host.artifacts, row["digest"])
        shutil.rmtree(self.host.runs / row["digest"], ignore_errors=True)
        for form in formats():
            shutil.rmtree(packed_path(self.host, run_id, form).parent, ignore_errors=True)

    def generate(
        self,
        model: str,
        run_ids: Sequence[str | None] | None,
        prompt: str,
        settings: dict[str, Any],
        user: str = "anonymous",
    ) -> str:
        """The id of a new group of answers, one for each run; None is the dense model."""
        wanted: list[str | None] = [None] if run_ids is None else list(run_ids)
        return group_ids(self.generate_many(model, wanted, [(prompt, settings)], user), 1)[0]

    def generate_many(
        self,
        model: str,
        run_ids: Sequence[str | None],
        questions: Sequence[tuple[str, Mapping[str, Any]]],
        user: str = "anonymous",
    ) -> str:
        """The id of a new set of groups (`group_ids`), one for each question: a prompt and its settings."""
        if not 1 <= len(run_ids) <= MOST_ANSWERS:
            raise UserError(f"{len(run_ids)} answers are asked for; take 1 to {MOST_ANSWERS}")
        if not 1 <= len(questions) <= MOST_PROMPTS:
            raise UserError(f"{len(questions)} prompts are asked for; take 1 to {MOST_PROMPTS}")
        asked = [(printable(prompt), _sampling(settings)) for prompt, settings in questions]
        for prompt, sampling in asked:
            if len(prompt) > LONGEST_PROMPT or not (prompt.strip() or sampling.begin):
                raise UserError(f"the prompt has {len(prompt)} characters; write 1 to {LONGEST_PROMPT}")
        facts(model, self.host)
        for run_id in run_ids:
            row = None if run_id is None else self._own(run_id, None)
            if row is not None and not row["artifact"]:
                raise UserError(f"run {run_id} has no artifact yet; wait until it is compressed")
            if row is not None and row["model"] != model:
                raise UserError(f"run {run_id} is of model {row['model']}; allowed: runs of {model}")
        set_id = uuid.uuid4().hex[:12]
        answers = [
            generations.create(
                self.database,
                group_id=group_id,
                model=model,
                run_ids=run_ids,
                prompt=prompt,
                settings=sampling.model_dump(mode="json", exclude_defaults=True),
                user=user,
            )
            for group_id, (prompt, sampling) in zip(group_ids(set_id, len(asked)), asked, strict=True)
        ]
        # Model by model: each is opened once.
        for column in zip(*answers, strict=True):
            for generation_id in column:
                enqueue_generation(self._client, generation_id)
        return set_id

    def ask(
        self,
        kind: str,
        model: str,
        arguments: Mapping[str, Any],
        user: str = "anonymous",
        anew: bool = False,
    ) -> str:
        """The id of a task that answers this question; asked again, it is the same task and done once.

        A failed or cancelled one starts anew, and with `anew` one that is done as well. UserError for a model
        that cannot be used.
        """
        task_id = self.task_id(kind, model, arguments)
        attempt = tasks.ask(
            self.database, task_id=task_id, kind=kind, model=model, arguments=arguments, user=user, anew=anew
        )
        if attempt is not None:
            enqueue_task(self._client, task_id, kind, attempt)
        return task_id

    def task_id(self, kind: str, model: str, arguments: Mapping[str, Any]) -> str:
        """The name of the task that answers this question, whether anybody asked it or not."""
        known = [kind, facts(model, self.host).fingerprint, dict(arguments), TASK_FORMAT]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def cancel_task(self, task_id: str) -> str | None:
        """The status after asking; None when there is no such task."""
        return tasks.cancel(self.database, task_id)

    def cancel_generation(self, group_id: str) -> None:
        """Stop a group: what has been written so far stays."""
        for generation_id in generations.cancel(self.database, group_id):
            self._client.cancel_workflow(generation_id)

    def save_story(self, story: Story, user: str, story_id: str | None = None) -> str:
        """The id of a new story, or of the one that it takes the place of."""
        told = story.model_dump(mode="json")
        written = {"title": story.title.strip() or "Untitled", "summary": story.summary}
        written["views"] = json.dumps(told["views"], ensure_ascii=False)
        if story_id is None:
            story_id = uuid.uuid4().hex[:12]
            stories.create(self.database, story_id=story_id, user=user, **written)
        else:
            self._own_story(story_id, user)
            stories.rewrite(self.database, story_id, **written)
        return story_id

    def remove_story(self, story_id: str, user: str) -> None:
        """Take a story away for good."""
        self._own_story(story_id, user)
        stories.remove(self.database, story_id)

    def _own_story(self, story_id: str, user: str) -> None:
        row = results.story(self.database, story_id)
        if row is None:
            raise UserError(f"there is no story {story_id[:40]!r}")
        if self.host.auth and user != row["user"]:
            raise UserError(f"the story {row['title']!r} belongs to {row['user']}, only they may change it")

    def _check(self, recipe: Recipe) -> str:
        model = facts(recipe.model, self.host)
        layout = shrunk(model, recipe.stages)
        check_layers(recipe, layout.layers, layout.positions, layout.tables)
        for text in (*recipe.texts, recipe.evaluation.text):
            check_text(text, self.host)
        return run_digest(recipe, self.host)

    def _own(self, run_id: str, user: str | None) -> dict[str, Any]:
        """The run's row. Without a log-in everybody may do everything; no user is the operator."""
        row = results.run(self.database, run_id)
        if row is None:
            raise UserError(f"there is no run {run_id[:40]!r}")
        if self.host.auth and user is not None and user != row["user"]:
            raise UserError(f"run {run_id} belongs to {row['user']}, only they may change it")
        return row

    def _move(self, old_ticket: int, spot: runs.Spot) -> None:
        if spot.ticket != old_ticket:
            self._drop(spot.run_id, old_ticket)
            enqueue_run(self._client, spot)

    def _drop(self, run_id: str, ticket: int) -> None:
        """Tidy the engine's queue; the store's ticket already decides."""
        with suppress(error.DBOSNonExistentWorkflowError):
            self._client.cancel_workflow(workflow_id(run_id, ticket))


def group_ids(set_id: str, prompts: int) -> list[str]:
    """The groups of a set of answers, one for each prompt."""
    return [f"{set_id}.{number}" for number in range(prompts)]


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    try:
        return Sampling.model_validate(dict(settings))
    except ValidationError as problem:
        raise UserError(sentence_of(problem, "settings", Sampling)) from None
