"""The steps as the child processes call them."""

import os
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import read_parts
from backend.errors import UserError
from backend.export import packed_path
from backend.host import Host
from backend.parts import combined
from backend.progress import Update
from backend.recipe import parse_recipe
from backend.sampling import printable
from backend.steps import compress, export, generate
from tests.tiny import make_model


def test_an_answer_is_written_by_few_threads_and_told_as_it_grows(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_ROOTS", str(tmp_path))
    monkeypatch.setenv("PARETOSCOPE_DEVICE", "cpu")
    model, told = make_model(tmp_path / "model"), []
    cores, before = os.cpu_count() or 1, torch.get_num_threads()
    torch.set_num_threads(cores)

    def note(update: Update) -> None:
        told.append((update.detail, torch.get_num_threads()))

    try:
        made = generate(str(model), None, "the prompt", {"max_tokens": 6}, str(tmp_path / "home"), note)
    finally:
        torch.set_num_threads(before)
    texts, threads = zip(*told, strict=True)
    assert set(threads) == {max(1, cores // 4)}
    assert texts[-1] == made["text"]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


@pytest.fixture
def home(tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PARETOSCOPE_ROOTS", str(tmp_path))
    monkeypatch.setenv("PARETOSCOPE_DEVICE", "cpu")
    return str(tmp_path / "home")


def test_the_same_answer_is_never_written_twice(tmp_path, home) -> None:
    model, told = make_model(tmp_path / "model"), []
    first = generate(str(model), None, "the prompt", {"max_tokens": 6}, home, told.append)
    written = len(told)
    assert generate(str(model), None, "the prompt", {"max_tokens": 6}, home, told.append) == first
    assert len(told) == written, "it was kept"
    other = generate(str(model), None, "the prompt", {"max_tokens": 7}, home, told.append)
    assert other["tokens"][:6] == first["tokens"]
    assert len(told) > written
    # Other weights under the same name are another model.
    make_model(model, hidden_size=64)
    assert generate(str(model), None, "the prompt", {"max_tokens": 6}, home, told.append) != first


def test_an_answer_goes_on_from_the_tokens_that_it_was_given(tmp_path, home) -> None:
    model = str(make_model(tmp_path / "model"))
    free = generate(model, None, "the prompt", {"max_tokens": 6}, home, lambda update: None)
    ids = [token for token, _ in free["tokens"]]
    again = {"begin": ids[:2], "max_tokens": 4}
    assert generate(model, None, "the prompt", again, home, lambda update: None)["tokens"] == free["tokens"]
    forced = {"begin": [*ids[:2], 40], "max_tokens": 3}
    made = generate(model, None, "the prompt", forced, home, lambda update: None)
    assert [token for token, _ in made["tokens"]][:3] == forced["begin"]
    assert len(made["tokens"]) == 6
    bare = generate(model, None, "", {"begin": [40, 50, 60], "max_tokens": 2}, home, lambda update: None)
    assert len(bare["tokens"]) == 5
    with pytest.raises(UserError, match="no token 5000"):
        generate(model, None, "", {"begin": [5000], "max_tokens": 2}, home, lambda update: None)


def test_characters_that_nobody_sees_are_left_out_of_prompts() -> None:
    assert printable("a\x00b\r\nc\td\x1b[31m\ud800é\x85") == "ab\nc\td[31mé"


def test_an_export_is_one_file_that_holds_the_folder_and_is_made_once(tmp_path, home) -> None:
    host = Host.at(home)
    model = make_model(tmp_path / "model")
    recipe = parse_recipe(
        {
            "model": str(model),
            "stages": [{"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}}],
            "evaluation": {"length": 64},
        }
    )
    digest = "0123456789ab" + "0" * 52
    compressed = compress(recipe.to_json(), digest, home, lambda update: None)
    asked = (str(model), digest[:12], compressed["artifact"], "transformers", home, lambda update: None)
    made = export(*asked)
    packed = packed_path(host, digest[:12], "transformers")
    assert made == {"file": "0123456789ab-transformers.zip", "bytes": packed.stat().st_size}
    with zipfile.ZipFile(packed) as opened:
        assert opened.testzip() is None
        opened.extractall(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "0123456789ab-transformers")
    linear = again.model.layers[0].mlp.up_proj.weight
    stored = combined(read_parts(Path(compressed["artifact"]))["model.layers.0.mlp.up_proj"])
    assert torch.equal(linear.detach(), stored)
    before = packed.stat().st_mtime_ns
    assert export(*asked) == made
    assert packed.stat().st_mtime_ns == before
    assert [file.name for file in packed.parent.iterdir()] == [packed.name]
