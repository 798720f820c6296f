"""Packing holds for any codes, and parts store what they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.coded import Grid, stored_scale
from backend.linear import CompressedLinear
from backend.packing import pack, unpack
from backend.parts import Dense, LowRank, Sparse, combined
from backend.positions import mask_bytes
from backend.solvers.grids import fit_grid


@given(
    st.integers(1, 8).flatmap(
        lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=200))
    )
)
def test_any_codes_survive_packing_in_the_fewest_bytes(case):
    bits, codes = case
    packed = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert packed.numel() == (len(codes) * bits + 7) // 8
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=64))
def test_packing_is_the_little_endian_bit_stream(bits, raw):
    codes = [code % 2**bits for code in raw]
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    expected = number.to_bytes((len(codes) * bits + 7) // 8, "little")
    assert bytes(pack(torch.tensor(codes), bits).tolist()) == expected


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 40), st.floats(0, 1))
def test_any_mask_and_values_survive_sparse_storage(seed, rows, inputs, share):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator)
    kept = torch.rand(rows, inputs, generator=generator) < share
    part = Sparse.keep(weight, kept, torch.float32)
    assert torch.equal(part.dense(), weight * kept)
    assert torch.equal(part.kept(), kept)
    assert part.bits == 8 * mask_bytes(rows * inputs, int(kept.sum())) + 32 * int(kept.sum())


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 5, 8]), st.booleans(), st.booleans())
def test_encoding_decoded_values_again_gives_the_same_codes(seed, bits, symmetric, masked):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 32, generator=generator)
    kept = torch.rand(6, 32, generator=generator) < 0.5 if masked else None
    scales, zeros = fit_grid(weight.view(6, 4, 8), bits, symmetric)
    once = Grid.encode(weight, scales, zeros, bits, 8, kept)
    again = Grid.encode(once.dense(), scales, zeros, bits, 8, kept)
    assert torch.equal(once.codes, again.codes)
    assert torch.equal(once.dense(), again.dense())
    if kept is not None:
        assert bool((once.dense()[~kept] == 0).all())


def test_scales_out_of_reach_of_float16_are_kept_in_float32():
    assert stored_scale(torch.tensor([1e-3, 2.0])).dtype == torch.float16
    assert stored_scale(torch.tensor([1e-6, 2.0])).dtype == torch.float32
    assert stored_scale(torch.tensor([1e6])).dtype == torch.float32


def test_tiny_weights_keep_their_relative_precision():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 1e-7
    scales, zeros = fit_grid(weight.view(4, 1, 32), 8, False)
    part = Grid.encode(weight, scales, zeros, 8, -1)
    assert float((part.dense() - weight).norm() / weight.norm()) < 0.01


@pytest.mark.parametrize("packed", [False, True])
def test_a_compressed_linear_is_the_linear_of_the_sum_of_its_parts(packed):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 8, generator=generator), torch.randn(6, generator=generator)
    low = LowRank.of(
        torch.randn(6, 2, generator=generator), torch.randn(2, 8, generator=generator), torch.float32
    )
    parts = (Dense((6, 8), weight), low)
    module = CompressedLinear(parts, bias, torch.float32, packed=packed)
    x = torch.randn(3, 5, 8, generator=generator)
    assert torch.allclose(module(x), torch.nn.functional.linear(x, combined(parts), bias), atol=1e-5)
    assert module.bits == 32 * (48 + 2 * 14)


def test_a_packed_linear_keeps_no_dense_weight():
    part = Sparse.keep(torch.eye(8), torch.eye(8, dtype=torch.bool), torch.float32)
    assert CompressedLinear((part,), None, torch.float32, packed=True).weight is None
