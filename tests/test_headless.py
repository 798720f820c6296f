"""The commands without a page, as a person types them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import app
from backend.artifacts import open_artifact
from backend.host import Host
from backend.parts import combined
from tests.tiny import make_model, make_text

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environ(tmp_path):
    return {"PARETOSCOPE_HOME": str(tmp_path / "home"), "PARETOSCOPE_ROOTS": str(tmp_path)}


@pytest.fixture
def call(tmp_path, environ, monkeypatch, capsys):
    """What `python app.py ...` runs, with a home of its own; (exit code, stdout, stderr)."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = app.main([*map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def recipe(tmp_path):
    text = make_text(tmp_path / "text.txt")
    return {
        "model": str(make_model(tmp_path / "model")),
        "stages": [{"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}],
        "evaluation": {"text": f"file:{text}", "length": 64, "windows": 4},
    }


def test_run_prints_one_json_object_per_measurement_and_export_writes_both_formats(call, recipe, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    code, out, err = call("run", file)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    named = {row["metric"]: row for row in rows}
    assert {"perplexity", "divergence.kl", "size.packed", "size.file", "sanity.finite"} <= set(named)
    assert all(
        {"run", "value", "stderr", "n", "unit", "lower_is_better", "protocol", "seconds"} <= set(row)
        for row in rows
    )
    assert "evaluate" in err
    assert "warning" not in err

    run_id = rows[0]["run"]
    code, out, err = call("export", run_id, "--format", "safetensors", "--to", tmp_path / "packed")
    assert code == 0, err
    host = Host.from_environment({"PARETOSCOPE_HOME": str(tmp_path / "home"), "PARETOSCOPE_DEVICE": "cpu"})
    ours = open_artifact(tmp_path / "packed" / "artifact.safetensors", host).model
    assert (tmp_path / "packed" / "artifact.safetensors").stat().st_size == named["size.file"]["value"]

    code, out, err = call("export", run_id, "--format", "transformers", "--to", tmp_path / "plain")
    assert code == 0, err
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    ids = torch.arange(30)[None] + 4
    with torch.inference_mode():
        assert torch.equal(plain(ids).logits, ours(ids).logits)
    module = ours.get_submodule("model.layers.0.mlp.up_proj")
    assert torch.equal(plain.get_submodule("model.layers.0.mlp.up_proj").weight, combined(module.parts))

    code, _, err = call("export", run_id, "--format", "gguf", "--to", tmp_path / "other")
    assert code == 1
    assert "allowed: safetensors, transformers" in err
    code, _, err = call("export", run_id, "--format", "transformers", "--to", tmp_path / "plain")
    assert code == 1
    assert "not an empty folder" in err


def test_a_bad_recipe_is_one_sentence_on_stderr_and_exit_code_one(recipe, environ, tmp_path):
    recipe["stages"][0]["params"]["bits"] = 11
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py"), "run", "-"], input=json.dumps(recipe),
        capture_output=True, text=True, env=os.environ | environ, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: stage 1, quantize.rtn: bits is 11; allowed: a whole number from 2 to 8\n"


def test_a_sweep_runs_every_recipe_and_can_be_left_to_the_queue(call, recipe):
    recipe["stages"][0]["params"]["bits"] = [3, 4]
    code, out, err = call("sweep", "-", stdin=json.dumps(recipe))
    assert code == 0, err
    assert {json.loads(line)["chain"] for line in out.splitlines()} == {"rtn 3-bit g16", "rtn 4-bit g16"}
    code, out, err = call("sweep", "-", "--queue", stdin=json.dumps(recipe))
    assert code == 0, err
    assert [json.loads(line)["created"] for line in out.splitlines()] == [True, True]
    code, out, _ = call("sweep", "-", "--queue", stdin=json.dumps(recipe))
    assert [json.loads(line)["created"] for line in out.splitlines()] == [False, False]


def test_methods_lists_the_catalogue_as_json_lines(call):
    code, out, _ = call("methods")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {"quantize.gptq", "compensate.eora"} <= {row["id"] for row in rows}
    gptq = next(row for row in rows if row["id"] == "quantize.gptq")
    assert gptq["parameters"]["bits"]["minimum"] == 2
    assert gptq["paper"] == "arXiv:2210.17323"
    assert (gptq["claim"]["whose"], gptq["claim"]["paper_says"]) == ("paper", "")
    assert next(row for row in rows if row["id"] == "quantize.rtn")["claim"] is None


def test_run_warns_when_it_is_measured_on_the_text_it_was_calibrated_on(call, recipe):
    recipe["calibration"] = {"text": recipe["evaluation"]["text"], "samples": 2, "length": 32}
    recipe["evaluation"]["metrics"] = ["perplexity"]
    code, out, err = call("run", "-", stdin=json.dumps(recipe))
    assert code == 0, err
    assert "warning: calibration and evaluation read the same file" in err
    assert all(json.loads(line)["metric"] for line in out.splitlines())


def test_run_warns_when_a_stage_is_fitted_on_the_text_it_is_measured_on(call, recipe, tmp_path):
    eora = {"method": "compensate.eora", "params": {"rank": 2, "text": recipe["evaluation"]["text"]}}
    recipe["stages"] = [{"method": "prune.wanda", "params": {}}, eora]
    other = make_text(tmp_path / "other.txt")
    recipe["calibration"] = {"text": f"file:{other}", "samples": 2, "length": 32}
    recipe["evaluation"]["metrics"] = ["perplexity"]
    code, _, err = call("run", "-", stdin=json.dumps(recipe))
    assert code == 0, err
    assert "warning: calibration and evaluation read the same file" in err


def test_missing_files_runs_and_benches_are_said(call, tmp_path):
    for arguments, words in (
        (("run", tmp_path / "none.json"), "cannot be read"),
        (
            ("export", "0123456789ab", "--format", "transformers", "--to", tmp_path / "x"),
            "names no artifact",
        ),
        (
            ("bench", "nothing"),
            "there is no 'nothing'; allowed: compress, evaluation, gptq, gpu, head, memory",
        ),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        assert words in err


def test_claims_prints_a_verdict_with_paired_noise_and_fails_when_a_run_does(call, recipe, tmp_path):
    model = make_model(tmp_path / "wide", hidden_size=64, intermediate_size=128, head_dim=16)
    conditions = (
        "--model", model, "--text", recipe["evaluation"]["text"], "--calibration-samples", 4,
        "--calibration-length", 64, "--evaluation-windows", 4, "--evaluation-length", 64,
    )  # fmt: skip
    code, out, err = call("claims", "quantize.gptq", "compensate.svd", *conditions)
    assert code == 0, err
    rows = {row["method"]: row for row in map(json.loads, out.splitlines())}
    assert list(rows) == ["quantize.gptq", "compensate.svd"]
    gptq, svd = rows["quantize.gptq"], rows["compensate.svd"]
    assert gptq["verdict"] in ("holds", "does not hold", "within noise", "broken", "baseline broken")
    assert (gptq["whose"], gptq["paper_says"]) == ("paper", "")
    assert gptq["worse"]["chain"] == svd["worse"]["chain"] == "rtn 3-bit g64"
    assert err.count("rtn 3-bit g64\n") == 1, "a run that two claims share is done once"
    assert svd["better"]["size.packed"] > svd["worse"]["size.packed"]
    if "broken" not in gptq["verdict"]:
        assert gptq["stderr"] > 0
        apart = gptq["better"]["perplexity"] - gptq["worse"]["perplexity"]
        assert (apart < 0) == (gptq["difference"] < 0)

    # Groups of 64 do not divide the 32 inputs of the narrow model: told, and the exit code says so.
    code, out, err = call(
        "claims", "quantize.adadim", "prune.wanda", "--model", recipe["model"], *conditions[2:]
    )
    assert code == 1
    first, second = map(json.loads, out.splitlines())
    assert first["verdict"] == "not tested"
    assert "does not divide the 32 inputs" in first["better"]["failed"]
    assert second["verdict"] != "not tested"
    code, out, err = call("claims", "prune.wanda", *conditions, "--metrics", "perplexity")
    assert code == 0
    lean = json.loads(out)["better"]
    _, out, _ = call("claims", "prune.wanda", *conditions)
    whole = json.loads(out)["better"]
    assert lean["run"] != whole["run"]
    assert lean["perplexity"] == whole["perplexity"]
    code, _, err = call("claims", "prune.wanda", *conditions, "--metrics", "beauty")
    assert code == 1
    assert "beauty" in err
    code, _, err = call("claims", "quantize.rtn", *conditions)
    assert code == 1
    assert "'quantize.rtn' makes no claim" in err
