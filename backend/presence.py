"""A worker's signs of life, by which the others know it; two of one name would take up each other's work."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import psutil

from backend.errors import UserError
from backend.host import Host
from store import results, runs
from store.database import Database


class Presence:
    """This worker among those of the store; UserError when another one of its name lives."""

    def __init__(self, host: Host, database: Database) -> None:
        self._host, self._database, self._name = host, database, host.executor_id
        self._started = time.time()
        self._refuse_twin()

    def beat(self, state: str, children_bytes: int) -> None:
        """Tell that this worker lives, what it does, and what it and its children hold in memory."""
        runs.write_worker(
            self._database,
            self._name,
            pid=os.getpid(),
            host=socket.gethostname(),
            device=self._host.device,
            state=state,
            started=self._started,
            memory_bytes=psutil.Process().memory_info().rss + children_bytes,
        )

    def _refuse_twin(self) -> None:
        known = results.workers(self._database, self._host.stale_after)
        for twin in known[known["alive"] & (known["id"] == self._name)].to_dict("records"):
            if twin["pid"] == os.getpid() or not self._lives(twin):
                continue
            raise UserError(
                f"a worker named {self._name!r} is alive on {twin['host']} (process {twin['pid']}); "
                "stop it, or give this one another name in PARETOSCOPE_WORKER"
            )

    def _lives(self, twin: Mapping[Any, Any]) -> bool:
        if twin["host"] == socket.gethostname():
            return bool(psutil.pid_exists(twin["pid"]))
        # A container that was replaced left its last sign of life behind: only a new one counts.
        for _ in range(int(self._host.stale_after)):
            time.sleep(1)
            now = results.workers(self._database, self._host.stale_after)
            if float(now.loc[now["id"] == self._name, "heartbeat"].iloc[0]) > float(twin["heartbeat"]):
                return True
        return False
