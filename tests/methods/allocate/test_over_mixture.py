"""Plans over ranks, and over mixtures of bits with pruning and factors, at the bytes of the mean."""

import itertools

import pytest
import torch

from backend.artifacts import read_parts
from backend.errors import UserError
from backend.estimate import estimate
from backend.parts import LowRank
from backend.plans import skipping, switched
from backend.recipe import parse_recipe
from backend.solvers.budget import around
from backend.solvers.evolution import Selection, evolve
from tests.methods.allocate.planning import RTN, run
from tests.methods.models import asked
from tests.tiny import make_model

HALF = {"method": "prune.sparsegpt", "params": {"pattern": "2:4"}}
EORA = {"method": "compensate.eora", "params": {"rank": 4}}
METHODS = ("fisher", "dp", "evopress")


def over(method, what, **params):
    more = {"generations": 4, "offspring": 4} if method == "evopress" else {}
    return {"method": f"allocate.{method}", "params": {"over": what} | more | params}


def stored(tmp_path, name="a"):
    """{linear: all its parts} of a run of `planning.run`."""
    return read_parts(tmp_path / f"{name}.safetensors")


def total(parts):
    return sum(part.bits for pieces in parts.values() for part in pieces) // 8


def ranks(parts):
    return {
        name: next((part.rank for part in pieces if isinstance(part, LowRank)), 0)
        for name, pieces in parts.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_ranks_differ_at_the_bytes_of_one_rank_for_all(host, tmp_path, method):
    run(host, tmp_path, RTN, EORA, name="plain")
    run(host, tmp_path, over(method, "rank", rank=4, reach=2), RTN, EORA)
    plain, parts = stored(tmp_path, "plain"), stored(tmp_path)
    assert 0.97 * total(plain) <= total(parts) <= total(plain)
    assert set(ranks(plain).values()) == {4}
    found = set(ranks(parts).values())
    assert len(found) > 1
    assert found <= {0, 2, 4, 6, 8}


def test_ranks_may_be_planned_after_the_stage_whose_error_they_repair(host, tmp_path):
    run(host, tmp_path, RTN, EORA, name="plain")
    run(host, tmp_path, RTN, over("fisher", "rank", rank=4), EORA)
    assert 0.97 * total(stored(tmp_path, "plain")) <= total(stored(tmp_path))
    assert total(stored(tmp_path)) <= total(stored(tmp_path, "plain"))


@pytest.mark.parametrize("method", METHODS)
def test_a_mixture_stores_no_more_than_the_mean_bits_alone(host, tmp_path, method):
    run(host, tmp_path, RTN, name="plain")
    run(host, tmp_path, over(method, "mixture", bits=3.0, reach=2), HALF, RTN, EORA)
    plain, parts = stored(tmp_path, "plain"), stored(tmp_path)
    assert 0.93 * total(plain) <= total(parts) <= total(plain)
    widths = {pieces[0].width for pieces in parts.values()}
    assert widths <= {2, 3, 4, 5}
    kinds = {(pieces[0].kept() is not None, len(pieces) > 1, pieces[0].width) for pieces in parts.values()}
    assert len(kinds) > 1


def test_every_way_to_store_is_made_and_the_best_sum_within_the_bytes_is_found(host, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "backend.methods.allocate.dp.exact",
        lambda sizes, losses, budget: seen.append((sizes, losses, budget)) or [0] * len(sizes),
    )
    run(host, tmp_path, over("dp", "mixture", bits=3.0), HALF, RTN)
    ((sizes, losses, budget),) = seen
    # 2, 3 and 4 bits, then the same on half of the weights.
    assert {len(row) for row in sizes} == {6}
    assert all(row[3:] < row[:3] for row in sizes)
    # At 2 bits a pruned half may be the better way to round.
    assert all(row[2] < row[5] for row in losses)
    assert budget == sum(row[1] for row in sizes)


def test_what_a_plan_skips_is_named_and_counted():
    names = [f"model.layers.{number}.mlp.up_proj" for number in range(3)]
    recipe = parse_recipe(
        {
            "model": "smollm2-135m-instruct",
            "stages": [HALF, RTN],
            "plan": {names[0]: {"skip": ["prune.sparsegpt"]}, names[1]: {"bits": 4}},
        }
    )
    assert skipping(recipe.plan, "prune.sparsegpt") == 1
    assert "sparsegpt 2:4 not on 1 linears" in recipe.chain()
    assert "rtn 4-bit" in recipe.chain()


def test_what_can_be_switched_goes_in_groups_most_skipped_first():
    chain = ["prune.wanda", "prune.dsnot", "quantize.gptq", "compensate.eora"]
    pruned, repaired = ("prune.wanda", "prune.dsnot"), ("compensate.eora",)
    assert set(switched(chain)) == {(*repaired, *pruned), repaired, pruned, ()}
    assert set(switched(chain)[0]) == {*repaired, *pruned}
    assert switched(["quantize.rtn"]) == [()]
    assert switched(chain, "bits") == [()]


def test_steps_of_the_rank_are_halves_of_the_mean():
    assert around({"over": "rank", "rank": 8, "reach": 1}) == (4, 8, 12)
    assert around({"over": "rank", "rank": 8, "reach": 3}) == (0, 4, 8, 12, 16, 20)
    assert around({"over": "rank", "rank": 1, "reach": 2}) == (0, 1, 2)


def test_a_search_among_ways_to_store_never_takes_more_bytes_and_finds_the_best():
    # Not in the order of their bytes: three widths, and the same pruned.
    sizes = [(20, 30, 40, 15, 20, 25)] * 3
    losses = [(9.0, 3.0, 1.0, 8.0, 4.0, 3.5), (2.0, 1.0, 0.9, 1.1, 0.9, 0.8), (9.0, 5.0, 0.5, 9.0, 8.0, 7.0)]
    seen = []

    def loss(plan, windows):
        seen.append(sum(row[level] for row, level in zip(sizes, plan, strict=True)))
        return sum(row[level] for row, level in zip(losses, plan, strict=True))

    found = evolve(
        [1, 1, 1], sizes, loss, windows=1, generations=60, offspring=6, rounds=(Selection(1, 1),),
        rng=torch.Generator().manual_seed(0),
    ).plan  # fmt: skip
    assert max(seen) <= 90
    fits = [
        plan
        for plan in itertools.product(range(6), repeat=3)
        if sum(row[level] for row, level in zip(sizes, plan, strict=True)) <= 90
    ]
    assert loss(found, ()) == min(loss(plan, ()) for plan in fits)


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_of_a_mixture_is_that_of_the_mean_bits_alone(host, tmp_path, method):
    folder = make_model(tmp_path / "model")
    recipe = asked(folder, tmp_path, over(method, "mixture", bits=3.0), HALF, RTN, EORA)
    plain = asked(folder, tmp_path, RTN)
    assert estimate(recipe, host).packed_bytes == estimate(plain, host).packed_bytes
    assert recipe.chain().startswith(f"{method} mixture 3-bit")
    # Four times as many levels have to be made.
    bits = asked(folder, tmp_path, over(method, "bits", bits=3.0), HALF, RTN, EORA)
    assert estimate(recipe, host).seconds > estimate(bits, host).seconds
    ranked = asked(folder, tmp_path, over(method, "rank", rank=4), RTN, EORA)
    same = asked(folder, tmp_path, RTN, EORA)
    assert estimate(ranked, host).packed_bytes == estimate(same, host).packed_bytes
    assert "bit" not in ranked.chain().split(" → ")[0]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([over("dp", "mixture"), RTN], "no later stage prunes or compensates"),
        ([over("dp", "mixture"), HALF], "no later stage takes the bits"),
        ([over("dp", "mixture"), {"method": "prune.maskllm"}, RTN], "linear by linear"),
        ([over("dp", "rank"), RTN], "no later stage takes the rank"),
        ([over("dp", "rank", rank=0), RTN, EORA], "rank is 0; allowed"),
    ],
)
def test_mixtures_that_cannot_be_made_are_refused(stages, said):
    with pytest.raises(UserError, match=said):
        parse_recipe({"model": "smollm2-135m-instruct", "stages": stages})
