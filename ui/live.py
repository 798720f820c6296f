"""What open pages look after without an event of Gradio's, each of which costs the server some 25 ms.

`live/<panel>` answers with the versions of the store and what a panel shows, made once for all readers of the
same address; a page fetches it every few seconds and sends an event only when a version that it minds has
grown.
"""

import gzip
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gradio as gr
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from backend.jobs import Jobs
from store import results
from ui.panel import SCRIPT
from ui.routes import add_route

# A panel's value for the query of the reader's address.
Panel = Callable[[Jobs, Mapping[str, str]], str]
# Ages and a worker's silence grow without a write.
_OLDEST_SECONDS = 10.0
# How long the store is taken to be unchanged, in seconds.
_LOOK_SECONDS = 1.0
_MOST_KEPT, _LONGEST_QUERY = 64, 4000
# Smaller answers are not worth packing.
_SMALL = 500
_FOLDER = Path(__file__).parent
# What a script is told from here stands in it under this name.
_SETTINGS = "SETTINGS"
_LOOK = (_FOLDER / "live.js").read_text(encoding="utf-8")
_FOLLOW = (_FOLDER / "follow.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Answer:
    """What is sent, packed if `packed`; what names it, and what it was made from."""

    body: bytes
    packed: bool
    tag: str
    version: int
    made: float


class Feed:
    """The answers of all panels, each made anew when the store has changed since, or when it is old.

    `minds` names the version of the store that a panel hangs on, where that is not every write. `choices`
    names what the readers of all runs may choose from: its own version grows when that changes.
    """

    def __init__(
        self,
        jobs: Jobs,
        panels: Mapping[str, Panel],
        choices: Callable[[Jobs], str] = lambda jobs: "",
        minds: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._jobs, self._panels, self._choices = jobs, {"": _nothing, **panels}, choices
        self._kept: dict[tuple[str, str], _Answer] = {}
        self._chosen = (-1, "")
        self._minds = minds
        self._versions: dict[str, int] = {}
        self._looked = -_LOOK_SECONDS
        self._lock = threading.Lock()

    def answer(self, name: str, query: Mapping[str, str], known: str = "", packs: bool = False) -> Response:
        """The panel `name` at an address; 304 when the reader has it, 404 when there is no such panel."""
        render = self._panels.get(name)
        if render is None:
            return Response(status_code=404)
        return self._response(self._fresh(name, query, render), known, packs)

    def ready(
        self, name: str, query: Mapping[str, str], known: str = "", packs: bool = False
    ) -> Response | None:
        """The same without looking at the store, if it was looked at just now and nothing had changed."""
        kept, now = self._kept.get(_key(name, query)), time.monotonic()
        if kept is None or now - self._looked > _LOOK_SECONDS or kept.version != self._minded(name):
            return None
        return self._response(kept, known, packs) if now - kept.made < _OLDEST_SECONDS else None

    @staticmethod
    def _response(found: _Answer, known: str, packs: bool) -> Response:
        headers = {"ETag": found.tag, "cache-control": "no-cache"}
        if known == found.tag:
            return Response(status_code=304, headers=headers)
        if found.packed and packs:
            headers["Content-Encoding"] = "gzip"
        body = gzip.decompress(found.body) if found.packed and not packs else found.body
        return Response(body, media_type="application/json", headers=headers)

    def _fresh(self, name: str, query: Mapping[str, str], render: Panel) -> _Answer:
        key = _key(name, query)
        # One at a time: fifty readers of a new version are one reading of the store, not fifty.
        with self._lock:
            self._versions = versions = results.versions(self._jobs.database)
            kept = self._kept.get(key)
            self._looked = now = time.monotonic()
            minded = self._minded(name)
            if kept and kept.version == minded and now - kept.made < _OLDEST_SECONDS:
                return kept
            if self._chosen[0] != versions["results"]:
                self._chosen = versions["results"], _digest(self._choices(self._jobs).encode())
            told = {"versions": {**versions, "choices": self._chosen[1]}, "value": render(self._jobs, query)}
            body = json.dumps(told, separators=(",", ":")).encode()
            packed = len(body) > _SMALL
            body = gzip.compress(body, 5, mtime=0) if packed else body
            while len(self._kept) >= _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = made = _Answer(body, packed, f'"{_digest(body)}"', minded, now)
            return made

    def _minded(self, name: str) -> int:
        return self._versions.get(self._minds.get(name, "all"), -1)


def serve(demo: gr.Blocks, feed: Feed) -> None:
    """Answer `live/<panel>` beside the pages of a launched application, for who may see those."""

    async def live(request: Request) -> Response:
        if len(request.url.query) > _LONGEST_QUERY:
            return Response(status_code=414)
        told, panel = request.headers, request.path_params.get("panel", "")
        packs = "gzip" in told.get("accept-encoding", "")
        asked = panel, dict(request.query_params), told.get("if-none-match", ""), packs
        # Nearly always there already: a thread would cost more than the answer.
        return feed.ready(*asked) or await run_in_threadpool(feed.answer, *asked)

    for path in ("/live/{panel}", "/live"):
        add_route(demo, path, live)


def live(
    elem_id: str, every: float, panel: str = "", minds: Sequence[str] = (), reads: Sequence[str] = ()
) -> gr.HTML:
    """Shows the shared `panel`, looking every so many seconds; `select` of action `look` says a version grew.

    `minds` names the versions that are worth an event, such as `results`; the first look is one. `reads`
    names the parts of the address that the panel is about.
    """
    asked = {"panel": panel, "every": 1000 * every, "minds": list(minds), "reads": list(reads)}
    return gr.HTML(
        "", elem_id=elem_id, js_on_load=SCRIPT + _LOOK.replace(_SETTINGS, json.dumps(asked)),
        elem_classes="plain", apply_default_css=False,
    )  # fmt: skip


def following(panel: str, minds: Sequence[str] = ("results",), rests: float = 12.0, about: str = "") -> str:
    """The script of a component that takes the shared `panel` of its address whenever a version has grown.

    The looking is done by a `live` on the same page; after a fetch it rests for so many seconds. It does
    nothing while the address lacks the part that it is `about`.
    """
    asked = {"panel": panel, "minds": list(minds), "rests": 1000 * rests, "about": about}
    return _FOLLOW.replace(_SETTINGS, json.dumps(asked))


def _key(name: str, query: Mapping[str, str]) -> tuple[str, str]:
    return name, json.dumps(dict(query), sort_keys=True)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:20]


def _nothing(jobs: Jobs, query: Mapping[str, str]) -> str:
    return ""
