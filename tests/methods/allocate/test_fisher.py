import itertools

import pytest

from backend.errors import UserError
from backend.methods.allocate.fisher import fisher
from backend.recipe import parse_recipe
from tests.methods.allocate.planning import RTN, planned, run, size, work_of

FISHER = {"method": "allocate.fisher", "params": {"bits": 3.0}}
BYTES = [[20, 30, 40], [20, 30, 40], [10, 15, 20], [10, 15, 20]]
LOSSES = [[9.0, 2.0, 0.5], [1.0, 0.3, 0.1], [8.0, 1.0, 0.2], [0.5, 0.1, 0.05]]


def total(rows, plan):
    return sum(row[bits - 2] for row, bits in zip(rows, plan, strict=True))


def test_the_plan_costs_no_more_bytes_and_predicts_no_more_loss_than_the_same_bits_everywhere():
    work = work_of(BYTES, losses=LOSSES)
    fisher(work, bits=3.0, reach=1)
    plan = planned(work)
    assert total(BYTES, plan) <= total(BYTES, [3] * 4)
    assert total(LOSSES, plan) < total(LOSSES, [3] * 4)
    # Here the walk over the hulls ends on the very budget, so nothing of that size can be better.
    fits = [p for p in itertools.product((2, 3, 4), repeat=4) if total(BYTES, p) <= total(BYTES, [3] * 4)]
    assert total(LOSSES, plan) == min(total(LOSSES, p) for p in fits)


@pytest.mark.parametrize("bits", [2.25, 3.0, 3.5, 4.75])
def test_the_run_stores_no_more_than_the_bytes_of_the_mean(host, tmp_path, bits):
    parts = run(host, tmp_path, {"method": "allocate.fisher", "params": {"bits": bits}}, RTN)
    sizes = {}
    for width in (2, 3, 4, 5):
        sizes[width] = size(
            run(host, tmp_path, {**RTN, "params": {**RTN["params"], "bits": width}}, name=width)
        )
    low = int(bits)
    mean = sizes[low] + (bits - low) * (sizes[low + 1] - sizes[low])
    assert 0.97 * mean < size(parts) <= mean
    used = {part.width for part in parts.values()}
    assert used <= {low - 1, low, low + 1, low + 2}
    assert len(used) > 1


def test_a_mean_of_a_whole_number_stores_no_more_than_that_number_everywhere(host, tmp_path):
    planned_, plain = run(host, tmp_path, FISHER, RTN), run(host, tmp_path, RTN, name="b")
    assert size(planned_) <= size(plain)
    assert {part.width for part in planned_.values()} == {2, 3, 4}


def test_the_same_recipe_plans_the_same(host, tmp_path):
    first, second = (run(host, tmp_path, FISHER, RTN, name=name) for name in "ab")
    assert {n: part.width for n, part in first.items()} == {n: part.width for n, part in second.items()}


def test_stages_between_are_part_of_the_levels(host, tmp_path):
    half = {"method": "prune.magnitude", "params": {"sparsity": 0.5}}
    planned_ = run(host, tmp_path, FISHER, half, RTN)
    plain = run(host, tmp_path, half, RTN, name="b")
    assert size(planned_) <= size(plain)
    assert all(
        float(part.kept().float().mean()) == pytest.approx(0.5, abs=0.02) for part in planned_.values()
    )


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([FISHER], "no later stage takes the bits"),
        ([FISHER, FISHER], "no later stage takes the bits"),
        ([FISHER, {"method": "quantize.awq"}], "no later stage takes the bits"),
        ([FISHER, {"method": "prune.wanda"}], "allowed: .*quantize.gptq"),
        ([{"method": "allocate.fisher", "params": {"bits": 9.0}}, RTN], "bits is 9.0; allowed: a number"),
    ],
)
def test_a_plan_that_nobody_can_take_is_refused(stages, said):
    recipe = {"model": "smollm2-135m-instruct", "stages": stages}
    with pytest.raises(UserError, match=said):
        parse_recipe(recipe)


@pytest.mark.parametrize(
    "before",
    [
        {"method": "transform.hadamard"},
        {"method": "head.untie"},
        {"method": "prune.width", "params": {"ratio": 0.25}},
        {"method": "prune.blocks", "params": {"blocks": 1}},
    ],
    ids=lambda stage: stage["method"],
)
def test_gradients_pass_through_what_stages_before_made_of_the_model(host, tmp_path, before):
    parts = run(host, tmp_path, before, FISHER, RTN)
    assert len({part.width for part in parts.values() if hasattr(part, "width")}) > 1
