"""Artifacts on disk, one file a digest: there in full or not at all."""

import errno
import shutil
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


def remove(folder: Path, digest: str) -> None:
    """Take an artifact away, if there is one."""
    path(folder, digest).unlink(missing_ok=True)
