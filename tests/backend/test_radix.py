"""Digits of any base survive packing and take what is told beforehand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.radix import pack_digits, packed_bits, unpack_digits, word


@given(
    st.integers(1, 256).flatmap(
        lambda base: st.tuples(st.just(base), st.lists(st.integers(0, base - 1), max_size=120))
    )
)
def test_any_digits_survive_packing_in_the_bits_foretold(case):
    base, codes = case
    stream = pack_digits(torch.tensor(codes), base)
    assert stream.numel() == packed_bits(base, len(codes))
    following = torch.cat([stream, torch.ones(9, dtype=torch.bool)])
    assert unpack_digits(following, base, len(codes)).tolist() == codes


@pytest.mark.parametrize("base", range(2, 257))
def test_many_digits_come_within_two_percent_of_the_entropy(base):
    count = 10_000
    assert math.log2(base) * count <= packed_bits(base, count) <= 1.02 * math.log2(base) * count + 62


def test_the_largest_digits_of_the_longest_words_fit():
    for base in range(2, 257):
        digits, bits = word(base, 10_000)
        assert base**digits <= 2**bits
        assert bits <= 62
        codes = torch.full((3 * digits,), base - 1)
        assert torch.equal(unpack_digits(pack_digits(codes, base), base, 3 * digits), codes)


def test_a_first_word_holds_the_number_that_its_digits_write():
    stream = pack_digits(torch.tensor([2, 0, 1, 2, 1]), 3)
    assert sum(int(bit) << place for place, bit in enumerate(stream[:8])) == 2 + 1 * 9 + 2 * 27 + 1 * 81


def test_powers_of_two_take_their_bits_and_a_base_of_one_none():
    assert [packed_bits(2**bits, 1001) for bits in range(9)] == [1001 * bits for bits in range(9)]
