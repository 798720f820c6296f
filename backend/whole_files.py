"""Write files whole or not at all, and know them by a digest that is kept."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from backend.host import Host

# Bytes of a file that are in memory at once.
_PIECE = 1 << 22


def file_digest(file: Path, host: Host, start: int = 0, size: int | None = None) -> str:
    """sha256 (64 hex digits) of a file, or of `size` bytes of it; remembered by place, size and time."""
    memory = host.cache / "fingerprints.json"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    state = file.stat()
    key = f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    if size is not None:
        key += f"|{start}+{size}"
    if key not in known:
        with file.open("rb") as opened:
            known[key] = _digest(opened, start, state.st_size - start if size is None else size)
        replace_file(memory, json.dumps(known).encode())
    return str(known[key])


def _digest(opened: BinaryIO, start: int, size: int) -> str:
    total = hashlib.sha256()
    opened.seek(start)
    while size > 0 and (piece := opened.read(min(size, _PIECE))):
        total.update(piece)
        size -= len(piece)
    return total.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(opened.name, path)
