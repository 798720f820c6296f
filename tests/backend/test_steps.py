"""The steps as the child processes call them."""

import os
from itertools import pairwise

import pytest
import torch

from backend.progress import Update
from backend.steps import generate
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
