"""What tests of the backend stand on: a data home of their own, on the CPU."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from backend.host import Host
from backend.jobs import Jobs
from backend.recipe import Recipe, parse_recipe
from backend.registry import Method, discover
from tests.backend.queueing import WORKERS, WorkerProcess
from tests.postgres import fresh_url

_seeds = iter(range(10_000))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model; links to it carry in their names how the stand-in steps behave."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roots(model: Path) -> Iterator[None]:
    """Models of the tests may be used, silent workers are given up soon, and none outlives its module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARETOSCOPE_ROOTS", str(model.parent))
        patch.setenv("PARETOSCOPE_STALE_AFTER", "3")
        yield
    for worker in WORKERS:
        worker.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def ask(model: Path, roots: None) -> Callable[..., Recipe]:
    """A recipe nobody asked for before, on a model of the given behaviour."""

    def recipe(behaviour: str = "plain", **fields: Any) -> Recipe:
        link = model.parent / behaviour
        if not link.exists():
            link.symlink_to(model)
        evaluation = {
            "text": "wikipedia-en",
            "length": 64,
            "windows": 2,
            "metrics": ["divergence", "perplexity"],
        }
        asked = {"model": str(link), "seed": next(_seeds), "evaluation": evaluation, **fields}
        return parse_recipe(asked)

    return recipe


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, roots: None) -> Iterator[Jobs]:
    """A home with a worker that most tests can share."""
    home = tmp_path_factory.mktemp("home")
    worker = WorkerProcess(home)
    jobs = Jobs(Host.at(home))
    yield jobs
    jobs.close()
    worker.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def alone(
    request: pytest.FixtureRequest, tmp_path: Path, roots: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Jobs]:
    """A home without a worker; what its runs and the engine stand in is SQLite or PostgreSQL."""
    with ExitStack() as held:
        if request.param == "postgresql":
            monkeypatch.setenv("PARETOSCOPE_DATABASE_URL", held.enter_context(fresh_url()))
        jobs = Jobs(Host.at(tmp_path / "home"))
        held.callback(jobs.close)
        yield jobs


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Makes a method, `recover.watch`, of a function over the work."""

    def make(look: Callable[..., Any]) -> None:
        bare: Any = discover().methods["quantize.rtn"].params.__bases__[0]

        class Empty(bare):
            pass

        found = Method("recover.watch", "recover", "watch", "work", look, "norms", "arXiv:0", Empty, None, "")
        monkeypatch.setitem(discover().methods, "recover.watch", found)

    return make
