"""What searches are told of levels, against runs that store them."""

import pytest
import torch

from backend.artifacts import load_model, open_artifact, read_parts
from backend.checkpoints import Checkpoints
from backend.facts import facts
from backend.levels import Level, build
from backend.linear import CompressedLinear
from backend.parts import combined
from backend.pipeline import Walk, compress
from backend.progress import silent
from backend.recipe import Calibration, parse_recipe
from backend.registry import discover
from backend.report import Report
from backend.text import held_out
from backend.trials import Trials, folder_of
from tests.tiny import make_model, make_text

RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}
GPTQ = {"method": "quantize.gptq", "params": {"bits": 3, "group_size": 16}}
FISHER = {"method": "allocate.fisher", "params": {"bits": 3.0}}


class Setting:
    def __init__(self, tmp_path, host, model_type="llama"):
        self.tmp_path, self.host, self.count = tmp_path, host, 0
        self.model = str(make_model(tmp_path / "model", model_type))
        self.text = f"file:{make_text(tmp_path / 'text.txt')}"

    def recipe(self, *stages, order="dense", **fields):
        return parse_recipe(
            {
                "model": self.model,
                "stages": list(stages),
                "calibration": {"text": self.text, "samples": 4, "length": 64, "order": order},
                "evaluation": {"text": self.text, "length": 64, "windows": 1, "metrics": ["perplexity"]},
                **fields,
            }
        )

    def trials(self, *stages, at=1, **fields):
        recipe = self.recipe(*stages, **fields)
        layout = facts(self.model, self.host)
        opened = load_model(layout, self.host)
        self.count += 1
        self.walk = Walk(
            recipe, layout, opened, self.host, self.tmp_path / f"scratch-{self.count}", silent,
            Report(opened.device),
        )  # fmt: skip
        numbered = list(enumerate(recipe.stages, start=1))
        for number in range(1, at):
            stage = recipe.stages[number - 1]
            method = discover().methods[stage.method]
            if method.shape == "work":
                self.walk.whole(number, stage, method)
            else:
                self.walk.blocks([(number, stage)])
        return Trials(self.walk, at, recipe.stages[at - 1].method, numbered[at:])

    def artifact(self, *stages, **fields):
        self.count += 1
        path = self.tmp_path / f"{self.count}.safetensors"
        compress(self.recipe(*stages, **fields), self.host, path, self.tmp_path / f"run-{self.count}", silent)
        return path

    def windows(self):
        return held_out(self.text, self.walk.tokenizer, 4, 64, (4, 64, 0), self.host).ids


@pytest.fixture
def setting(tmp_path, host):
    return Setting(tmp_path, host)


@torch.inference_mode()
def kl(opened, dense, ids):
    ours = opened.model(input_ids=ids).logits.double().log_softmax(-1)
    theirs = dense.model(input_ids=ids).logits.double().log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def mixed(choices, step=1):
    return [(step * number) % len(choices.values) for number in range(len(choices.linears))]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_the_measured_divergence_is_that_of_the_run_that_stores_the_plan(tmp_path, host, model_type):
    setting = Setting(tmp_path, host, model_type)
    trials = setting.trials(FISHER, GPTQ)
    found = trials.choices("bits", (2, 3, 4))
    dense = load_model(facts(setting.model, host), host)
    for step in (1, 2):
        plan = mixed(found, step)
        artifact = setting.artifact(GPTQ, plan=found.plan(plan))
        stored = read_parts(artifact)
        sizes = [sum(part.bits for part in stored[name]) // 8 for name in found.linears]
        assert sizes == [row[level] for row, level in zip(found.bytes, plan, strict=True)]
        expected = kl(open_artifact(artifact, host), dense, setting.windows()[[0, 2]])
        assert found.divergence(plan, [0, 2]) == pytest.approx(expected, rel=1e-4)


def test_candidates_leave_nothing_behind(setting):
    trials = setting.trials(FISHER, RTN)
    before = {name: tensor.clone() for name, tensor in setting.walk.model.state_dict().items()}
    found = trials.choices("bits", (2, 3, 4))
    first, second = mixed(found), mixed(found, 2)
    once = [found.divergence(plan, [1]) for plan in (first, second)]
    assert once[0] != once[1]
    assert [found.divergence(plan, [1]) for plan in (second, first)] == once[::-1]
    assert any(isinstance(module, CompressedLinear) for module in setting.walk.model.modules())
    trials.restore()
    after = setting.walk.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(isinstance(module, CompressedLinear) for module in setting.walk.model.modules())


def test_predictions_are_of_the_dense_model_even_while_a_candidate_is_in_it(setting):
    found = setting.trials(FISHER, RTN).choices("bits", (2, 4, 8))
    predicted = found.predicted()
    found.divergence(mixed(found), [0])
    assert found.predicted() == predicted
    assert len(predicted) == 14
    assert all(row == sorted(row, reverse=True) and row[-1] > 0 for row in predicted)


def test_errors_are_those_of_the_outputs(setting):
    trials = setting.trials(FISHER, RTN)
    found = trials.choices("bits", (2, 4))
    walk = setting.walk
    kept = {layer.name: (layer.weight, layer.statistics.gram) for layer in walk._survey("x", "gram")}
    for bits, number in ((2, 0), (4, 1)):
        stored = read_parts(setting.artifact({**RTN, "params": {**RTN["params"], "bits": bits}}))
        for name, errors in zip(found.linears, found.errors, strict=True):
            weight, gram = (tensor.double() for tensor in kept[name])
            lost = weight - combined(stored[name]).double()
            expected = torch.trace(lost @ gram @ lost.T) / torch.trace(weight @ gram @ weight.T)
            assert errors[number] == pytest.approx(float(expected), rel=1e-3)


def test_levels_of_the_budget_page_are_not_made_again(setting, host):
    text = Calibration(text=setting.text, samples=4, length=64)
    levels = tuple(
        Level(f"{bits}", ({"method": "quantize.gptq", "params": {"group_size": 16, "bits": bits}},))
        for bits in (2, 3)
    )
    made = build(setting.model, text, levels, host, silent)
    files = {file: file.stat().st_mtime_ns for file in made.folder.glob("stage-*")}
    setting.trials(FISHER, GPTQ, order="sequential").choices("bits", (2, 3))
    assert {file: file.stat().st_mtime_ns for file in made.folder.glob("stage-*")} == files
    assert len(list((host.cache / "levels").iterdir())) == 1
    assert made.folder == folder_of(facts(setting.model, host), text, host)


def test_only_linears_that_a_later_stage_gives_the_bits_are_planned(setting):
    only = {**RTN, "only": "*mlp*"}
    found = setting.trials(FISHER, only).choices("bits", (2, 3))
    assert len(found.linears) == 6
    assert all("mlp" in name for name in found.linears)
    assert found.divergence(mixed(found), [0]) > 0


def test_what_was_pruned_before_is_what_levels_are_made_of(setting):
    half = {"method": "prune.wanda", "params": {"sparsity": 0.5}}
    trials = setting.trials(half, FISHER, GPTQ, at=2)
    found = trials.choices("bits", (2, 4))
    plan = mixed(found)
    artifact = setting.artifact(half, GPTQ, plan=found.plan(plan))
    dense = load_model(facts(setting.model, setting.host), setting.host)
    stored = read_parts(artifact)
    for name, level, sizes in zip(found.linears, plan, found.bytes, strict=True):
        assert sum(part.bits for part in stored[name]) // 8 == sizes[level]
    kept = Checkpoints(trials._kept._folder, torch.device("cpu"))
    for label in trials._labels:
        for parts in (kept.load(label, block) for block in range(2)):
            for name, pieces in parts.items():
                mask = stored[name][0].kept()
                assert bool((combined(pieces)[~mask] == 0).all())
    expected = kl(open_artifact(artifact, setting.host), dense, setting.windows()[[3]])
    # The run takes the statistics of the pruned model's prefix alone; levels those of the whole pruned model.
    assert found.divergence(plan, [3]) == pytest.approx(expected, rel=0.5)


def test_a_finished_plan_is_taken_up_and_not_searched_again(setting, monkeypatch):
    recipe = setting.recipe(FISHER, RTN)
    path, scratch = setting.tmp_path / "a.safetensors", setting.tmp_path / "scratch"
    report = compress(recipe, setting.host, path, scratch, silent)
    assert any(phase.startswith("stage 1") for phase in report.seconds)
    first = read_parts(path)

    def gone(*given):
        raise AssertionError("searched again")

    monkeypatch.setattr(Trials, "choices", gone)
    for file in scratch.glob("stage-*"):
        file.unlink()
    compress(recipe, setting.host, path, scratch, silent)
    again = read_parts(path)
    assert all(torch.equal(combined(first[name]), combined(again[name])) for name in first)


def test_making_levels_counts_as_the_allocate_stage_alone(setting):
    path = setting.tmp_path / "a.safetensors"
    report = compress(setting.recipe(FISHER, RTN), setting.host, path, setting.tmp_path / "s", silent)
    assert len(report.layers) == 14
    assert {row["stage"] for row in report.layers} == {2}
    assert report.seconds["stage 1, allocate.fisher"] > report.seconds["stage 2, quantize.rtn"]
    assert report.calibration["samples"] == 4


@pytest.mark.parametrize("transform", ["transform.hadamard", "transform.smoothquant"])
def test_levels_are_made_of_the_model_as_a_transform_left_it(setting, transform):
    stages = ({"method": transform}, FISHER, GPTQ)
    found = setting.trials(*stages, at=2).choices("bits", (2, 3, 8))
    plan = mixed(found)
    artifact = setting.artifact(stages[0], GPTQ, plan=found.plan(plan))
    dense = load_model(facts(setting.model, setting.host), setting.host)
    stored = read_parts(artifact)
    sizes = [sum(part.bits for part in stored[name]) // 8 for name in found.linears]
    assert sizes == [row[level] for row, level in zip(found.bytes, plan, strict=True)]
    expected = kl(open_artifact(artifact, setting.host), dense, setting.windows()[[0, 2]])
    assert found.divergence(plan, [0, 2]) == pytest.approx(expected, rel=1e-2)
    # At 8 bits hardly anything changed, in whatever coordinates the level is stored.
    assert all(row[2] < 0.01 * row[0] for row in found.predicted())
