"""The walk: what feeds what, resuming, stopping, and what it does with bad models."""

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import backend.artifacts
import backend.pipeline
from backend.artifacts import open_artifact, read_parts
from backend.errors import UserError
from backend.facts import facts
from backend.models import fingerprint
from backend.parts import combined
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.registry import Method, discover
from tests.tiny import make_model, make_text

WANDA = {"method": "prune.wanda", "params": {"sparsity": 0.5}}
GPTQ = {"method": "quantize.gptq", "params": {"bits": 3, "group_size": 16}}
EORA = {"method": "compensate.eora", "params": {"rank": 4}}


class Stopped(Exception):
    pass


@pytest.fixture
def folder(tmp_path):
    return make_model(tmp_path / "model", num_hidden_layers=3)


@pytest.fixture
def text(tmp_path):
    return make_text(tmp_path / "text.txt")


def recipe_of(folder, text, *stages, **calibration):
    return parse_recipe(
        {
            "model": str(folder),
            "stages": list(stages),
            "calibration": {"text": f"file:{text}", "samples": 8, "length": 64, **calibration},
            "evaluation": {"text": f"file:{text}", "length": 64, "windows": 4},
        }
    )


def run(recipe, host, tmp_path, name="a", progress=silent):
    artifact = tmp_path / f"{name}.safetensors"
    report = compress(recipe, host, artifact, tmp_path / f"scratch-{name}", progress)
    return artifact, report


def test_statistics_come_from_the_compressed_prefix(host, folder, text, tmp_path):
    """A plain re-computation: inputs of block 1 after block 0 was pruned, scores from them."""
    recipe = recipe_of(folder, text, WANDA)
    artifact, _ = run(recipe, host, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    parts = read_parts(artifact)
    tokens = _calibration_tokens(recipe, host)
    with torch.no_grad():
        for name, pieces in parts.items():
            if ".layers.0." in name:
                model.get_submodule(name).weight.copy_(combined(pieces))
    seen = {}
    target = model.get_submodule("model.layers.1.self_attn.q_proj")
    target.register_forward_pre_hook(lambda module, inputs: seen.setdefault("x", inputs[0]))
    with torch.no_grad():
        model(tokens)
    x = seen["x"].reshape(-1, 32).double()
    scores = target.weight.double().abs() * x.norm(dim=0)
    kept = parts["model.layers.1.self_attn.q_proj"][0].kept()
    expected = torch.ones_like(kept)
    expected.scatter_(1, scores.argsort(dim=1)[:, :16], False)
    assert torch.equal(kept, expected)


def test_dense_order_takes_statistics_from_the_original_model_and_keeps_them(host, folder, text, tmp_path):
    recipe = recipe_of(folder, text, WANDA, order="dense")
    artifact, _ = run(recipe, host, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen = {}
    target = model.get_submodule("model.layers.2.mlp.down_proj")
    target.register_forward_pre_hook(lambda module, inputs: seen.setdefault("x", inputs[0]))
    with torch.no_grad():
        model(_calibration_tokens(recipe, host))
    scores = target.weight.double().abs() * seen["x"].reshape(-1, 64).double().norm(dim=0)
    kept = read_parts(artifact)["model.layers.2.mlp.down_proj"][0].kept()
    assert torch.equal(kept, torch.ones_like(kept).scatter_(1, scores.argsort(dim=1)[:, :32], False))

    stages = []
    again, _ = run(recipe, host, tmp_path, "b", lambda update: stages.append(update.stage + update.detail))
    assert not any("statistics" in stage or "embed" in stage for stage in stages)
    assert _same(artifact, again)


def test_the_three_orders_differ(host, folder, text, tmp_path):
    made = {
        order: run(recipe_of(folder, text, GPTQ, order=order), host, tmp_path, order)[0]
        for order in ("sequential", "true_sequential", "dense")
    }
    down = {order: combined(read_parts(file)["model.layers.1.mlp.down_proj"]) for order, file in made.items()}
    assert not torch.equal(down["sequential"], down["true_sequential"])
    assert not torch.equal(down["sequential"], down["dense"])
    first = {
        order: combined(read_parts(file)["model.layers.0.self_attn.q_proj"]) for order, file in made.items()
    }
    assert torch.equal(first["sequential"], first["dense"])


def test_a_run_that_was_stopped_goes_on_where_it_was(host, folder, text, tmp_path):
    recipe = recipe_of(folder, text, WANDA, GPTQ, EORA)
    whole, _ = run(recipe, host, tmp_path, "whole")

    def stop(update):
        if update.stage == "compress" and update.done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(recipe, host, tmp_path, "cut", stop)
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "scratch-cut").glob("*block*")}
    assert len(done) == 2
    layers = Counter()
    resumed, report = run(recipe, host, tmp_path, "cut", lambda update: layers.update([update.detail]))
    assert not any(name.startswith(("model.layers.0.", "model.layers.1.")) for name in layers)
    assert all((tmp_path / "scratch-cut" / name).stat().st_mtime_ns == time for name, time in done.items())
    assert _same(whole, resumed)
    assert len(report.layers) == 3 * 7 * 3


def test_the_same_recipe_gives_the_same_file(host, folder, text, tmp_path):
    recipe = recipe_of(folder, text, WANDA, GPTQ, EORA)
    assert _same(run(recipe, host, tmp_path, "a")[0], run(recipe, host, tmp_path, "b")[0])


def test_eora_after_pruning_and_quantizing_lowers_the_error_of_both(host, folder, text, tmp_path):
    _, report = run(recipe_of(folder, text, WANDA, GPTQ, EORA), host, tmp_path)
    for name in {row["layer"] for row in report.layers}:
        rows = [row for row in report.layers if row["layer"] == name]
        assert [row["method"] for row in rows] == ["prune.wanda", "quantize.gptq", "compensate.eora"]
        assert rows[2]["error"] < rows[1]["error"]
        assert rows[1]["sparsity"] == pytest.approx(0.5)
        assert rows[2]["rank"] == 4


def test_the_card_is_told_the_mean_curve_of_all_linears_also_when_a_run_goes_on(host, folder, text, tmp_path):
    recipe = recipe_of(folder, text, WANDA, EORA)
    whole = run(recipe, host, tmp_path)[1]
    (curve,) = whole.notes["stage 2, compensate.eora"].values()
    assert curve[0] == pytest.approx(1)
    assert curve == sorted(curve, reverse=True)
    rows = [row for row in whole.layers if row["stage"] == 2]
    assert len(rows) == 21
    assert not any("curves" in row for row in rows)
    # Errors are relative to the output, and the share to what was missed of it.
    before = {row["layer"]: row["error"] for row in whole.layers if row["stage"] == 1}
    left = sum(row["error"] / before[row["layer"]] for row in rows) / len(rows)
    assert curve[-1] == pytest.approx(left, rel=0.02)

    def stop(update):
        if update.stage == "compress" and update.done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(recipe, host, tmp_path, "again", stop)
    assert run(recipe, host, tmp_path, "again")[1].notes == whole.notes


def test_only_leaves_the_other_layers_dense(host, folder, text, tmp_path):
    artifact, _ = run(recipe_of(folder, text, {**WANDA, "only": "*.layers.1.mlp.*"}), host, tmp_path)
    assert set(read_parts(artifact)) == {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    dense = load_file(folder / "model.safetensors")
    kept = open_artifact(artifact, host).model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert torch.equal(kept, dense["model.layers.0.mlp.up_proj.weight"])


def test_the_text_is_not_run_past_the_last_block_that_is_asked_about(host, folder, text, tmp_path):
    first, report = run(recipe_of(folder, text, {**GPTQ, "only": "*.0.*"}), host, tmp_path, "first")
    assert "statistics" in report.seconds
    assert "outputs" not in report.seconds
    second, report = run(recipe_of(folder, text, GPTQ), host, tmp_path, "second")
    assert "outputs" in report.seconds
    ours, theirs = (read_parts(artifact)["model.layers.0.mlp.down_proj"] for artifact in (first, second))
    assert torch.equal(combined(ours), combined(theirs))


def test_methods_without_data_read_no_text(host, folder, tmp_path):
    recipe = recipe_of(
        folder, tmp_path / "missing.txt", {"method": "quantize.rtn", "params": {"group_size": 16}}
    )
    artifact, _ = run(recipe, host, tmp_path)
    assert artifact.exists()


def test_a_method_on_the_whole_model_may_plan_parameters_for_later_stages(
    host, folder, text, tmp_path, monkeypatch
):
    def allocate(work):
        work.plan["model.layers.0.mlp.up_proj"] = {"bits": 8}

    real = discover()
    gptq = real.methods["quantize.gptq"]
    planner = Method(
        "allocate.test", "allocate", "test", "work", allocate, "nothing", "arXiv:0", _Empty, None, ""
    )
    monkeypatch.setitem(real.methods, "allocate.test", planner)
    artifact, _ = run(recipe_of(folder, text, {"method": "allocate.test"}, GPTQ), host, tmp_path)
    widths = {name: pieces[0].width for name, pieces in read_parts(artifact).items()}
    assert widths.pop("model.layers.0.mlp.up_proj") == 8
    assert set(widths.values()) == {3}
    assert gptq is real.methods["quantize.gptq"]


def test_stages_before_and_after_a_whole_model_method_add_up(host, folder, text, tmp_path, monkeypatch):
    real = discover()
    nothing = Method(
        "recover.test",
        "recover",
        "test",
        "work",
        lambda work: None,
        "nothing",
        "arXiv:0",
        _Empty,
        None,
        "",
    )
    monkeypatch.setitem(real.methods, "recover.test", nothing)
    artifact, report = run(
        recipe_of(folder, text, WANDA, {"method": "recover.test"}, GPTQ, EORA), host, tmp_path
    )
    for pieces in read_parts(artifact).values():
        assert [piece.kind for piece in pieces] == ["grid", "lowrank"]
        assert float(pieces[0].kept().float().mean()) == pytest.approx(0.5)
    assert len(report.layers) == 3 * 7 * 3


def test_a_model_with_nan_weights_is_refused_by_name(host, folder, text, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"tensor model.layers.1.mlp.up_proj.weight holds NaN"):
        run(recipe_of(folder, text, WANDA), host, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_corrupt_safetensors_file_is_refused(damage, host, folder, text, tmp_path):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(
        {"cut": whole[: len(whole) // 2], "noise": b"\xff" * 64 + whole[64:], "empty": b""}[damage]
    )
    with pytest.raises(UserError, match="not a whole safetensors file"):
        run(recipe_of(folder, text, WANDA), host, tmp_path)


def test_missing_models_and_pickled_ones_are_refused(host, tmp_path, text):
    with pytest.raises(UserError, match=r"no config.json there"):
        facts(str(tmp_path), host)
    folder = make_model(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        facts(str(folder), host)
    with pytest.raises(UserError, match="not a model"):
        facts("what is this", host)
    with pytest.raises(UserError, match="outside the allowed folders"):
        facts("/etc", host)
    with pytest.raises(UserError, match="hub cannot be reached"):
        facts("nobody/nothing", host)


def test_a_text_shorter_than_a_window_is_refused_with_what_it_holds(host, folder, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(UserError, match="short"):
        run(recipe_of(folder, short, WANDA), host, tmp_path)


def test_a_full_disk_is_said_and_leaves_no_half_file(host, folder, text, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(backend.artifacts.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="the disk is full"):
        run(recipe_of(folder, text, WANDA), host, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob("*.writing"))


def test_the_fingerprint_follows_the_weights(host, folder):
    before = fingerprint(str(folder), host)
    assert before == fingerprint(str(folder), host)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert fingerprint(str(folder), host) != before


def test_metadata_says_what_the_artifact_is(host, folder, text, tmp_path):
    recipe = recipe_of(folder, text, WANDA)
    artifact, _ = run(recipe, host, tmp_path)
    metadata = backend.artifacts.read_metadata(artifact)
    assert json.dumps(metadata["recipe"], sort_keys=True, separators=(",", ":")) == recipe.to_json()
    assert metadata["fingerprint"] == fingerprint(str(folder), host)


class _Empty(discover().methods["quantize.rtn"].params.__bases__[0]):
    pass


def _calibration_tokens(recipe, host):
    wanted = recipe.calibration
    tokenizer = backend.artifacts.load_tokenizer(recipe.model, host)
    return backend.pipeline.calibration(
        wanted.text, tokenizer, wanted.samples, wanted.length, wanted.seed, host
    ).ids


def _same(a, b):
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
