"""Packed masks: exact, as small as announced, and by whatever takes the fewest bytes."""

import itertools
import math

import pytest
import torch

from backend.packing import pack
from backend.positions import mask_bytes, pack_mask, unpack_mask


def drawn(rows, inputs, share, seed=0):
    """A mask of exactly that share, rounded, anywhere."""
    count = rows * inputs
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: round(share * count)]] = True
    return mask.view(rows, inputs)


def grouped(rows, inputs, keep, of, seed=0):
    """A mask that keeps `keep` of every `of`."""
    ranks = torch.rand(rows, inputs // of, of, generator=torch.Generator().manual_seed(seed)).argsort(dim=2)
    return (ranks < keep).view(rows, inputs)


SHARES = [0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.24, 0.26, 0.5, 0.74, 0.76, 0.9, 0.99, 0.9999, 1.0]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 96), (192, 576), (7, 1536)])
def test_any_mask_comes_back_and_takes_the_announced_bytes(shape, share):
    mask = drawn(*shape, share)
    packed = pack_mask(mask)
    assert torch.equal(unpack_mask(packed, shape), mask)
    assert packed.numel() == mask_bytes(mask.numel(), int(mask.sum()))
    assert packed.numel() <= math.ceil(mask.numel() / 8)


@pytest.mark.parametrize(("keep", "of"), [(1, 4), (2, 4), (4, 8)])
def test_patterns_come_back_in_less_than_a_bit_a_weight(keep, of):
    mask = grouped(576, 1536, keep, of)
    packed = pack_mask(mask)
    assert torch.equal(unpack_mask(packed, (576, 1536)), mask)
    assert packed.numel() == mask_bytes(mask.numel(), mask.numel() * keep // of, f"{keep}:{of}")
    bits = 8 * packed.numel() / mask.numel()
    # No code of all patterns is shorter than their logarithm.
    least = math.log2(math.comb(of, keep)) / of
    assert least <= bits < 1.02 * least


def test_every_pattern_of_a_group_is_one_of_the_ranks():
    for keep, of in ((1, 4), (2, 4), (4, 8)):
        every = [[at in chosen for at in range(of)] for chosen in itertools.combinations(range(of), keep)]
        mask = torch.tensor(every * 40).reshape(40, -1)
        assert torch.equal(unpack_mask(pack_mask(mask), mask.shape), mask)


def test_a_group_with_fewer_than_its_share_is_no_pattern_and_still_comes_back():
    mask = grouped(64, 128, 2, 4)
    mask[5, :4] = False
    packed = pack_mask(mask)
    assert packed.numel() == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack_mask(packed, (64, 128)), mask)


@pytest.mark.parametrize(
    ("share", "below"), [(0.01, 0.1), (0.1, 0.56), (0.2, 0.87), (0.9, 0.56), (0.99, 0.1)]
)
def test_few_or_many_kept_take_less_than_a_bitmap_and_near_the_entropy(share, below):
    mask = drawn(576, 576, share)
    bits = 8 * pack_mask(mask).numel() / mask.numel()
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert entropy < bits < min(below, 1.25 * entropy)


def test_a_bitmap_of_before_is_still_read():
    mask = drawn(64, 96, 0.03)
    assert torch.equal(unpack_mask(pack(mask, 1), (64, 96)), mask)
