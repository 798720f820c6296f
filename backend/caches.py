"""Caches stay below a limit: of what can be made again, the folder that was used longest ago goes first."""

import shutil
from contextlib import suppress
from pathlib import Path

from backend.host import Host

# Each of their folders belongs to one model and protocol, or to one exported run; token ids and texts beside
# them are small.
_BOUNDED = ("hidden", "statistics", "levels", "exports")
# Clocks of files are coarse, and those of a shared disk differ a little from ours.
_CLOCKS_DIFFER = 60.0


def trim(host: Host, used_since: float) -> None:
    """Remove folders until the caches fit; one that was used since then may be in use still and stays."""
    folders = [folder for name in _BOUNDED for folder in (host.cache / name).glob("*/")]
    total = sum(_bytes(folder) for folder in folders)
    for folder in sorted(folders, key=_last_used):
        if total <= host.cache_bytes or _last_used(folder) >= used_since - _CLOCKS_DIFFER:
            return
        total -= _bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _last_used(folder: Path) -> float:
    # Whoever reads or writes in a cache folder sets its time: `is_whole` and the making of files.
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.iterdir() if folder.is_dir() else ():
        # Another worker may be trimming too.
        with suppress(OSError):
            total += file.stat().st_size
    return total
