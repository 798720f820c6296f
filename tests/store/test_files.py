"""Artifacts by digest, and the room they need."""

import errno
from pathlib import Path
from typing import NamedTuple

import pytest

from store import files


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_artifacts_are_removed_by_digest_and_nothing_else_is(tmp_path: Path) -> None:
    files.path(tmp_path, "abc").write_bytes(b"12345")
    (tmp_path / "notes.txt").write_bytes(b"not an artifact")
    files.remove(tmp_path, "abc")
    files.remove(tmp_path, "abc")
    assert not files.path(tmp_path, "abc").exists()
    assert (tmp_path / "notes.txt").exists()


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(OSError, match="1 MB are free") as full:
        files.check_free(tmp_path, 10)
    assert full.value.errno == errno.ENOSPC
