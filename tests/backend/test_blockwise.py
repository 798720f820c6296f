"""The gradient solver on problems with known answers, and the float tensors of every kind of part."""

import math

import pytest
import torch

from backend.floating import Float
from backend.methods.factorize.svd import svd
from backend.methods.prune.magnitude import magnitude
from backend.methods.quantize.adadim import adadim
from backend.methods.quantize.baq import baq
from backend.methods.quantize.codebook import codebook
from backend.methods.quantize.fdb import fdb
from backend.methods.quantize.hlq import hlq
from backend.methods.quantize.llm_fp4 import llm_fp4
from backend.methods.quantize.quantease import quantease
from backend.methods.quantize.rtn import rtn
from backend.methods.quantize.shiftadd import shiftadd
from backend.parts import LowRank
from backend.planes import Planes
from backend.solvers.blockwise import fit, relative_error, split
from backend.solvers.tunable import decoder, retuned, sizes, tunable
from tests.layers import after, random_layer


def silent(done, total, words):
    pass


def parts_of(name):
    layer, _ = random_layer(rows=12, inputs=64)
    pruned = after(layer, magnitude(layer, sparsity=0.4))
    return {
        "grid": lambda: rtn(layer, bits=3, group_size=16),
        "grid with float zeros": lambda: rtn(layer, bits=3, group_size=16, zero="float"),
        "grid with a mask": lambda: rtn(pruned, bits=3, group_size=16),
        "float zeros with a mask": lambda: rtn(pruned, bits=3, group_size=16, zero="float"),
        "columns": lambda: adadim(layer, bits=3, group_size=4),
        "codebook": lambda: codebook(layer, group_size=16),
        "quantized scales": lambda: codebook(layer, group_size=16, double=True),
        "floats": lambda: llm_fp4(layer, bits=4, group_size=16),
        "planes": lambda: hlq(layer, bits=2, group_size=16),
        "planes with a mask": lambda: hlq(pruned, bits=2, group_size=16),
        "dual planes": lambda: fdb(layer, group_size=16),
        "signed planes": lambda: shiftadd(layer, bits=2),
        "mixed": lambda: baq(layer, bits=2.5),
        "sparse": lambda: magnitude(layer, sparsity=0.4),
        "factors": lambda: svd(layer, ratio=0.5),
        "outliers": lambda: quantease(layer, bits=3, group_size=16, outliers=0.02),
    }[name]()


KINDS = [
    "grid", "grid with float zeros", "grid with a mask", "float zeros with a mask", "columns", "codebook",
    "quantized scales", "floats", "planes", "planes with a mask", "dual planes", "signed planes", "mixed",
    "sparse", "factors", "outliers",
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_decoding_from_parameters_is_what_the_part_with_these_tensors_decodes_to(name):
    generator = torch.Generator().manual_seed(3)
    for part in parts_of(name):
        values = tunable(part)
        torch.testing.assert_close(decoder(part)(values), part.dense(), rtol=1e-5, atol=1e-6)
        moved = {
            key: tensor + sizes(part)[key] * 0.2 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in values.items()
        }
        stored = retuned(part, moved)
        exact = {key: tensor.float() for key, tensor in stored.tensors().items() if key in moved}
        torch.testing.assert_close(decoder(part)(exact), stored.dense(), rtol=1e-4, atol=1e-5)
        assert stored.bits == part.bits
        assert stored.settings() == part.settings()
        for key, tensor in part.tensors().items():
            assert stored.tensors()[key].dtype == tensor.dtype
            assert (key in moved) != torch.equal(stored.tensors()[key], tensor)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_finite_differences(name):
    for part in parts_of(name):
        decode, values = decoder(part), tunable(part)
        pull = torch.randn(part.shape, generator=torch.Generator().manual_seed(4))
        for key, tensor in values.items():
            leaf = tensor.clone().requires_grad_()
            (decode({**values, key: leaf}) * pull).sum().backward()
            flat = tensor.flatten()
            for at in (0, flat.numel() // 2, flat.numel() - 1):
                step = 0.05 * max(abs(float(flat[at])), 0.01)
                ends = []
                for sign in (1, -1):
                    other = flat.clone()
                    other[at] += sign * step
                    ends.append(float((decode({**values, key: other.view_as(tensor)}) * pull).double().sum()))
                slope = (ends[0] - ends[1]) / (2 * step)
                assert float(leaf.grad.flatten()[at]) == pytest.approx(slope, rel=0.02, abs=0.05)


def test_only_floats_may_move():
    assert tunable(parts_of("quantized scales")[0]) == {}
    assert set(tunable(parts_of("grid")[0])) == {"scales"}
    assert set(tunable(parts_of("grid with float zeros")[0])) == {"scales", "zeros"}
    powers = [part for part in parts_of("signed planes") if isinstance(part, Planes) and part.terms]
    assert all(tunable(part) == {} for part in powers)
    assert isinstance(parts_of("floats")[0], Float)
    assert isinstance(parts_of("factors")[0], LowRank)


def line(samples=16, noise=0.0):
    """Samples of y = x w with a known w [6], as (x, y)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 5, 6, generator=generator)
    truth = torch.linspace(-1, 2, 6)
    return x, x @ truth + noise * torch.randn(samples, 5, generator=generator), truth


def solve(x, y, epochs=60, rate=0.1, seed=0, start=None, **more):
    begun = {"w": torch.zeros(6) if start is None else start}
    units = {"w": torch.ones(())}
    return fit(
        begun, units, lambda values, some: relative_error(x[some] @ values["w"], y[some]), len(x), 4, epochs,
        {"w": rate}, torch.Generator().manual_seed(seed), more.pop("told", silent), **more,
    )  # fmt: skip


def test_a_least_squares_problem_is_solved():
    x, y, truth = line()
    found = solve(x, y)
    torch.testing.assert_close(found.values["w"], truth, atol=0.02, rtol=0.02)
    assert len(found.losses) == 61
    assert found.losses[found.best] == min(found.losses)


def test_the_loss_that_judges_is_that_of_the_samples_apart():
    x, y, _ = line(noise=0.3)
    found = solve(x, y, epochs=3)
    learned, judges = split(16)
    assert judges.tolist() == [7, 15]
    assert sorted([*learned.tolist(), *judges.tolist()]) == list(range(16))
    error = (x[judges] @ found.values["w"] - y[judges]).square().sum() / y[judges].square().sum()
    assert found.losses[found.best] == pytest.approx(float(error), rel=1e-5)


def test_too_few_samples_to_split_learn_and_judge_alike():
    learned, judges = split(5)
    assert learned.tolist() == judges.tolist() == [0, 1, 2, 3, 4]


def test_a_start_that_nothing_beats_comes_back_untouched():
    x, y, truth = line()
    found = solve(x, y, epochs=5, rate=3.0, start=truth)
    assert found.best == 0
    assert torch.equal(found.values["w"], truth)


def test_a_loss_that_is_no_number_ends_the_work_with_the_best_so_far():
    x, y, _ = line()
    calls = []

    def told(done, total, words):
        calls.append(words)

    broken = y.clone()
    broken[3] = math.inf
    found = solve(x, broken, epochs=5, told=told)
    assert bool(torch.isfinite(found.values["w"]).all())
    assert len(found.losses) == 1


def test_what_is_judged_is_what_would_be_stored():
    x, y, _ = line()
    found = solve(x, y, as_stored=lambda values: {"w": values["w"].round()}, epochs=40)
    judges = split(16)[1]
    rounded = found.values["w"].round()
    error = (x[judges] @ rounded - y[judges]).square().sum() / y[judges].square().sum()
    assert found.losses[found.best] == pytest.approx(float(error), rel=1e-5)
    assert found.losses[0] == pytest.approx(1.0)


def test_the_same_seed_goes_the_same_way_and_another_does_not():
    x, y, _ = line(noise=0.5)
    first, same, other = (solve(x, y, epochs=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.values["w"], same.values["w"])
    assert not torch.equal(first.values["w"], other.values["w"])


def test_progress_rises_to_the_total_and_epochs_are_announced():
    x, y, _ = line()
    told, epochs = [], []
    solve(x, y, epochs=3, told=lambda *given: told.append(given), schedule=epochs.append)
    assert [done for done, _, _ in told] == list(range(told[0][1]))
    assert epochs == [0, 1, 2]
    assert told[-1][2].startswith("epoch 3 of 3, error ")


def test_it_works_where_no_graph_is_allowed():
    x, y, truth = line()
    with torch.inference_mode():
        found = solve(x, y)
    torch.testing.assert_close(found.values["w"], truth, atol=0.02, rtol=0.02)
