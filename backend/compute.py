"""Model work in a child process: it can be stopped midway, and running out of memory takes only the child."""

import ctypes
import errno
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import psutil

from backend.errors import UserError
from backend.progress import Update

_SPAWN = multiprocessing.get_context("spawn")
_BETWEEN_UPDATES = 0.1
_PARENT_DEATH = 1
_FULL_DISK = ("No space left on device", "os error 28", "database or disk is full")
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "CUDA out of memory", "MemoryError")


class Cancelled(Exception):
    """The caller asked to stop, and the child is gone."""


class Interrupted(BaseException):
    """The worker is closing; no Exception, so that the queue records no outcome and resumes the work."""


class ComputeFailed(Exception):
    """A bug: the text is the child's traceback."""


class ComputeDied(Exception):
    """The child is gone or had to give up, most likely for want of memory."""


class Compute:
    """One child process that imports `target` and runs its functions, one call at a time."""

    def __init__(self, target: str = "backend.steps", on_line: Callable[[str], None] = print) -> None:
        self._target = target
        self._on_line = on_line
        self._child: _Child | None = None
        self._closing = False
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Start the child and its imports before there is anything to do."""
        with self._lock:
            self._alive()

    def call(
        self,
        function: str,
        kwargs: Mapping[str, Any],
        on_update: Callable[[dict[str, Any]], None] = lambda update: None,
        should_stop: Callable[[], bool] = lambda: False,
        poll: float = 0.25,
    ) -> dict[str, Any]:
        """What `target.function(**kwargs, progress=...)` returns; `should_stop` is asked each `poll` s.

        Raises UserError as the child raised it, ComputeFailed, ComputeDied, Cancelled, or Interrupted.
        """
        with self._lock:
            child = self._alive()
            try:
                return self._converse(child, (function, dict(kwargs)), on_update, should_stop, poll)
            except UserError:
                raise
            except BaseException:
                # Whatever state it is in: the next call gets a fresh one, whose imports begin now.
                child.kill()
                if self._closing:
                    raise Interrupted from None
                with suppress(ComputeDied):
                    self._alive()
                raise

    def memory_bytes(self) -> int | None:
        """Resident memory of the child and what it started."""
        child = self._child
        if child is None:
            return None
        with suppress(psutil.Error):
            process = psutil.Process(child.pid)
            family = [process, *process.children(recursive=True)]
            return sum(member.memory_info().rss for member in family)
        return None

    def close(self) -> None:
        """Stop for good; a call under way raises Interrupted."""
        self._closing = True
        if self._child is not None:
            self._child.kill()

    def _alive(self) -> "_Child":
        if self._closing:
            raise Interrupted
        if self._child is None or not self._child.alive():
            self._child = _Child(self._target, self._on_line)
        return self._child

    def _converse(
        self,
        child: "_Child",
        request: tuple[str, dict[str, Any]],
        on_update: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
        poll: float,
    ) -> dict[str, Any]:
        try:
            child.messages.send(request)
            asked = time.monotonic()
            while True:
                wait = asked + poll - time.monotonic()
                if wait <= 0:
                    if should_stop():
                        raise Cancelled
                    asked = time.monotonic()
                elif child.messages.poll(wait):
                    kind, content = child.messages.recv()
                    if kind == "update":
                        on_update(content)
                    elif kind == "result":
                        return content
                    else:
                        raise {"user": UserError, "memory": ComputeDied}.get(kind, ComputeFailed)(content)
        except (EOFError, BrokenPipeError, ConnectionResetError) as gone:
            raise ComputeDied(child.last_words()) from gone


class _Child:
    """The process, its pipe, and the thread that carries what it prints."""

    def __init__(self, target: str, on_line: Callable[[str], None]) -> None:
        self.messages, theirs = _SPAWN.Pipe()
        printed, printing = _SPAWN.Pipe(duplex=False)
        arguments = (target, theirs, printing, os.getpid())
        self._process = _SPAWN.Process(target=_serve, args=arguments, name="compute", daemon=True)
        started = threading.Event()

        # Linux ends the child with the thread that started it, so that thread must live as long as the child.
        def carry() -> None:
            try:
                self._process.start()
            finally:
                theirs.close()
                printing.close()
                started.set()
            _carry_lines(printed, on_line)

        threading.Thread(target=carry, name="compute-output", daemon=True).start()
        started.wait()
        if self._process.pid is None:
            raise ComputeDied(
                "the computing process could not be started, most likely because memory ran out"
            )
        self.pid = self._process.pid

    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        # The child leads a group of its own: what it started goes with it.
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(5)

    def last_words(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return "the computing process was killed by the system, most likely because memory ran out"
        if code is not None and code < 0:
            return f"the computing process was ended by {signal.Signals(-code).name}"
        return f"the computing process ended by itself with exit code {code}"


def _carry_lines(printed: Connection, on_line: Callable[[str], None]) -> None:
    rest = b""
    while True:
        try:
            chunk = os.read(printed.fileno(), 65536)
        except OSError:
            return
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines if chunk else [*lines, rest]:
            if text := line.decode(errors="replace").rstrip():
                on_line(text)
        if not chunk:
            return


def _serve(target: str, messages: Connection, printing: Connection, parent: int) -> None:
    """The child's main: requests in, updates and one outcome out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.setsid()
    os.dup2(printing.fileno(), 1)
    os.dup2(printing.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    die_with(parent)
    with suppress(ImportError):
        # What is missing is told at the first call, in full.
        importlib.import_module(target)
    while True:
        try:
            function, kwargs = messages.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = (
                "result",
                getattr(importlib.import_module(target), function)(**kwargs, progress=_Told(messages)),
            )
        # The process boundary: no exception crosses it, so any is told to the worker, a bug in full.
        except Exception as problem:
            outcome = outcome_of(problem)
        messages.send(outcome)


def outcome_of(problem: Exception) -> tuple[str, str]:
    """What kind of failure this is (user, memory, bug) and what to say of it; a bug's traceback in full."""
    if isinstance(problem, UserError):
        return "user", str(problem)
    told = "".join(traceback.format_exception(problem))
    if getattr(problem, "errno", None) == errno.ENOSPC or any(sign in str(problem) for sign in _FULL_DISK):
        reason = next(iter(str(problem).splitlines()), "")[:200]
        return "user", f"the disk is full ({reason}); free some space and retry"
    if any(sign in told.splitlines()[-1] for sign in _OUT_OF_MEMORY):
        return "memory", f"memory ran out: {str(problem).splitlines()[0] if str(problem) else 'MemoryError'}"
    return "bug", told


class _Told:
    """The child's progress: sent when the stage changes, otherwise a few times a second."""

    def __init__(self, messages: Connection) -> None:
        self._messages = messages
        self._sent = 0.0
        self._stage = ""

    def __call__(self, update: Update) -> None:
        now = time.monotonic()
        if update.stage != self._stage or now - self._sent >= _BETWEEN_UPDATES:
            self._sent, self._stage = now, update.stage
            self._messages.send(("update", asdict(update)))


def die_with(parent: int) -> None:
    """End when the parent ends, however it ended: by the kernel on Linux, by looking elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        with suppress(OSError):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
