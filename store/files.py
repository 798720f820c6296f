"""Artifacts on disk, one file a digest: there in full or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

SUFFIX = ".safetensors"
# A disk filled to the last byte takes the databases down with it.
KEPT_FREE = 256 * 1024**2


def path(folder: Path, digest: str) -> Path:
    """Where the artifact of a digest lies, or would lie."""
    return folder / f"{digest}{SUFFIX}"


def check_free(folder: Path, size: int) -> None:
    """OSError ENOSPC, as a full disk itself would say, unless `size` bytes and a reserve are free."""
    free = shutil.disk_usage(folder).free
    if free < size + KEPT_FREE:
        asked = f"{size / 1e6:.0f} MB and a reserve of {KEPT_FREE / 1e6:.0f} MB are needed"
        raise OSError(errno.ENOSPC, f"no space left: {asked}, {free / 1e6:.0f} MB are free", str(folder))


def write(folder: Path, digest: str, fill: Callable[[Path], object], size: int = 0) -> Path:
    """Let `fill` write a temporary file, then flush it to the disk and give it its name in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    check_free(folder, size)
    unfinished = folder / f".{digest}.{uuid.uuid4().hex}"
    try:
        fill(unfinished)
        _flush(unfinished)
        os.replace(unfinished, path(folder, digest))
    finally:
        unfinished.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name is in the folder, which is flushed on its own.
        _flush(folder)
    return path(folder, digest)


def remove(folder: Path, digest: str) -> None:
    """Take an artifact away, if there is one."""
    path(folder, digest).unlink(missing_ok=True)


def total_bytes(folder: Path) -> int:
    """What all artifacts take together."""
    return sum(file.stat().st_size for file in folder.glob(f"*{SUFFIX}"))


def _flush(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
