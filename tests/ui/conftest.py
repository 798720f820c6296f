"""A store of made-up runs, and the application over it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from backend.host import Host
from backend.jobs import Jobs
from tests.tiny import make_model, make_text
from tests.ui import made_up


@pytest.fixture
def host(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return replace(Host.at(tmp_path / "home"), roots=(tmp_path_factory.getbasetemp(),))


@pytest.fixture
def jobs(host: Host) -> Iterator[Jobs]:
    opened = Jobs(host)
    yield opened
    opened.close()


@pytest.fixture
def filled(jobs: Jobs) -> list[str]:
    """Ids of the made-up runs: dense first, broken last."""
    return made_up.fill(jobs.database)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny real model and a text, in a folder that the host lets in."""
    folder = tmp_path_factory.mktemp("tiny")
    text = make_text(folder / "text.txt")
    return SimpleNamespace(model=str(make_model(folder / "model")), text=f"file:{text}")


@pytest.fixture
def visitor() -> gr.Request:
    return gr.Request(username=None)
