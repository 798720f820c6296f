"""The child process: what it returns, how it is stopped, how it ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from backend.compute import Cancelled, Compute, ComputeDied, ComputeFailed, Interrupted
from backend.errors import UserError

TARGET = "tests.backend.fake_steps"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def compute(lines: list[str]) -> Iterator[Compute]:
    compute = Compute(TARGET, lines.append)
    yield compute
    compute.close()


def recipe(tmp_path: Path, model: str) -> dict[str, str]:
    return {"recipe_json": f'{{"model": "{model}"}}', "digest": "d" * 64, "home": str(tmp_path)}


def test_a_call_returns_its_result_and_tells_updates_and_lines(compute: Compute, lines: list[str]) -> None:
    updates: list[dict[str, object]] = []
    assert compute.call("echo", {"value": "x"}, updates.append)["value"] == "x"
    assert updates == [{"stage": "echo", "done": 1, "total": 1, "detail": "x", "tokens": 0, "share": None}]
    deadline = time.monotonic() + 5
    while lines != ["echo x"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lines == ["echo x"]
    assert compute.memory_bytes() > 1_000_000


def test_one_child_serves_many_calls(compute: Compute) -> None:
    first = compute.call("echo", {"value": 1})["pid"]
    assert compute.call("echo", {"value": 2})["pid"] == first != os.getpid()


def test_errors_keep_their_kind(compute: Compute, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^group 48 does not divide 576$"):
        compute.call("compress", recipe(tmp_path, "user-error"))
    with pytest.raises(UserError, match="the disk is full"):
        compute.call("compress", recipe(tmp_path, "full-disk"))
    with pytest.raises(ComputeFailed, match=r"Traceback[\s\S]*ZeroDivisionError: a bug"):
        compute.call("compress", recipe(tmp_path, "bug"))
    assert compute.call("echo", {"value": 3})["value"] == 3


def test_a_killed_child_is_reported_and_replaced(compute: Compute, tmp_path: Path) -> None:
    with pytest.raises(ComputeDied, match="memory ran out"):
        compute.call("compress", recipe(tmp_path, "killed"))
    assert compute.call("echo", {"value": 4})["value"] == 4


def test_stopping_is_immediate_even_when_the_child_does_not_listen(compute: Compute, tmp_path: Path) -> None:
    compute.call("echo", {"value": 0})
    asked = time.monotonic() + 0.5
    began = time.monotonic()
    with pytest.raises(Cancelled):
        compute.call(
            "compress", recipe(tmp_path, "deaf-compress"), should_stop=lambda: time.monotonic() > asked
        )
    assert time.monotonic() - began < 2
    assert compute.call("echo", {"value": 5})["value"] == 5


def test_closing_interrupts_without_an_outcome(compute: Compute, tmp_path: Path) -> None:
    compute.call("echo", {"value": 0})

    def close() -> bool:
        compute.close()
        return False

    with pytest.raises(Interrupted):
        compute.call("compress", recipe(tmp_path, "deaf-compress"), should_stop=close)


def test_a_missing_target_is_told_at_the_call() -> None:
    compute = Compute("tests.backend.no_such_module")
    with pytest.raises(ComputeFailed, match="ModuleNotFoundError"):
        compute.call("echo", {"value": 1})
    compute.close()


def test_the_child_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
        import time
        from backend.compute import Compute
        if __name__ == "__main__":
            compute = Compute({TARGET!r}, lambda line: None)
            print(compute.call("echo", {{"value": 1}}, lambda update: None)["pid"], flush=True)
            time.sleep(60)
    """
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(code))
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert parent.stdout is not None
    child = int(next(line for line in parent.stdout if line.strip().isdigit()))
    assert psutil.pid_exists(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)
