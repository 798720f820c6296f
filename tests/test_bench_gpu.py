"""The bench of GPUs runs to its end on a rehearsed one."""

import re
import subprocess
import sys

import pytest

from app import main as app
from bench import gpu
from tests.gpu import test_methods
from tests.rehearsal import rehearsal

SMALL = ["--shape", "tiny", "--samples", "4", "--length", "32", "--product", "64"]


@pytest.fixture(autouse=True)
def device(monkeypatch, tmp_path):
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path))
    monkeypatch.setenv("PARETOSCOPE_DEVICE", "auto")


def test_every_chain_has_a_row_and_answers_like_those_of_the_cpu(capsys):
    with rehearsal():
        gpu.main(SMALL)
    out = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("|")[2:]]
        for line in out.splitlines()
        if line.startswith("| tiny")
    ]
    assert [row[0] for row in rows] == ["dense", *gpu.CHAINS]
    assert all(row[1] == "2 of 2" and float(row[5]) > 0 for row in rows)
    assert all(float(row[2]) >= 0 for row in rows[1:])
    apart = re.findall(r"tiny model, (.+): answers (\S+) from", out)
    assert [name for name, _ in apart] == list(gpu.CHAINS)
    assert all(float(far) < 0.05 for _, far in apart)
    assert out.endswith("s in all\n")


@pytest.mark.parametrize("name", test_methods.METHODS)
def test_what_is_asked_of_a_real_gpu_can_be_asked(name):
    with rehearsal():
        test_methods.test_a_layer_loses_on_the_gpu_what_it_loses_on_the_cpu(name)


def test_chains_that_do_not_fit_the_time_are_left_out_and_named(capsys):
    with rehearsal():
        gpu.main([*SMALL, "--seconds", "0"])
    out = capsys.readouterr().out
    assert out.count("left out: no time") == len(gpu.CHAINS)


@pytest.mark.parametrize(("name", "tables", "weights"), [("1B", 1, 1_235_814_400), ("8B", 2, 8_030_261_248)])
def test_the_shapes_are_those_of_llama_3(name, tables, weights):
    shape = gpu.SHAPES[name]
    narrow = shape.hidden * shape.shared_heads // shape.heads
    block = 2 * shape.hidden * (shape.hidden + narrow + 1) + 3 * shape.hidden * shape.intermediate
    beside = shape.hidden * (tables * shape.vocabulary + 1)
    assert shape.whole * block + beside == weights


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("PARETOSCOPE_DEVICE", "cpu")
    assert app(["bench", "gpu"]) == 1
    assert "no CUDA device is in use here; allowed: a machine with one" in capsys.readouterr().err


def test_it_needs_neither_pages_nor_queue():
    told = (
        "import sys, bench.gpu; print(sorted({'gradio', 'dbos', 'plotly', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
