import itertools
import random

import pytest

from backend.methods.allocate.dp import dp
from tests.methods.allocate.planning import RTN, planned, run, size, work_of


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_what_trying_all_plans_finds(seed):
    rng = random.Random(seed)
    sizes = [[base * width for width in (2, 3, 4)] for base in rng.choices((8, 12, 24), k=6)]
    errors = [sorted((rng.random() for _ in range(3)), reverse=True) for _ in range(6)]
    work = work_of(sizes, errors=errors)
    dp(work, bits=3.0, reach=1)
    fits = [
        sum(row[at] for row, at in zip(errors, plan, strict=True))
        for plan in itertools.product(range(3), repeat=6)
        if sum(row[at] for row, at in zip(sizes, plan, strict=True)) <= sum(row[1] for row in sizes)
    ]
    assert sum(row[bits - 2] for row, bits in zip(errors, planned(work), strict=True)) == min(fits)


def test_the_run_stores_no_more_than_the_bytes_of_the_mean(host, tmp_path):
    parts = run(host, tmp_path, {"method": "allocate.dp", "params": {"bits": 2.5}}, RTN)
    two, three = (
        size(run(host, tmp_path, {**RTN, "params": {**RTN["params"], "bits": bits}}, name=bits))
        for bits in (2, 3)
    )
    assert 0.97 * (two + three) / 2 < size(parts) <= (two + three) / 2
    assert {2, 3} <= {part.width for part in parts.values()} <= {2, 3, 4}


def test_a_linear_whose_error_does_not_matter_gives_its_bits_away():
    sizes = [[20, 30, 40]] * 3
    work = work_of(sizes, errors=[[0.5, 0.2, 0.05], [0.5, 0.2, 0.05], [0.0, 0.0, 0.0]])
    dp(work, bits=3.0, reach=1)
    assert planned(work)[2] == 2
    assert sorted(planned(work)[:2]) == [3, 4]
