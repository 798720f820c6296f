"""The whole app as a user starts it, and a real browser that looks at it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import pytest
import torch
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_model, make_text

ROOT = Path(__file__).parents[2]
PATIENCE = 300_000
# A busy machine is slow, not wrong.
expect.set_options(timeout=30_000)
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# What Gradio's client says when a page is left while it still listens for events.
LEAVING = ("AbortError", "Connection errored out", "Failed to fetch", "net::ERR_ABORTED")
# The streams of events that each page opened, and whether they are closed.
_STREAMS: WeakKeyDictionary[Page, dict[Request, bool]] = WeakKeyDictionary()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The app as a user starts it, page and worker, in a home of its own with a tiny model beside it."""
    folder = tmp_path_factory.mktemp("app")
    text = make_text(folder / "text.txt")
    # Enough for what the Budget learns from.
    long = make_text(folder / "long.txt", 60_000)
    model = trained(make_model(folder / "model"), text)
    # Wide and long enough for the settings of the papers' claims.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "max_position_embeddings": 1024}
    wide = trained(make_model(folder / "wide", **sizes), text, 1024)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "PARETOSCOPE_HOME": str(folder / "home"), "PARETOSCOPE_STARTER": "0",
        "PARETOSCOPE_ROOTS": str(folder), "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    printed = (folder / "printed.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py")],
        env=environment,
        stdout=printed,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while not answers(address):
            assert process.poll() is None, (folder / "printed.txt").read_text()
            assert time.monotonic() < deadline, f"not up in time: {(folder / 'printed.txt').read_text()}"
            time.sleep(0.25)
        yield SimpleNamespace(
            address=address,
            model=str(model),
            wide=str(wide),
            text=f"file:{text}",
            long=f"file:{long}",
            environment=environment,
        )
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        printed.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    assert path, (
        "this test needs Chromium: install it (apt-get install chromium) so that `chromium` is on PATH"
    )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, served: SimpleNamespace) -> Iterator[Page]:
    """A page that fails the test when it logs an error or asks any other server for anything."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
    local = (served.address, "data:", "blob:")
    opened.on("request", lambda asked: asked.url.startswith(local) or complaints.append(asked.url))
    streams = _STREAMS.setdefault(opened, {})

    def closed(asked: Request) -> None:
        if asked in streams:
            streams[asked] = True

    opened.on("request", lambda asked: streams.update({asked: False}) if "queue/data" in asked.url else None)
    opened.on("requestfinished", lambda asked: closed(asked))
    opened.on("requestfailed", lambda asked: closed(asked))
    yield opened
    context.close()
    assert [told for told in complaints if not any(noise in told for noise in LEAVING)] == []


def trained(folder: Path, text: Path, length: int = 64) -> Path:
    """The tiny model after a few seconds of training: a random one would rightly be marked as broken."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(tokenizer(text.read_text())["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        starts = torch.randint(
            0, len(ids) - length, (1024 // length,), generator=torch.Generator().manual_seed(step)
        )
        batch = torch.stack([ids[start : start + length] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/config", timeout=10):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def recipe(served: SimpleNamespace, stages: list[dict], seed: int = 0) -> str:
    return json.dumps(
        {
            "model": served.model, "stages": stages, "seed": seed,
            "calibration": {"text": served.text, "samples": 4, "length": 32},
            "evaluation": {"text": served.text, "length": 64, "windows": 4},
        }
    )  # fmt: skip


def visit(page: Page, address: str) -> None:
    """Open an address and wait until what it loads by events is there.

    Gradio's client closes its stream after the last of them, and its server then forgets an event that came
    in that very moment: a click faster than most hands' would be lost.
    """
    streams = _STREAMS[page]
    streams.clear()
    page.goto(address)
    deadline = time.monotonic() + 60
    while not streams or not all(streams.values()):
        assert time.monotonic() < deadline, f"{address} still loads"
        page.wait_for_timeout(50)
    page.wait_for_timeout(50)


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")
