"""Reading a text token by token, against transformers and against the evaluation."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import load_tokenizer
from backend.errors import UserError
from backend.evaluate import Subject
from backend.host import Host
from backend.progress import Update
from backend.recipe import parse_recipe
from backend.steps import artifact_path, compress, read
from tests.tiny import make_model, make_text


@pytest.fixture(scope="module")
def read_once(tmp_path_factory):
    """A tiny model, one run of it, the evaluation's own windows, and one of them as it was read."""
    folder = tmp_path_factory.mktemp("reading")
    patch = pytest.MonkeyPatch()
    patch.setenv("PARETOSCOPE_ROOTS", str(folder))
    patch.setenv("PARETOSCOPE_DEVICE", "cpu")
    model, text, home = make_model(folder / "model"), make_text(folder / "text.txt"), str(folder / "home")
    recipe = parse_recipe(
        {
            "model": str(model),
            "stages": [{"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}],
            "calibration": {"text": f"file:{text}", "samples": 2, "length": 32},
            "evaluation": {"text": f"file:{text}", "length": 48, "windows": 2},
        }
    )
    digest = "d" * 64
    compress(recipe.to_json(), digest, home, lambda update: None)
    host = Host.at(home)
    subject = Subject(recipe, host, artifact_path(host, digest), host.runs / digest, lambda update: None)
    tokenizer = load_tokenizer(str(model), host)
    window = "".join(tokenizer.convert_ids_to_tokens(subject.tokens.ids[1].tolist()))
    told: list[Update] = []
    made = read(str(model), [("run", str(subject.artifact))], home, told.append, text=window)
    yield model, home, subject, window, made, told
    patch.undo()


def test_the_readers_numbers_are_those_of_the_evaluation(read_once):
    _, _, subject, _, made, _ = read_once
    assert made["ids"] == subject.tokens.ids[1].tolist()
    run, scores = made["runs"]["run"], subject.scores
    assert len(run["loss"]) == len(made["ids"]) - 1
    for ours, theirs in ((run["loss"], "nll"), (run["kl"], "kl"), (made["dense"]["loss"], "dense_nll")):
        assert ours == pytest.approx(scores[theirs][1].tolist(), abs=1e-5)
        assert sum(ours) / len(ours) == pytest.approx(scores.windows(theirs)[1].item(), abs=1e-5)


def test_guesses_and_losses_are_those_of_the_plain_model(read_once):
    model, _, _, _, made, _ = read_once
    plain = AutoModelForCausalLM.from_pretrained(model)
    with torch.inference_mode():
        chances = plain(torch.tensor([made["ids"]])).logits[0].float().softmax(dim=1)
    for place, token in enumerate(made["ids"][1:]):
        assert made["dense"]["loss"][place] == pytest.approx(-math.log(chances[place, token]), abs=1e-4)
        best = chances[place].topk(5)
        assert [guess[0] for guess in made["dense"]["top"][place]] == best.indices.tolist()
        assert [guess[1] for guess in made["dense"]["top"][place]] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )


def test_the_rank_is_that_of_the_dense_models_first_guess(read_once):
    made = read_once[4]
    run = made["runs"]["run"]
    for place, rank in enumerate(run["rank"]):
        wanted = made["dense"]["top"][place][0][0]
        guesses = [token for token, _ in run["top"][place]]
        assert guesses.index(wanted) + 1 == rank if wanted in guesses else rank > 5
    assert 1 in run["rank"]
    assert max(run["rank"]) > 1


def test_progress_names_the_run_and_the_answer_can_be_kept_as_json(read_once):
    made, told = read_once[4:]
    assert [update.detail for update in told if update.stage == "read"] == ["dense", "run"]
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["pieces"][str(made["ids"][0])]
    assert not made["cut"]


def test_an_answer_is_read_by_its_exact_tokens_after_its_prompt(read_once):
    model, home = read_once[:2]
    made = read(str(model), [], home, lambda update: None, text="the", answer=[40, 41, 260 - 1])
    assert made["ids"][3:] == [40, 41, 259]
    assert made["answer"] == 3
    assert made["runs"] == {}
    assert len(made["dense"]["loss"]) == 5


def test_texts_that_are_too_short_are_refused_and_long_ones_cut(read_once):
    model, home = read_once[:2]
    for text in ("", "a"):
        with pytest.raises(UserError, match="at least 2"):
            read(str(model), [], home, lambda update: None, text=text)
    made = read(str(model), [], home, lambda update: None, text="word " * 20_000)
    assert made["cut"]
    assert len(made["ids"]) == 256, "the tiny model reads no more"
