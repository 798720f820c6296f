"""What hooks gather of a linear's inputs, against the inputs themselves."""

import torch
from torch import nn

from backend.statistics import Gatherer, read_statistics, write_statistics
from backend.views import most


def gathered(batches, need):
    model = nn.ModuleDict({"a": nn.Linear(8, 4)})
    with Gatherer(model, [["a"]], {"a": need}) as gatherer:
        for batch in batches:
            gatherer.feed(lambda batch=batch: model["a"](batch))
    return gatherer.of(["a"])


def inputs(tokens):
    return torch.randn(tokens, 8, generator=torch.Generator().manual_seed(1))


def test_a_sample_holds_tokens_of_the_text_drawn_from_all_of_it():
    x = inputs(4000)
    found = gathered(list(x.view(8, 1, 500, 8)), "inputs").sample
    rows = [int((x == row).all(dim=1).nonzero()[0]) for row in found]
    assert len(found) == len(set(rows)) == 512
    # Each eighth of the text has 64 of them, but for chance (standard deviation 7).
    assert all(30 < sum(start <= row < start + 500 for row in rows) < 98 for start in range(0, 4000, 500))


def test_a_short_text_is_the_sample():
    x = inputs(60)
    found = gathered(list(x.view(2, 1, 30, 8)), "inputs").sample
    assert sorted(found[:, 0].tolist()) == sorted(x[:, 0].tolist())


def test_nothing_is_kept_of_the_inputs_where_no_method_asks():
    x = inputs(60)[None]
    assert gathered([x], "gram").sample is None
    assert gathered([x], "inputs").gram is not None


def test_a_kept_file_holds_the_sample(tmp_path):
    found = gathered([inputs(60)[None]], "inputs")
    write_statistics(tmp_path / "one.safetensors", {"a": found})
    again = read_statistics(tmp_path / "one.safetensors", [["a"]], torch.device("cpu"))["a"]
    assert torch.equal(again.sample, found.sample)
    assert torch.allclose(again.gram, found.gram)


def test_the_most_of_some_needs_answers_all():
    assert most(["norms", "inputs", "gram"]) == "inputs"
    assert most(["nothing", "norms"]) == "norms"
    assert most([]) == "nothing"
