"""The worker: takes runs and generations off the queue, has them computed, and stores what came of them.

Nothing is done twice: a killed worker's finished steps stay finished, and another takes over what it left.
"""

import json
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from dbos import DBOS, DBOSClient
from sqlalchemy.exc import OperationalError

from backend.caches import trim
from backend.compute import Cancelled, Compute, ComputeDied, ComputeFailed, Interrupted, outcome_of
from backend.engine import COMPUTE, INTERACTIVE, TASKS, prepare_queue
from backend.errors import UserError
from backend.host import Host
from backend.presence import Presence
from backend.rescue import renew, take_over
from backend.watch import LOOK_SECONDS, AnswerWatch, RunWatch, TaskWatch, flush_log, steps_of
from store import files, generations, measurements, results, runs, switches, tasks
from store.database import open_database

# The artifact's format, not the code's hash: a new release goes on with what an old one began.
APPLICATION_VERSION = "paretoscope-1"
# So many runs before tell how long the parts of the next one take.
_PAST_RUNS = 40
_BEAT_SECONDS = 2.0


def work(host: Host, target: str = "backend.steps") -> None:
    """The worker's main: work until SIGINT or SIGTERM, then stop; what runs is resumed next time."""
    Worker(host, target).run()


class Worker:
    """One process that works: one child for runs, one for generations."""

    def __init__(self, host: Host, target: str = "backend.steps") -> None:
        host.home.mkdir(parents=True, exist_ok=True)
        self.host = host
        self.name = host.executor_id
        self.database = open_database(host.database_url, host.journal)
        self._presence = Presence(host, self.database)
        self._lines: deque[str] = deque(maxlen=500)
        self._compute = Compute(target, self._lines.append)
        self._answers = Compute(target, lambda line: print(line, file=sys.stderr, flush=True))
        self._busy = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        """Serve both queues until a signal comes."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stopping.set())
        prepare_queue(self.host, self.database)
        DBOS(
            config={
                "name": "paretoscope",
                "system_database_url": self.host.queue_url,
                "application_version": APPLICATION_VERSION,
                "executor_id": self.name,
                "console_log_level": "WARNING",
            }
        )
        self._register()
        self._sweep_unfinished()
        self._trim_caches()
        self._beat("idle")
        DBOS.launch()
        DBOS.register_queue(
            COMPUTE, worker_concurrency=1, polling_interval_sec=0.3, on_conflict="always_update"
        )
        DBOS.register_queue(
            INTERACTIVE, worker_concurrency=1, polling_interval_sec=0.2, on_conflict="always_update"
        )
        self._compute.warm()
        self._answers.warm()
        try:
            self._watch()
        finally:
            self._stop()

    def _register(self) -> None:
        """The engine marks the functions it is given, which methods do not allow."""

        @DBOS.step(name="compress")
        def compress(run_id: str) -> None:
            self._compress_step(run_id)

        @DBOS.step(name="measure")
        def measure(run_id: str, number: int, metric: str) -> None:
            self._measure_step(run_id, number, metric)

        # No limit: a run whose worker is killed again and again is still wanted, and its steps get finished.
        @DBOS.workflow(name="run", max_recovery_attempts=None)
        def run(run_id: str, ticket: int) -> None:
            self._work(run_id, ticket)

        @DBOS.workflow(name="generate")
        def generate(generation_id: str) -> None:
            self._answer(generation_id)

        @DBOS.workflow(name="task", max_recovery_attempts=None)
        def task(task_id: str, attempt: int) -> None:
            self._task(task_id, attempt)

        self._compress, self._measure = compress, measure

    def _watch(self) -> None:
        """Signs of life, and what other workers left behind."""
        client = DBOSClient(system_database_url=self.host.queue_url)
        looked = 0.0
        while not self._stopping.wait(_BEAT_SECONDS if looked else 0.0):
            # A database that is busy or full for a while is no reason to die: the next round tries again.
            with suppress(OperationalError):
                self._beat("busy" if self._busy else "idle")
                if time.time() - looked > self.host.stale_after / 3:
                    looked = time.time()
                    take_over(client, self.host, self.database, busy=self._busy > 0)
        client.destroy()

    def _stop(self) -> None:
        self._compute.close()
        self._answers.close()
        DBOS.destroy(workflow_completion_timeout_sec=0)
        with suppress(OperationalError):
            self._beat("stopped")
        self.database.close()

    def _beat(self, state: str) -> None:
        children = (self._compute, self._answers)
        self._presence.beat(state, sum(child.memory_bytes() or 0 for child in children))

    def _sweep_unfinished(self) -> None:
        """Half-written files of processes that were killed."""
        old = time.time() - 3600
        for pattern in (".tmp*", "*.writing", ".*.safetensors*"):
            for folder in (self.host.artifacts, self.host.runs, self.host.cache):
                for file in folder.rglob(pattern):
                    with suppress(OSError):
                        if file.is_file() and file.stat().st_mtime < old:
                            file.unlink()

    def _trim_caches(self) -> None:
        """What no run or task under way has used, of this worker or another, may go if there is too much."""
        trim(self.host, results.running_since(self.database) or time.time())

    def _hold(self, waits: Callable[[], bool]) -> bool:
        """Sit out a pause of the queue for what still waits; whether there was one."""
        held = False
        while results.switch(self.database, switches.PAUSED) is not None and waits():
            held = True
            if self._stopping.wait(LOOK_SECONDS):
                raise Interrupted
        return held

    def _let_through(self, run_id: str, ticket: int) -> bool:
        """Wait while the queue is paused; whether the run's turn has come by then.

        A run that was under way when its worker was stopped is not held up: pausing lets it finish.
        """

        def waits() -> bool:
            row = results.run(self.database, run_id)
            return row is not None and row["status"] == "queued" and row["ticket"] == ticket

        held = self._hold(waits)
        first = runs.first_waiting(self.database) if held else None
        if first is None or first.run_id == run_id:
            return True
        # Another was moved before it meanwhile: this one goes back to its place.
        row = results.run(self.database, run_id)
        if row is not None and row["status"] == "queued":
            client = DBOSClient(system_database_url=self.host.queue_url)
            renew(client, self.database, runs.Spot(run_id, ticket, row["priority"], row["place"]))
            client.destroy()
        return False

    def _work(self, run_id: str, ticket: int) -> None:
        if self._stopping.is_set():
            # The engine hands out the next one while the worker is closing: it stays queued.
            raise Interrupted
        if not self._let_through(run_id, ticket):
            return
        if not runs.start_run(self.database, run_id, ticket, self.name):
            return
        self._busy += 1
        self._lines.clear()
        try:
            status, told = self._outcome(run_id, ticket)
            self._finish(run_id, ticket, status, told)
            if status == "done":
                shutil.rmtree(self.host.runs / self._row(run_id)["digest"], ignore_errors=True)
            self._trim_caches()
        except Interrupted:
            with suppress(OperationalError):
                detail = "the worker stopped; the run goes on when it starts again"
                runs.report_progress(self.database, run_id, ticket, self.name, stage="paused", detail=detail)
            raise
        finally:
            self._busy -= 1

    def _outcome(self, run_id: str, ticket: int) -> tuple[str, dict[str, str]]:
        try:
            steps = steps_of(self._row(run_id)["recipe"])
            self._compress(run_id)
            for number, metric in enumerate(steps[1:], start=1):
                self._measure(run_id, number, metric)
            return "done", {}
        except Cancelled:
            return "cancelled", {}
        except ComputeDied as problem:
            suggestion = (
                "use fewer calibration samples, shorter windows or a smaller model, or close other programs"
            )
            return "failed", {"error": str(problem), "error_kind": "killed", "suggestion": suggestion}
        except ComputeFailed as problem:
            return "failed", {"error": str(problem), "error_kind": "bug"}
        # One run's end must not be the queue's: all goes into its row, a bug with its traceback.
        except Exception as problem:
            kind, told = outcome_of(problem)
            return "failed", {"error": told, "error_kind": "user" if kind == "user" else "bug"}

    def _finish(self, run_id: str, ticket: int, status: str, told: dict[str, str]) -> None:
        def close() -> None:
            flush_log(self.database, run_id, self._lines)
            runs.finish_run(self.database, run_id, ticket, self.name, status, **told)

        self._patiently(close)

    def _patiently(self, write: Callable[[], None]) -> None:
        """A full disk refuses the last word too; it must not stay unsaid when there is space again."""
        while True:
            with suppress(OperationalError):
                write()
                return
            if self._stopping.wait(5):
                raise Interrupted

    def _row(self, run_id: str) -> dict[str, Any]:
        row = results.run(self.database, run_id)
        if row is None:
            # Removed while it waited for its next step.
            raise Cancelled
        return row

    def _compress_step(self, run_id: str) -> None:
        files.check_free(self.host.artifacts, 0)
        history = results.recent_seconds(self.database, limit=_PAST_RUNS).to_dict("records")
        made = self._call(run_id, 0, "compress", {"history": history})
        kept = ("artifact", "layers", "seconds")
        measurements.save_compression(
            self.database,
            run_id,
            artifact=made["artifact"],
            layers=made["layers"],
            seconds={f"compress.{phase}": seconds for phase, seconds in made["seconds"].items()},
            report={key: value for key, value in made.items() if key not in kept},
        )

    def _measure_step(self, run_id: str, number: int, metric: str) -> None:
        began = time.perf_counter()
        found = self._call(run_id, number, "measure", {"metric": metric})
        measurements.save_measurements(
            self.database,
            run_id,
            measurements=found["measurements"],
            series=found["series"],
            broken=found["broken"],
            seconds={metric: time.perf_counter() - began},
        )

    def _call(self, run_id: str, number: int, function: str, extra: Mapping[str, Any]) -> dict[str, Any]:
        row = self._row(run_id)
        recipe = json.dumps(row["recipe"], sort_keys=True, separators=(",", ":"))
        shared = {"recipe_json": recipe, "digest": row["digest"], "home": str(self.host.home)}
        watch = RunWatch(self.database, self._compute, self._lines, row, self.name, number)
        return self._compute.call(function, {**shared, **extra}, watch.told, watch.should_stop)

    def _answer(self, generation_id: str) -> None:
        if not generations.start(self.database, generation_id, self.name):
            return
        row = generations.one(self.database, generation_id)
        run = results.run(self.database, row["run_id"]) if row["run_id"] else None
        arguments = {
            **{"model": row["model"], "artifact": run["artifact"] if run else None, "prompt": row["prompt"]},
            **{"settings": json.loads(row["settings"]), "home": str(self.host.home)},
        }
        watch = AnswerWatch(self.database, generation_id)
        status, made, told = self._tried(self._answers, "generate", arguments, watch)
        finished = partial(generations.finish, self.database, generation_id, status, error=told, **made or {})
        self._patiently(finished)

    def _task(self, task_id: str, attempt: int) -> None:
        def waits() -> bool:
            row = results.task(self.database, task_id)
            if row is None or TASKS.get(row["kind"]) != COMPUTE:
                return False
            return (row["status"], row["attempt"]) == ("queued", attempt)

        self._hold(waits)
        if not tasks.start(self.database, task_id, attempt, self.name):
            return
        row = results.task(self.database, task_id)
        assert row is not None
        long = TASKS[row["kind"]] == COMPUTE
        compute = self._compute if long else self._answers
        arguments = {**row["arguments"], "model": row["model"], "home": str(self.host.home)}
        watch = TaskWatch(self.database, task_id, attempt)
        self._busy += long
        try:
            status, made, told = self._tried(compute, row["kind"], arguments, watch)
        finally:
            self._busy -= long
        self._patiently(
            partial(tasks.finish, self.database, task_id, attempt, status, result=made, error=told)
        )

    @staticmethod
    def _tried(
        compute: Compute, function: str, arguments: Mapping[str, Any], watch: AnswerWatch | TaskWatch
    ) -> tuple[str, dict[str, Any] | None, str | None]:
        """(status, what was made, why it failed) of a call that somebody waits for at a page."""
        try:
            made = compute.call(function, arguments, watch.told, watch.should_stop, poll=LOOK_SECONDS)
        except Cancelled:
            return "cancelled", None, None
        except (UserError, ComputeDied, ComputeFailed) as problem:
            return "failed", None, str(problem)
        except OperationalError as problem:
            # The store refused a sign of life on the way, most likely for want of space.
            return "failed", None, outcome_of(problem)[1]
        return "done", made, None
