"""Factors stored as codes decode to what plain arithmetic on single values gives."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from backend.factors import CodedFactors
from backend.linear import CompressedLinear
from backend.parts import Dense, LowRank, combined
from backend.sizes import Matrix, low_rank_bytes


def factors(rows, inputs, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(1, -2, max(rank, 1))[:rank]
    return (
        torch.randn(rows, rank, generator=generator) * sizes,
        torch.randn(rank, inputs, generator=generator) * sizes[:, None],
    )


def rounded(values, width):
    """One row [n] on grids of 64 neighbours each, value by value."""
    out = []
    for start in range(0, len(values), 64):
        group = values[start : start + 64].tolist()
        low, high, most = min(*group, 0.0, 0.0), max(*group, 0.0, 0.0), 2**width - 1
        scale = float(torch.tensor((high - low) / most * (1 + 1 / 256)).bfloat16())
        zero = round(-low / scale)
        out += [(max(0, min(most, round(value / scale) + zero)) - zero) * scale for value in group]
    return torch.tensor(out)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize(("rows", "inputs"), [(70, 130), (1, 64), (64, 1)])
def test_each_value_is_its_nearest_code_on_the_grid_of_its_sixty_four(rows, inputs, width):
    left, right = factors(rows, inputs, 3)
    decoded = CodedFactors.of(left, right, width).factors()
    for component in range(3):
        assert torch.allclose(decoded[0][:, component], rounded(left[:, component], width), atol=1e-6)
        assert torch.allclose(decoded[1][component], rounded(right[component], width), atol=1e-6)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("rank", [0, 1, 7])
def test_bytes_counted_from_the_shape_are_those_of_the_tensors(rank, width):
    part = CodedFactors.of(*factors(70, 130, rank), width)
    matrix = Matrix(70, 130, 0, 16)
    assert part.bits == 8 * low_rank_bytes(matrix, {"rank": rank, "factor_bits": width})
    assert part.rank == rank
    assert part.dense().shape == (70, 130)


def test_a_column_of_outliers_leaves_the_other_columns_their_digits():
    left, right = factors(128, 128, 4)
    left[:, 1] *= 1e4
    now = CodedFactors.of(left, right, 8).factors()[0]
    for component in range(4):
        assert (now[:, component] - left[:, component]).norm() < 0.01 * left[:, component].norm()


def test_factors_of_zeros_and_of_bfloat16_decode_to_finite_values():
    part = CodedFactors.of(torch.zeros(5, 2), torch.zeros(2, 9), 4)
    assert torch.equal(part.dense(), torch.zeros(5, 9))
    left, right = factors(70, 130, 3)
    half = CodedFactors.of(left.bfloat16(), right.bfloat16(), 8)
    assert torch.allclose(half.dense(), left @ right, atol=0.05 * float((left @ right).abs().max()))


@pytest.mark.parametrize("packed", [False, True])
def test_a_compressed_linear_applies_them_beside_the_other_parts(packed):
    generator = torch.Generator().manual_seed(0)
    base, x = torch.randn(6, 70, generator=generator), torch.randn(3, 5, 70, generator=generator)
    parts = (Dense((6, 70), base), CodedFactors.of(*factors(6, 70, 2), 4))
    module = CompressedLinear(parts, None, torch.float32, packed=packed)
    assert torch.equal(module.decode(), base)
    assert torch.allclose(module(x), x @ combined(parts).T, atol=1e-4)


def test_another_left_factor_leaves_the_right_one_alone():
    part = CodedFactors.of(*factors(70, 130, 3), 4)
    other = part.with_left(2 * factors(70, 130, 3)[0])
    assert torch.equal(other.right_codes, part.right_codes)
    assert torch.allclose(other.dense(), 2 * part.dense(), rtol=1e-2, atol=1e-2)


def test_a_process_that_never_heard_of_them_opens_them(tmp_path):
    part = CodedFactors.of(*factors(70, 130, 3), 4)
    save_file(part.tensors(), tmp_path / "part.safetensors")
    (tmp_path / "settings.json").write_text(json.dumps({"kind": part.kind, "settings": part.settings()}))
    script = (
        "import json, sys; from pathlib import Path; from safetensors.torch import load_file\n"
        "from backend.parts import rebuild\n"
        "folder = Path(sys.argv[1]); told = json.loads((folder / 'settings.json').read_text())\n"
        "part = rebuild(told['kind'], told['settings'], load_file(folder / 'part.safetensors'))\n"
        "print(repr(float(part.dense().double().sum())), part.bits)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(told[0]) == float(part.dense().double().sum())
    assert int(told[1]) == part.bits


def test_eight_bits_are_near_to_the_plain_factors_and_four_are_not_far():
    left, right = factors(256, 192, 16)
    plain = LowRank.of(left, right, torch.float32).dense()
    lost = {
        width: float((CodedFactors.of(left, right, width).dense() - plain).norm() / plain.norm())
        for width in (4, 8)
    }
    assert lost[8] < 0.01 < lost[4] < 0.2
