"""The walk with gradients: what a method is shown of a block, and how an interrupted run goes on."""

from collections import Counter
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.artifacts import open_artifact, read_parts
from backend.inputs import Rotated
from backend.parts import Dense, combined
from backend.pipeline import compress
from backend.progress import silent
from backend.solvers.blockwise import gradients
from backend.text import calibration
from tests.methods.models import asked
from tests.tiny import make_model

HLQ = {"method": "quantize.hlq", "params": {"bits": 2, "group_size": 16}}
TUNE = {"method": "recover.blocks", "params": {"samples": 8, "epochs": 2}}
WATCH = {"method": "recover.watch"}


class Stopped(Exception):
    pass


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model", num_hidden_layers=3)


def run(host, tmp_path, model, *stages, name="a", progress=silent):
    artifact = tmp_path / f"{name}.safetensors"
    report = compress(asked(model, tmp_path, *stages), host, artifact, tmp_path / f"scratch-{name}", progress)
    return artifact, report


def states_of(model, ids, block):
    """States in front of and behind a block of a model, from hooks on it."""
    seen = {}
    hooked = model.model.layers[block]
    handles = [
        hooked.register_forward_pre_hook(lambda module, given: seen.setdefault("in", given[0])),
        hooked.register_forward_hook(lambda module, given, out: seen.setdefault("out", out)),
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return seen["in"], seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]


def same(a, b):
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_block_shows_the_compressed_states_the_dense_outputs_and_runs_as_in_the_model(
    host, tmp_path, model, watched
):
    shown = []

    def look(work):
        for block in work.blocks(6, 4):
            with gradients():
                linears = {
                    name: partial(linear, weight=layer.now, bias=block.biases[name])
                    for name, layer in block.layers.items()
                }
                made = torch.cat([block.outputs(some, linears) for some in block.inputs.split(5)])
                plain = block.outputs(block.inputs[:3], {})
            shown.append((block.inputs, block.targets, made, plain))

    watched(look)
    artifact, _ = run(host, tmp_path, model, HLQ, WATCH)
    dense = AutoModelForCausalLM.from_pretrained(model).eval()
    small = open_artifact(artifact, host).model
    ids = calibration(
        f"file:{tmp_path / 'text.txt'}", AutoTokenizer.from_pretrained(model), 8, 64, 0, host
    ).ids[:6]
    assert len(shown) == 3
    for number, (inputs, targets, made, plain) in enumerate(shown):
        close = {"rtol": 1e-4, "atol": 1e-5}
        before, after = states_of(small, ids, number)
        torch.testing.assert_close(inputs, before, **close)
        torch.testing.assert_close(made, after, **close)
        torch.testing.assert_close(targets, states_of(dense, ids, number)[1], **close)
        if number == 0:
            torch.testing.assert_close(plain, targets[:3], **close)


def test_what_a_method_hands_back_is_in_the_model_for_the_next_block_and_for_good(
    host, tmp_path, model, watched
):
    seen = []

    def look(work):
        for block in work.blocks(4, 2):
            seen.append(block.inputs)
            for name, layer in block.layers.items():
                if name.endswith("down_proj"):
                    block.parts[name] = (Dense(layer.parts[0].shape, torch.zeros(layer.weight.shape)),)
            block.changed[f"model.layers.{block.number}.input_layernorm.weight"] = torch.full((32,), 0.5)

    watched(look)
    artifact, report = run(host, tmp_path, model, HLQ, WATCH)
    opened = open_artifact(artifact, host).model
    assert all(bool((block.input_layernorm.weight == 0.5).all()) for block in opened.model.layers)
    parts = read_parts(artifact)
    assert all(
        (float(combined(made).abs().max()) == 0) == name.endswith("down_proj") for name, made in parts.items()
    )
    ids = calibration(
        f"file:{tmp_path / 'text.txt'}", AutoTokenizer.from_pretrained(model), 8, 64, 0, host
    ).ids[:4]
    for number, inputs in enumerate(seen):
        torch.testing.assert_close(inputs, states_of(opened, ids, number)[0], rtol=1e-4, atol=1e-5)
    rows = [row["layer"] for row in report.layers if row["method"] == "recover.watch"]
    assert rows == [f"model.layers.{number}.mlp.down_proj" for number in range(3)]


def test_a_run_killed_inside_a_block_goes_on_with_that_block_and_ends_the_same(host, tmp_path, model):
    whole, _ = run(host, tmp_path, model, HLQ, TUNE, name="whole")

    def stop(update):
        if update.stage == "recover.blocks" and update.detail.startswith("block 2 of 3, epoch 2"):
            raise Stopped

    with pytest.raises(Stopped):
        run(host, tmp_path, model, HLQ, TUNE, name="cut", progress=stop)
    kept = tmp_path / "scratch-cut" / "stage-2-block-000.safetensors"
    written = kept.stat().st_mtime_ns
    assert not (tmp_path / "scratch-cut" / "stage-2-block-001.safetensors").exists()
    told = Counter()
    resumed, report = run(
        host, tmp_path, model, HLQ, TUNE, name="cut",
        progress=lambda update: told.update([update.detail[:7]] if "epoch" in update.detail else []),
    )  # fmt: skip
    assert set(told) == {"block 2", "block 3"}
    assert kept.stat().st_mtime_ns == written
    assert same(resumed, whole)
    assert len(report.layers) == 2 * 3 * 7


def test_a_change_of_the_model_is_made_again_when_a_run_goes_on(host, tmp_path, model, watched):
    def look(work):
        for block in work.blocks(4, 2):
            if block.number == 2 and stop:
                raise Stopped
            name = f"model.layers.{block.number}.input_layernorm.weight"
            block.changed[name] = torch.full((32,), 0.5) + block.inputs.std()

    watched(look)
    stop = False
    whole, _ = run(host, tmp_path, model, HLQ, WATCH, name="whole")
    stop = True
    with pytest.raises(Stopped):
        run(host, tmp_path, model, HLQ, WATCH, name="cut")
    stop = False
    resumed, _ = run(host, tmp_path, model, HLQ, WATCH, name="cut")
    again, _ = run(host, tmp_path, model, HLQ, WATCH, name="cut")
    assert same(resumed, whole)
    assert same(again, whole)


def test_progress_inside_a_block_rises_and_can_stop_the_work(host, tmp_path, model):
    seen = []
    run(host, tmp_path, model, HLQ, TUNE, progress=lambda update: seen.append(update))
    tuned = [update for update in seen if update.stage == "recover.blocks"]
    shares = [update.done / update.total for update in tuned]
    assert shares == sorted(shares)
    assert len(set(shares)) > 3 * 2 * 8

    def stop(update):
        if update.stage == "recover.blocks" and "epoch" in update.detail:
            raise Stopped

    with pytest.raises(Stopped):
        run(host, tmp_path, model, HLQ, TUNE, name="b", progress=stop)
    assert not list((tmp_path / "scratch-b").glob("stage-2*"))


def test_what_follows_sees_inputs_turned_by_a_part_that_was_handed_back(host, tmp_path, model, watched):
    def look(work):
        for block in work.blocks(4, 2):
            name, layer = next((name, layer) for name, layer in block.layers.items() if "up_proj" in name)
            turn = Rotated((layer.weight.shape[0], layer.weight.shape[1]))
            block.parts[name] = (Dense(turn.shape, turn.of_weight(layer.weight)), turn)

    watched(look)
    first = HLQ | {"only": "*down_proj"}
    wanda = {"method": "prune.wanda", "params": {"sparsity": 0.1}, "only": "*[pqv]_proj"}
    artifact, report = run(host, tmp_path, model, first, WATCH, wanda)
    kinds = {row["layer"]: row["error_kind"] for row in report.layers if row["method"] == "prune.wanda"}
    assert {name for name, kind in kinds.items() if kind == "output"} == {
        f"model.layers.{number}.mlp.up_proj" for number in range(3)
    }
    assert max(row["error"] for row in report.layers if row["method"] == "prune.wanda") < 0.05
    assert [part.kind for part in read_parts(artifact)["model.layers.0.mlp.up_proj"]] == ["rotated", "sparse"]
