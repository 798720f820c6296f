import itertools
import json

import pytest
import torch

from backend.artifacts import read_parts
from backend.methods.allocate.evopress import _scores, evopress
from backend.parts import combined
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.solvers.evolution import BEST
from tests.methods.allocate.planning import RTN, planned, run, size, work_of
from tests.tiny import make_model, make_text

HALF = {"method": "prune.magnitude", "params": {"pattern": "2:4"}}
SMALL = {"generations": 2, "offspring": 4, "windows": 2}
# Two linears of one size and three of another.
BYTES = [[20, 30, 40]] * 2 + [[10, 15, 20]] * 3
LOSSES = [[9.0, 2.0, 0.5], [1.0, 0.3, 0.1], [8.0, 1.0, 0.2], [0.5, 0.1, 0.05], [0.5, 0.1, 0.05]]


def stage(**params):
    return {"method": "allocate.evopress", "params": {**SMALL, **params}}


def kl(plan, windows=()):
    """What is predicted is wrong about two linears: together they want the bits that each alone can spare."""
    alone = sum(row[level] for row, level in zip(LOSSES, plan, strict=True))
    return alone + 6.0 * (2 - plan[3]) * (2 - plan[4])


def best(plans):
    return min(plans, key=kl)


def same_size(first):
    """Plans whose bytes are those of `first` among the linears of each size."""
    for plan in itertools.product(range(3), repeat=5):
        if sum(plan[:2]) == sum(first[:2]) and sum(plan[2:]) == sum(first[2:]):
            yield plan


@pytest.mark.parametrize("start", ["uniform", "fisher"])
def test_finds_the_best_plan_of_the_bytes_it_started_with(start):
    seen = []

    def divergence(plan, windows):
        seen.append(tuple(plan))
        return kl(plan)

    work = work_of(BYTES, losses=LOSSES, divergence=divergence)
    evopress(work, bits=3.0, reach=1, generations=40, offspring=8, windows=4, start=start)
    found = tuple(bits - 2 for bits in planned(work))
    sizes = {sum(row[level] for row, level in zip(BYTES, plan, strict=True)) for plan in seen}
    assert len(sizes) == 1
    assert sizes.pop() <= sum(row[1] for row in BYTES)
    assert kl(found) == kl(best(same_size(found)))
    if start == "uniform":
        assert sum(row[level] for row, level in zip(BYTES, found, strict=True)) == sum(
            row[1] for row in BYTES
        )
        assert kl(found) < kl((1, 1, 1, 1, 1))


@pytest.mark.parametrize("bits", [3.0, 2.5])
@pytest.mark.parametrize("start", ["uniform", "fisher"])
def test_the_run_stores_no_more_than_the_bytes_of_the_mean(host, tmp_path, start, bits):
    parts = run(host, tmp_path, stage(start=start, bits=bits), RTN)
    low, high = (
        size(run(host, tmp_path, {**RTN, "params": {**RTN["params"], "bits": width}}, name=width))
        for width in (2, 3)
    )
    mean = low + (bits - 2) * (high - low)
    assert 0.97 * mean < size(parts) <= mean
    if bits == 3.0 and start == "uniform":
        assert size(parts) == high


def test_progress_is_told_by_generation_and_seeds_decide_the_way(host, tmp_path):
    told = []
    plans = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        parts = run(
            host, tmp_path, stage(start="uniform", generations=6), RTN, name=name, seed=seed,
            progress=told.append if name == "a" else lambda update: None,
        )  # fmt: skip
        plans.append({linear: part.width for linear, part in parts.items()})
    assert plans[0] == plans[1] != plans[2]
    searched = [update for update in told if update.stage == "allocate.evopress" and update.total == 6]
    # While candidates are measured the last generation's words stand, and the bar never goes back.
    assert [update.done for update in searched] == sorted(update.done for update in searched)
    words = list(dict.fromkeys((update.done, update.detail) for update in searched))
    assert [done for done, _ in words] == [0, 1, 2, 3, 4, 5, 6]
    assert all(word.startswith("KL") for _, word in words[1:])
    assert [word.endswith(f"generation {done} of 6") for done, word in words] == [False, *[True] * 6]
    assert len(searched) > 6 * SMALL["offspring"]


def test_the_windows_announced_are_the_windows_run():
    count = 0

    def divergence(plan, windows):
        nonlocal count
        count += len(windows)
        return kl(plan)

    params = {"bits": 3.0, "reach": 1, "generations": 5, "offspring": 8, "windows": 3, "start": "uniform"}
    evopress(work_of(BYTES, losses=LOSSES, divergence=divergence), **params)
    assert count == _scores(params) == 5 * (8 + 3 * 3)


def test_more_generations_end_no_worse_in_the_divergence_that_is_searched(host, tmp_path):
    told = []
    run(
        host, tmp_path, stage(start="uniform", generations=12, offspring=6, windows=6), RTN,
        progress=lambda update: told.append(update.detail) if update.detail.startswith("KL") else None,
    )  # fmt: skip
    # All six windows are in every last round, so the losses are of one text.
    losses = [float(word.split()[1]) for word in told]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_a_run_that_is_stopped_in_the_search_goes_on_from_its_generation(host, tmp_path):
    class Stopped(Exception):
        pass

    told = []

    def stop(update):
        if update.detail.startswith("KL") and told[-1:] != [update.done]:
            told.append(update.done)
            if len(told) == 3:
                raise Stopped

    chain = (stage(start="uniform", generations=6), RTN)
    with pytest.raises(Stopped):
        run(host, tmp_path, *chain, progress=stop)
    again = run(host, tmp_path, *chain, progress=stop)
    assert told == [1, 2, 3, 4, 5, 6]
    whole = run(host, tmp_path, *chain, name="b")
    assert {n: part.width for n, part in again.items()} == {n: part.width for n, part in whole.items()}


def test_the_report_tells_the_plan_and_a_recipe_with_it_stores_the_same(host, tmp_path):
    folder, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt")
    recipe = parse_recipe(
        {
            "model": str(folder),
            "stages": [stage(over="mixture", reach=2), HALF, RTN],
            "calibration": {"text": f"file:{text}", "samples": 6, "length": 64, "order": "dense"},
            "evaluation": {"text": f"file:{text}", "length": 64, "windows": 2},
        }
    )
    report = compress(recipe, host, tmp_path / "a.safetensors", tmp_path / "a", silent)
    assert len(report.notes["stage 1, allocate.evopress"][BEST]) == 2
    plain = recipe.with_plan(json.loads(json.dumps(report.told()["plan"])))
    assert [one.method for one in plain.stages] == ["prune.magnitude", "quantize.rtn"]
    compress(plain, host, tmp_path / "b.safetensors", tmp_path / "b", silent)
    first, second = (read_parts(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    for name, pieces in first.items():
        assert torch.equal(combined(pieces), combined(second[name]))
