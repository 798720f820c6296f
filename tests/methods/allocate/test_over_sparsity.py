"""What the allocate methods do with bits they do with sparsity: the bytes of the mean, spread better."""

import pytest

from backend.errors import UserError
from backend.estimate import estimate
from backend.recipe import parse_recipe
from backend.solvers.budget import around, nearly_uniform
from tests.methods.allocate.planning import run, size
from tests.methods.models import asked
from tests.tiny import make_model

PRUNE = {"method": "prune.sparsegpt", "params": {"sparsity": 0.5}}
METHODS = ("fisher", "dp", "evopress")


def over(method, **params):
    more = {"generations": 4, "offspring": 4} if method == "evopress" else {}
    usual = {"over": "sparsity", "sparsity": 0.5, "reach": 2}
    return {"method": f"allocate.{method}", "params": usual | more | params}


def sparsities(parts):
    return {name: 1 - float(part.kept().float().mean()) for name, part in parts.items()}


@pytest.mark.parametrize("method", METHODS)
def test_plans_store_no_more_than_one_sparsity_for_all_and_differ_from_it(host, tmp_path, method):
    parts, plain = run(host, tmp_path, over(method), PRUNE), run(host, tmp_path, PRUNE, name="b")
    assert 0.97 * size(plain) <= size(parts) <= size(plain)
    found = sparsities(parts)
    assert len({round(value, 1) for value in found.values()}) > 1
    for value in found.values():
        assert min(abs(value - tenth) for tenth in (0.3, 0.4, 0.5, 0.6, 0.7)) < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_is_that_of_the_mean_and_the_chain_names_it_alone(host, tmp_path, method):
    folder = make_model(tmp_path / "model")
    recipe = asked(folder, tmp_path, over(method), PRUNE)
    plain = estimate(asked(folder, tmp_path, PRUNE), host)
    assert estimate(recipe, host).packed_bytes == plain.packed_bytes
    assert recipe.chain().startswith(f"{method} 0.5")
    assert "bit" not in recipe.chain()
    bits = asked(folder, tmp_path, {"method": f"allocate.{method}"}, {"method": "quantize.rtn"})
    assert bits.chain().startswith(f"{method} 3-bit")
    assert "0.5" not in bits.chain()


def test_pruned_weights_are_quantized_at_the_same_bits_everywhere(host, tmp_path):
    rounded = {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}}
    parts = run(host, tmp_path, over("dp"), PRUNE, rounded)
    assert {part.width for part in parts.values()} == {4}
    assert len({round(value, 1) for value in sparsities(parts).values()}) > 1


@pytest.mark.parametrize(
    ("mean", "reach", "steps"),
    [(0.5, 2, (0.3, 0.4, 0.5, 0.6, 0.7)), (0.15, 3, (0.05, 0.15, 0.25, 0.35, 0.45)), (0.9, 1, (0.8, 0.9))],
)
def test_levels_are_tenths_around_the_mean_that_leave_something_and_take_something(mean, reach, steps):
    values = around({"over": "sparsity", "sparsity": mean, "reach": reach})
    assert values == pytest.approx(steps)
    assert nearly_uniform([[3] * len(values)] * 4, values, mean, range(4)) == [values.index(mean)] * 4


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([over("fisher"), {"method": "quantize.gptq"}], "no later stage takes the sparsity"),
        ([over("dp"), {"method": "prune.wanda", "params": {"pattern": "2:4"}}], "whose sparsity is fixed"),
        ([over("dp", sparsity=1.0), PRUNE], "sparsity is 1.0; allowed: a number above 0.0 below 1.0"),
        (
            [over("dp", over="group_size"), PRUNE],
            "over is \"group_size\"; allowed: 'bits', 'sparsity', 'rank'",
        ),
    ],
)
def test_what_cannot_be_spread_is_refused(stages, said):
    with pytest.raises(UserError, match=said):
        parse_recipe({"model": "smollm2-135m-instruct", "stages": stages})
