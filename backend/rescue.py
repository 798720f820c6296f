"""What silent workers left behind, and what fell between the store and the queue engine: taken up again."""

import time

from dbos import DBOSClient, error

from backend.engine import (
    COMPUTE,
    INTERACTIVE,
    TASKS,
    enqueue_generation,
    enqueue_run,
    enqueue_task,
    task_workflow_id,
    workflow_id,
)
from backend.host import Host
from store import generations, results, runs, tasks
from store.database import Database


def take_over(client: DBOSClient, host: Host, database: Database, busy: bool) -> None:
    """Claim what workers without a sign of life were doing, and hand over what waits and nobody holds."""
    claim = (database, host.executor_id, host.stale_after)
    for run_id, ticket in runs.claim_stale(*claim):
        try:
            client.resume_workflow(workflow_id(run_id, ticket), queue_name=COMPUTE)
        except error.DBOSNonExistentWorkflowError:
            # The queue's own database was lost or replaced; the store still knows what is wanted.
            enqueue_run(client, runs.requeue_lost(database, run_id))
    for generation_id in generations.claim_stale(*claim):
        try:
            client.resume_workflow(generation_id, queue_name=INTERACTIVE)
        except error.DBOSNonExistentWorkflowError:
            enqueue_generation(client, generation_id)
    for task_id, kind, attempt in tasks.claim_stale(*claim):
        if kind not in TASKS:
            # Of another release: whoever knows the kind may have it.
            continue
        try:
            client.resume_workflow(task_workflow_id(task_id, attempt), queue_name=TASKS[kind])
        except error.DBOSNonExistentWorkflowError:
            enqueue_task(client, task_id, kind, attempt)
    # Somebody was killed between store and queue, and the two disagree: a new ticket is always safe.
    first = None if busy else runs.first_waiting(database)
    if first is not None and not _is_known(client, host, database, first):
        row = results.run(database, first.run_id)
        if row is not None and time.time() - row["enqueued"] > host.stale_after:
            renew(client, database, first)
    for generation_id in generations.waiting(database):
        enqueue_generation(client, generation_id)
    for task_id, kind, attempt in tasks.waiting(database):
        if kind in TASKS:
            enqueue_task(client, task_id, kind, attempt)


def renew(client: DBOSClient, database: Database, spot: runs.Spot) -> None:
    """Hand a queued run over anew, under a fresh ticket."""
    fresh = runs.renew(database, spot.run_id, spot.ticket)
    if fresh is not None:
        enqueue_run(client, fresh)


def _is_known(client: DBOSClient, host: Host, database: Database, spot: runs.Spot) -> bool:
    """Whether the engine keeps a queued run for a worker, or a worker that lives holds it."""
    name = workflow_id(spot.run_id, spot.ticket)
    workers = results.workers(database, host.stale_after)
    alive = set(workers.loc[workers["alive"], "id"])
    known = client.list_workflows(workflow_ids=[name], status=["ENQUEUED", "PENDING"], load_input=False)
    return any(found.status == "ENQUEUED" or found.executor_id in alive for found in known)
