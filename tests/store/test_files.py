"""Artifacts: whole or absent."""

import errno
from pathlib import Path
from typing import NamedTuple

import pytest

from store import files


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_an_artifact_is_written_under_its_digest(tmp_path: Path) -> None:
    place = files.write(tmp_path / "new", "abc", lambda file: file.write_bytes(b"12345"))
    assert place == files.path(tmp_path / "new", "abc")
    assert place.read_bytes() == b"12345"
    assert files.total_bytes(tmp_path / "new") == 5
    files.remove(tmp_path / "new", "abc")
    files.remove(tmp_path / "new", "abc")
    assert files.total_bytes(tmp_path / "new") == 0


def test_a_write_that_fails_leaves_the_old_artifact_and_no_rest(tmp_path: Path) -> None:
    files.write(tmp_path, "abc", lambda file: file.write_bytes(b"old"))

    def fail(file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        files.write(tmp_path, "abc", fail)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(OSError, match="1 MB are free") as full:
        files.write(tmp_path, "abc", lambda file: None, size=10)
    assert full.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
