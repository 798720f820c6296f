"""The queue engine's side of things: what its workflows and queues are called, and how work is handed over.

A run is a durable workflow named by the run's id and its ticket, an answer one named by its own id, a task by
its id and attempt. Asking (`backend.jobs`) and working (`backend.worker`) share these names.
"""

from dbos import DBOSClient, EnqueueOptions, run_dbos_database_migrations

from backend.host import Host
from store import runs
from store.database import Database

COMPUTE, INTERACTIVE = "compute", "interactive"
# The kinds of tasks, each a function of that name in backend.steps, and who answers them: what takes seconds
# does not wait for runs, what takes minutes stands in line with them.
TASKS = {"levels": COMPUTE, "surgery": INTERACTIVE, "read": INTERACTIVE, "export": INTERACTIVE}
# On SQLite the engine counts time in seconds: within one priority the places keep the order.
_PLACES = 2_000_000
# Somebody looks at the page that asked; runs from the page have 10, of sweeps 20.
_TASK_PRIORITY = 5


def workflow_id(run_id: str, ticket: int) -> str:
    """The engine's name for a run at its place in the queue."""
    return f"{run_id}-{ticket}"


def enqueue_run(client: DBOSClient, spot: runs.Spot) -> None:
    """Hand a run to the worker that is free next; lower priorities first, then lower places."""
    options: EnqueueOptions = {
        "workflow_name": "run",
        "queue_name": COMPUTE,
        "workflow_id": workflow_id(spot.run_id, spot.ticket),
        # From the middle: a run moved to the front of a young queue has a place below zero.
        "priority": max(1, spot.priority) * _PLACES + (spot.place + _PLACES // 2) % _PLACES,
    }
    client.enqueue(options, spot.run_id, spot.ticket)


def enqueue_generation(client: DBOSClient, generation_id: str) -> None:
    """Hand an answer to the worker that is free next; asked for twice, it is written once."""
    options: EnqueueOptions = {
        "workflow_name": "generate",
        "queue_name": INTERACTIVE,
        "workflow_id": generation_id,
    }
    client.enqueue(options, generation_id)


def task_workflow_id(task_id: str, attempt: int) -> str:
    """The engine's name for an attempt at a task."""
    return f"task-{task_id}-{attempt}"


def enqueue_task(client: DBOSClient, task_id: str, kind: str, attempt: int) -> None:
    """Hand a task to the worker that is free next; on the line of runs it stands before most of them."""
    options: EnqueueOptions = {
        "workflow_name": "task",
        "queue_name": TASKS[kind],
        "workflow_id": task_workflow_id(task_id, attempt),
    }
    if TASKS[kind] == COMPUTE:
        options["priority"] = _TASK_PRIORITY * _PLACES
    client.enqueue(options, task_id, attempt)


def prepare_queue(host: Host, database: Database) -> None:
    """The engine's own tables, made by whichever process comes first."""
    with database.alone():
        run_dbos_database_migrations(host.queue_url)
