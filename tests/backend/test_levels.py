"""The level database: what is kept equals what a run stores, and plans go there and back."""

import pytest
import torch
from safetensors.torch import load_file

from backend.artifacts import read_parts
from backend.levels import DENSE, Level, build, choice_of, recipe_of, standard
from backend.parts import combined
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import Calibration
from tests.tiny import make_model, make_text


def level(name, *stages):
    return Level(name, tuple({"method": method, "params": params} for method, params in stages))


LEVELS = (
    DENSE,
    level("3", ("quantize.gptq", {"bits": 3, "group_size": 16})),
    level("2", ("quantize.gptq", {"bits": 2, "group_size": 16})),
    level("half", ("prune.sparsegpt", {"pattern": "2:4"}), ("quantize.gptq", {"bits": 4, "group_size": 32})),
)


@pytest.fixture
def made(tmp_path, host):
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")
    calibration = Calibration(text=f"file:{text}", samples=4, length=64)
    return build(str(folder), calibration, LEVELS, host, silent)


def test_a_plan_of_levels_stores_the_very_parts_of_the_database(made, host, tmp_path):
    choice = {name: number % len(LEVELS) for number, name in enumerate(made.layers)}
    evaluation = {"text": made.calibration.text, "length": 64, "windows": 1, "metrics": ["perplexity"]}
    recipe = recipe_of(made.model, made.calibration, LEVELS, choice, evaluation=evaluation)
    compress(recipe, host, tmp_path / "a.safetensors", tmp_path / "scratch", silent)
    stored = read_parts(tmp_path / "a.safetensors")
    rows = made.rows()
    for block in range(2):
        for number, parts in made.parts(block, torch.device("cpu")):
            for name, pieces in parts.items():
                if choice[name] != number:
                    continue
                assert torch.equal(combined(pieces), combined(stored[name]))
                assert rows[name, number]["bytes"] == sum(part.bits for part in stored[name]) // 8
    assert {name for name in made.layers if choice[name]} == set(stored)


def test_a_recipe_tells_which_levels_it_is_made_of(made):
    choice = {name: (3 * number) % len(LEVELS) for number, name in enumerate(made.layers)}
    assert choice_of(recipe_of(made.model, made.calibration, LEVELS, choice), LEVELS, made.layers) == choice
    uniform = recipe_of(made.model, made.calibration, LEVELS, dict.fromkeys(made.layers, 2))
    assert uniform.plan == {}
    assert choice_of(uniform, LEVELS, made.layers) == dict.fromkeys(made.layers, 2)
    sequential = uniform.model_copy(
        update={"calibration": uniform.calibration.model_copy(update={"order": "sequential"})}
    )
    assert choice_of(sequential, LEVELS, made.layers) is None
    assert choice_of(uniform, LEVELS[:2], made.layers) is None


def test_levels_that_are_there_are_not_made_again(made, host, tmp_path):
    files = {file: file.stat().st_mtime_ns for file in made.folder.glob("stage-*")}
    assert len(files) == 3 * 2
    gone = next(iter(files))
    before = load_file(gone)
    gone.unlink()
    again = build(made.model, made.calibration, LEVELS, host, silent)
    assert again == made
    assert all(torch.equal(before[name], tensor) for name, tensor in load_file(gone).items())
    assert all(file.stat().st_mtime_ns == time for file, time in files.items() if file != gone)


def test_building_stops_when_it_is_told_to_and_goes_on_where_it_stopped(tmp_path, host):
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")
    calibration = Calibration(text=f"file:{text}", samples=4, length=64)

    class Stopped(Exception):
        pass

    def stop(update):
        if update.stage == "levels" and update.done > 100:
            raise Stopped

    with pytest.raises(Stopped):
        build(str(folder), calibration, LEVELS, host, stop)
    kept = list((host.cache / "levels").rglob("stage-*block-000*"))
    assert len(kept) == 3
    assert len(build(str(folder), calibration, LEVELS, host, silent).rows()) == 3 * 14


@pytest.mark.parametrize(
    ("width", "count", "name"),
    [(64, 12, "2-bit g64"), (16, 12, "2-bit g16"), (8, 9, "2-bit g8"), (15, 7, "2-bit row")],
)
def test_the_standard_levels_fit_every_width(width, count, name):
    layers = {"a": (8, width), "b": (8, 3 * width)}
    found = standard(layers)
    recipes = {
        recipe_of("m", Calibration(), found, dict.fromkeys(layers, k)).to_json() for k in range(len(found))
    }
    assert len(found) == len(recipes) == count
    assert found[0] == DENSE
    assert name in [level.name for level in found]
