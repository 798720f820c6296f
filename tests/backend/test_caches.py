"""Caches below their limit."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.artifacts import is_whole
from backend.caches import trim
from backend.errors import UserError
from backend.host import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Four folders of 1000 bytes, used at the hours 1, 2, 3 and 4, and as many bytes of something else."""
    host = replace(Host.at(tmp_path), cache_bytes=4000)
    places = ("hidden/first", "statistics/second", "hidden/third", "statistics/fourth", "tokens/other")
    for hour, place in enumerate(places, start=1):
        folder = host.cache / place
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(bytes(600))
        (folder / "b.safetensors").write_bytes(bytes(400))
        os.utime(folder, (3600 * hour, 3600 * hour))
    return host


def left(host: Host) -> set[str]:
    return {folder.name for folder in host.cache.glob("*/*")}


@pytest.mark.parametrize(
    ("limit", "used_since", "kept"),
    [
        (4000, 9, {"first", "second", "third", "fourth", "other"}),
        (3999, 9, {"second", "third", "fourth", "other"}),
        (2000, 9, {"third", "fourth", "other"}),
        (0, 9, {"other"}),
        (0, 3, {"third", "fourth", "other"}),
    ],
)
def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(
    host: Host, limit: float, used_since: float, kept: set[str]
) -> None:
    trim(replace(host, cache_bytes=limit), 3600 * used_since)
    assert left(host) == kept


def test_reading_a_cache_file_counts_as_use(host: Host) -> None:
    file = host.cache / "hidden" / "first" / "a.safetensors"
    save_file({"states": torch.zeros(4)}, file)
    os.utime(file.parent, (1, 1))
    assert is_whole(file)
    trim(replace(host, cache_bytes=2000), used_since=9 * 3600)
    assert left(host) == {"first", "fourth", "other"}


def test_the_limit_comes_from_the_environment() -> None:
    assert Host.from_environment({"PARETOSCOPE_CACHE_GB": "1.5"}).cache_bytes == 1.5e9
    with pytest.raises(UserError, match="PARETOSCOPE_CACHE_GB"):
        Host.from_environment({"PARETOSCOPE_CACHE_GB": "lots"})
