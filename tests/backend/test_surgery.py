"""Surgery on one linear: the same numbers as a run of that recipe, and the patient is whole afterwards."""

import json
import math

import pytest
import torch

from backend import surgery
from backend.errors import UserError
from backend.evaluate import Subject
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import Calibration, parse_recipe
from backend.surgery import operate
from tests.tiny import make_model, make_text

NAME = "model.layers.1.mlp.down_proj"
STAGES = [{"method": "quantize.gptq", "params": {"bits": 2, "group_size": 16}}]


@pytest.fixture
def patient(tmp_path):
    surgery._patient.cache_clear()
    folder = make_model(tmp_path / "model", max_position_embeddings=1024)
    text = make_text(tmp_path / "text.txt", 40_000)
    return str(folder), Calibration(text=f"file:{text}", samples=4, length=64)


def test_measures_what_a_run_of_that_recipe_measures(patient, host, tmp_path):
    model, calibration = patient
    found = operate(model, NAME, STAGES, calibration, host, silent)
    recipe = parse_recipe(
        {
            "model": model,
            "stages": [{**STAGES[0], "only": NAME}],
            "calibration": {**calibration.model_dump(), "order": "dense"},
            "evaluation": {
                "text": calibration.text,
                "length": 512,
                "windows": 4,
                "metrics": ["perplexity", "divergence"],
            },
        }
    )
    report = compress(recipe, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)
    scores = Subject(recipe, host, tmp_path / "a.safetensors", tmp_path / "scores", silent).scores
    assert found["kl"] == pytest.approx(float(scores.windows("kl").mean()), rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(float(scores.windows("nll").mean())), rel=1e-5)
    assert found["dense_perplexity"] == pytest.approx(
        math.exp(float(scores.windows("dense_nll").mean())), rel=1e-5
    )
    (row,) = report.layers
    assert (found["bytes"], found["error"]) == (row["bytes"], pytest.approx(row["error"]))
    assert found["kl"] > 0
    json.dumps(found)


def test_a_stage_with_a_text_of_its_own_is_refused(patient, host):
    model, calibration = patient
    eora = {"method": "compensate.eora", "params": {"rank": 2, "text": "wikipedia-fr"}}
    with pytest.raises(UserError, match="one text serves all stages"):
        operate(model, NAME, [*STAGES, eora], calibration, host, silent)


def test_the_next_operation_finds_the_patient_whole(patient, host):
    model, calibration = patient
    first = operate(model, NAME, STAGES, calibration, host, silent)
    opened = surgery._patient(model, calibration.text, host)[0]
    assert isinstance(opened.model.get_submodule(NAME), torch.nn.Linear)
    operate(model, "model.layers.0.self_attn.q_proj", STAGES, calibration, host, silent)
    again = operate(model, NAME, STAGES, calibration, host, silent)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_an_operation_that_is_stopped_leaves_the_patient_whole(patient, host):
    model, calibration = patient

    class Stopped(Exception):
        pass

    def stop(update):
        if update.stage == "measure":
            raise Stopped

    with pytest.raises(Stopped):
        operate(model, NAME, STAGES, calibration, host, stop)
    opened = surgery._patient(model, calibration.text, host)[0]
    assert isinstance(opened.model.get_submodule(NAME), torch.nn.Linear)


def test_answers_stand_beside_those_of_the_dense_model(patient, host):
    model, calibration = patient
    found = operate(model, NAME, STAGES, calibration, host, silent)
    assert [answer["prompt"] for answer in found["answers"]] == list(surgery.PROMPTS)
    assert all(answer["dense"] and answer["changed"] for answer in found["answers"])


@pytest.mark.parametrize(
    ("layer", "stages", "told"),
    [
        ("model.layers.7.mlp.down_proj", STAGES, "is no linear"),
        (NAME, [], "choose one or more methods"),
        (NAME, [{"method": "allocate.owl"}, {"method": "prune.wanda"}], "choose one or more methods"),
        (NAME, [{"method": "quantize.hlq", "params": {"group_size": 48}}], "does not divide"),
        (NAME, [{"method": "quantize.nothing"}], "no such method"),
    ],
)
def test_what_cannot_be_operated_is_refused_in_one_sentence(patient, host, layer, stages, told):
    model, calibration = patient
    with pytest.raises(UserError, match=told):
        operate(model, layer, stages, calibration, host, silent)
