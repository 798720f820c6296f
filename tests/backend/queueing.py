"""What tests of the queue share: a worker process with stand-in steps, and waiting for what it does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend.jobs import Jobs
from store import results

ROOT = Path(__file__).parents[2]
TARGET = "tests.backend.fake_steps"
WORKERS: list["WorkerProcess"] = []


class WorkerProcess:
    """A worker as `make app` starts it, but with the stand-in steps."""

    def __init__(self, home: Path, name: str = "local") -> None:
        code = "from backend.host import Host; from backend.worker import work\n"
        code += f"work(Host.at({str(home)!r}), {TARGET!r})"
        environment = {**os.environ, "PARETOSCOPE_WORKER": name, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
        WORKERS.append(self)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Seconds that stopping took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - began


def status(jobs: Jobs, run_id: str) -> str:
    row = results.run(jobs.database, run_id)
    return "removed" if row is None else row["status"]


def wait(what: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def wait_for(jobs: Jobs, run_id: str, *statuses: str, seconds: float = 40) -> dict[str, Any]:
    wait(lambda: status(jobs, run_id) in statuses, seconds)
    row = results.run(jobs.database, run_id)
    assert row is not None
    return row


def let_go(jobs: Jobs, run_id: str) -> None:
    (jobs.host.home / f"go-{run_id}").touch()


def calls(jobs: Jobs, run_id: str) -> list[str]:
    noted = jobs.host.home / "calls.txt"
    lines = noted.read_text().splitlines() if noted.exists() else []
    return [line.split()[0] for line in lines if line.split()[1] == run_id]
