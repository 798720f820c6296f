import itertools
import random

import pytest
import torch

from backend.artifacts import read_parts
from backend.errors import UserError
from backend.estimate import estimate
from backend.parts import combined
from backend.recipe import parse_recipe
from backend.solvers.budget import by_gain
from tests.methods.models import asked, made
from tests.tiny import make_model

WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}


def eora(**params):
    return {"method": "compensate.eora", "params": {"rank": 6, **params}}


def plan(**params):
    return {"method": "allocate.rank", "params": {"rank": 6, **params}}


def factors(artifact):
    """{linear: its low-rank part}."""
    return {name: pieces[-1] for name, pieces in read_parts(artifact).items()}


def size(parts):
    return sum(part.bits for part in parts.values()) // 8


@pytest.mark.parametrize("seed", range(8))
def test_no_other_units_of_the_same_bytes_gain_more(seed):
    rng = random.Random(seed)
    gains = [sorted((rng.random() for _ in range(4)), reverse=True) for _ in range(4)]
    price = rng.choice((3, 5))
    linears = [(row, lambda units: units * price) for row in gains]
    budget = 7 * price + rng.randrange(price)
    found = by_gain(linears, budget)
    best = max(
        sum(sum(row[:units]) for row, units in zip(gains, plan, strict=True))
        for plan in itertools.product(range(5), repeat=4)
        if sum(plan) * price <= budget
    )
    assert sum(sum(row[:units]) for row, units in zip(gains, found, strict=True)) == pytest.approx(best)


def test_linears_of_different_prices_never_exceed_the_budget_and_leave_less_than_a_unit():
    rng = random.Random(3)
    for _ in range(50):
        prices = [rng.randrange(3, 30) for _ in range(5)]
        linears = [
            (sorted((rng.random() for _ in range(6)), reverse=True), lambda n, p=p: n * p) for p in prices
        ]
        budget = rng.randrange(10, 200)
        spent = sum(n * p for n, p in zip(by_gain(linears, budget), prices, strict=True))
        assert spent <= budget
        assert spent > budget - max(prices) or spent == 6 * sum(prices)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("base", [WANDA, RTN], ids=["pruned", "rounded"])
def test_factors_weigh_no_more_than_with_one_rank_and_leave_less_error(host, tmp_path, base, bits):
    model = make_model(tmp_path / "model")
    # A text of its own, though it is the same one, makes the uniform run gather as the planned one does.
    own = {"factor_bits": bits, "text": f"file:{tmp_path / 'text.txt'}"}
    uniform, first = made(model, host, tmp_path, base, eora(**own))
    planned, second = made(model, host, tmp_path, base, plan(), eora(factor_bits=bits))
    even, uneven = factors(uniform), factors(planned)
    assert 0.97 * size(even) < size(uneven) <= size(even)
    assert len({part.rank for part in uneven.values()}) > 1
    lost = [
        sum(row["error"] for row in report.layers if row["method"] == "compensate.eora")
        for report in (first, second)
    ]
    assert lost[1] < lost[0]


def test_ranks_are_the_largest_gains_a_byte_as_written_out_on_weights(host, tmp_path):
    model = make_model(tmp_path / "model")
    # With one linear in the plan it gets the whole budget, with two of a shape the steeper one gets more.
    only = "model.layers.0.mlp.[gu]*_proj"
    chain = [WANDA | {"only": only}, plan() | {"only": only}, eora() | {"only": only}]
    artifact, report = made(model, host, tmp_path, *chain)
    parts = factors(artifact)
    assert len(parts) == 2
    assert sum(part.rank for part in parts.values()) == 12
    alone = {}
    for rank in (5, 6, 7):
        _, other = made(model, host, tmp_path, chain[0], eora(rank=rank) | {"only": only})
        alone[rank] = {r["layer"]: r["error"] for r in other.layers if r["method"] == "compensate.eora"}
    errors = {r["layer"]: r["error"] for r in report.layers if r["method"] == "compensate.eora"}
    assert sum(errors.values()) <= sum(alone[6].values()) * 1.0001


def test_linears_without_a_later_taker_get_nothing_and_their_bytes_go_to_nobody(host, tmp_path):
    model = make_model(tmp_path / "model")
    some = "*.mlp.*"
    planned, _ = made(model, host, tmp_path, WANDA, plan(), eora() | {"only": some})
    uniform, _ = made(model, host, tmp_path, WANDA, eora() | {"only": some})
    with_factors = {name: pieces for name, pieces in read_parts(planned).items() if len(pieces) > 1}
    assert with_factors
    assert all(".mlp." in name for name in with_factors)
    even = sum(part.bits for pieces in read_parts(uniform).values() for part in pieces[1:])
    assert sum(part.bits for pieces in with_factors.values() for part in pieces[1:]) <= even


def test_the_weighting_says_whose_errors_count(host, tmp_path):
    model = make_model(tmp_path / "model")
    ranks = {
        weighting: [
            part.rank
            for part in factors(
                made(model, host, tmp_path, WANDA, plan(weighting=weighting), eora())[0]
            ).values()
        ]
        for weighting in ("relative", "absolute")
    }
    assert ranks["relative"] != ranks["absolute"]


def test_rank_zero_plans_none_and_full_rank_restores_every_weight(host, tmp_path):
    model = make_model(tmp_path / "model")
    none = factors(made(model, host, tmp_path, WANDA, plan(rank=0), eora())[0])
    assert all(part.rank == 0 for part in none.values())
    artifact, report = made(model, host, tmp_path, WANDA, plan(rank=4096), eora())
    assert all(row["error"] < 1e-8 for row in report.layers if row["method"] == "compensate.eora")
    assert all(torch.isfinite(combined(pieces)).all() for pieces in read_parts(artifact).values())


def test_the_run_tells_the_range_of_ranks_and_the_error_left_at_ranks(host, tmp_path):
    model = make_model(tmp_path / "model")
    artifact, report = made(model, host, tmp_path, WANDA, plan(), eora())
    notes = report.notes["stage 2, allocate.rank"]
    ranks = [part.rank for part in factors(artifact).values()]
    assert notes["ranks from, to"] == [min(ranks), max(ranks)]
    (left,) = (values for words, values in notes.items() if words.startswith("mean output error left"))
    assert left == sorted(left, reverse=True)
    pruned = [row["error"] for row in report.layers if row["method"] == "prune.wanda"]
    assert 0 < left[0] < 3 * sum(pruned) / len(pruned)
    assert left[-1] == 0


def test_the_estimate_is_that_of_the_rank_everywhere(host, tmp_path):
    model = make_model(tmp_path / "model")
    chain = [WANDA, plan(rank=5), eora(rank=64, factor_bits=4)]
    told = estimate(asked(model, tmp_path, *chain), host)
    same = estimate(asked(model, tmp_path, WANDA, eora(rank=5, factor_bits=4)), host)
    assert told.packed_bytes == same.packed_bytes
    assert "bytes are those of its mean" in told.formula


def test_ranks_before_there_is_an_error_are_refused():
    with pytest.raises(UserError, match="there is no error yet to plan ranks by"):
        parse_recipe({"model": "m", "stages": [plan(), WANDA, eora()]})
    with pytest.raises(UserError, match="no later stage takes the rank"):
        parse_recipe({"model": "m", "stages": [WANDA, plan()]})


def test_bytes_of_two_stages_that_take_the_rank_are_added(host, tmp_path):
    model = make_model(tmp_path / "model")
    both = [{"method": "compensate.svd", "params": {"rank": 4}}, eora(rank=4)]
    uniform, planned = (
        sum(
            part.bits
            for pieces in read_parts(made(model, host, tmp_path, *chain)[0]).values()
            for part in pieces
        )
        for chain in ([WANDA, *both], [WANDA, plan(rank=4), *both])
    )
    assert 0.95 * uniform < planned <= uniform
