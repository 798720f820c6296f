"""Sets of answers: many prompts through many models."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend import jobs as asking
from backend.errors import UserError
from backend.host import Host
from backend.jobs import LONGEST_PROMPT, Jobs, group_ids
from store import results
from tests.tiny import make_model


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    opened = Jobs(replace(Host.at(tmp_path / "home"), roots=(tmp_path,), device="cpu"))
    yield opened
    opened.close()


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_model(tmp_path / "model"))


def test_a_set_is_asked_model_by_model_so_that_each_is_opened_once(
    jobs: Jobs, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[str] = []
    monkeypatch.setattr(asking, "enqueue_generation", lambda client, name: queued.append(name))
    set_id = jobs.generate_many(model, [None, None], [("one", {}), ("two", {"max_tokens": 4})])
    first, second = group_ids(set_id, 2)
    assert queued == [f"{first}-0", f"{second}-0", f"{first}-1", f"{second}-1"]
    found = results.generations(jobs.database, first, second)
    assert list(found["prompt"]) == ["one", "one", "two", "two"]
    assert list(found["settings"]) == [{}, {}, {"max_tokens": 4}, {"max_tokens": 4}]


def test_characters_that_nobody_sees_never_reach_a_model(jobs: Jobs, model: str) -> None:
    group = jobs.generate(model, None, "a\x00b\x1b[0m\r\nc", {})
    assert list(results.generations(jobs.database, group)["prompt"]) == ["ab[0m\nc"]
    with pytest.raises(UserError, match="the prompt has 0 characters"):
        jobs.generate(model, None, "\x00\x07", {})


def test_an_empty_prompt_needs_tokens_to_begin_with(jobs: Jobs, model: str) -> None:
    group = jobs.generate(model, None, "", {"begin": [5, 6]})
    assert results.generations(jobs.database, group)["settings"][0] == {"begin": [5, 6]}
    with pytest.raises(UserError, match="begin"):
        jobs.generate(model, None, "", {"begin": [-1]})


def test_sets_that_are_too_large_are_refused_before_anything_is_kept(jobs: Jobs, model: str) -> None:
    before = results.data_version(jobs.database)
    for runs, questions, told in (
        ([None], [], "0 prompts"),
        ([None], [("a", {})] * 41, "41 prompts"),
        ([None] * 9, [("a", {})], "9 answers"),
        ([None], [("a", {}), ("b" * (LONGEST_PROMPT + 1), {})], f"{LONGEST_PROMPT + 1} characters"),
        ([None], [("a", {}), ("b", {"seed": -1})], "seed"),
        (["nothing"], [("a", {})], "no run"),
    ):
        with pytest.raises(UserError, match=told):
            jobs.generate_many(model, runs, questions)
    assert results.data_version(jobs.database) == before
