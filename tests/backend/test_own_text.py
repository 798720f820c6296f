"""A stage with a text of its own: its statistics come from there, and nothing else changes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import load_tokenizer, read_parts
from backend.errors import UserError
from backend.estimate import estimate
from backend.identity import run_digest, with_absolute_paths
from backend.parts import combined
from backend.recipe import parse_recipe
from backend.text import calibration
from tests.methods.models import made
from tests.tiny import make_model, make_text
from ui.layer_map import seen_by

WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
NAME = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def texts(tmp_path):
    """The recipe's text, and one whose statistics are quite different."""
    general, task = make_text(tmp_path / "text.txt"), tmp_path / "task.txt"
    task.write_text(" ".join(str(7 * number % 90) + "?!" for number in range(3000)))
    return general, task


def eora(text="", **params):
    return {"method": "compensate.eora", "params": {"rank": 6, "text": text, **params}}


def inputs_of_block_one(model, parts, tokens):
    """X [tokens, in] of the second block's first linear, behind the compressed first block."""
    opened = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        for name, pieces in parts.items():
            if ".layers.0." in name:
                opened.get_submodule(name).weight.copy_(combined(pieces))
        seen = {}
        opened.get_submodule(NAME).register_forward_pre_hook(lambda module, x: seen.setdefault("x", x[0]))
        opened(tokens)
    return seen["x"].reshape(-1, 32).double(), opened.get_submodule(NAME).weight.detach()


@pytest.mark.parametrize("order", ["sequential", "true_sequential"])
def test_factors_are_the_best_ones_on_that_text_behind_the_compensated_block(host, tmp_path, texts, order):
    model = make_model(tmp_path / "model")
    artifact, _ = made(model, host, tmp_path, WANDA, eora(f"file:{texts[1]}"), order=order)
    parts = read_parts(artifact)
    tokenizer = load_tokenizer(str(model), host)
    left = {}
    for place in texts:
        tokens = calibration(f"file:{place}", tokenizer, 8, 64, 0, host).ids
        x, weight = inputs_of_block_one(model, parts, tokens)
        error = (weight - parts[NAME][0].dense()).double()
        optimum = torch.linalg.svdvals(x @ error.T)[6:].square().sum()
        left[place] = float((x @ (error - parts[NAME][1].dense().double()).T).square().sum() / optimum)
    assert left[texts[1]] == pytest.approx(1, rel=1e-3)
    assert left[texts[0]] > 1.1


def test_what_the_stages_before_it_made_is_what_they_make_alone(host, tmp_path, texts):
    model = make_model(tmp_path / "model")
    alone = read_parts(made(model, host, tmp_path, WANDA)[0])
    with_task = read_parts(made(model, host, tmp_path, WANDA, eora(f"file:{texts[1]}"))[0])
    for name, pieces in alone.items():
        assert torch.equal(with_task[name][0].mask, pieces[0].mask)
        assert torch.equal(with_task[name][0].values, pieces[0].values)


def test_both_texts_are_in_the_report(host, tmp_path, texts):
    model = make_model(tmp_path / "model")
    _, report = made(model, host, tmp_path, WANDA, eora(f"file:{texts[1]}"))
    assert report.calibration["text"] == f"file:{texts[0]}"
    assert report.calibration[f"text of a stage, file:{texts[1]}"]["text"] == f"file:{texts[1]}"


def test_in_dense_order_kept_statistics_are_not_mistaken_for_those_of_the_other_text(host, tmp_path, texts):
    model = make_model(tmp_path / "model")
    general, task, again = (
        read_parts(made(model, host, tmp_path, WANDA, eora(text), order="dense")[0])
        for text in ("", f"file:{texts[1]}", "")
    )
    assert not torch.allclose(general[NAME][1].dense(), task[NAME][1].dense(), atol=1e-4)
    assert torch.equal(general[NAME][1].dense(), again[NAME][1].dense())


def recipe_of(model, text, own, evaluated="wikipedia-en"):
    return parse_recipe(
        {
            "model": str(model), "stages": [WANDA, eora(own)],
            "calibration": {"text": text, "samples": 4, "length": 32},
            "evaluation": {"text": evaluated, "length": 32, "windows": 2},
        }
    )  # fmt: skip


def test_an_unknown_text_of_a_stage_is_refused_in_a_sentence(host, tmp_path, texts):
    model = make_model(tmp_path / "model")
    with pytest.raises(UserError, match="text 'wikitext3' is not known; take one of"):
        estimate(recipe_of(model, f"file:{texts[0]}", "wikitext3"), host)


def test_editing_the_text_of_a_stage_makes_another_run(host, tmp_path, texts):
    model = make_model(tmp_path / "model")
    recipe = recipe_of(model, "wikipedia-en", f"file:{texts[1]}")
    before = run_digest(recipe, host)
    texts[1].write_text("other words " * 500)
    assert run_digest(recipe, host) != before


def test_the_path_of_a_text_holds_for_a_worker_in_another_folder(tmp_path, texts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = with_absolute_paths(recipe_of("smollm2-135m-instruct", "wikipedia-en", "file:task.txt"))
    assert recipe.texts == ("wikipedia-en", f"file:{texts[1]}")
    assert parse_recipe(recipe.to_json()) == recipe


def test_the_error_before_a_text_of_its_own_was_seen_by_the_earlier_statistics(texts):
    def told(text):
        return {"stages": [{"method": "prune.magnitude", "params": {}}, eora(text)]}

    assert seen_by(told(""), NAME, 1) == "outputs"
    assert seen_by(told("c4"), NAME, 1) == "weights"
    assert seen_by(told("c4"), NAME, 2) == "outputs"


def test_levels_that_would_be_made_on_another_text_are_refused():
    planned = [{"method": "allocate.dp", "params": {}}, {"method": "quantize.gptq", "params": {}}]
    stages = [*planned, eora("wikipedia-fr")]
    with pytest.raises(UserError, match="makes every level on the text of the calibration"):
        parse_recipe({"model": "m", "stages": stages})
    assert parse_recipe({"model": "m", "stages": [*planned, eora()]})
