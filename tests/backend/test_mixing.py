"""Mixing against the plain matrices that it stands for."""

import pytest
import torch

from backend.mixing import cosine_matrix, mixed


def signs_of(count):
    return torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(count)) * 2.0 - 1


def hadamard(count):
    """Sylvester's construction."""
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < count:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / count**0.5


@pytest.mark.parametrize("count", [1, 2, 7, 12, 64, 576, 1536])
def test_mixing_is_the_orthogonal_matrix_it_says(count):
    even = count & -count
    signs = signs_of(count).double()
    matrix = torch.kron(cosine_matrix(count // even), hadamard(even)) * signs
    assert torch.allclose(matrix @ matrix.T, torch.eye(count, dtype=torch.float64), atol=1e-12)
    values = torch.randn(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mixed(values, signs), values @ matrix.T)
    assert torch.allclose(mixed(mixed(values, signs), signs, back=True), values)


@pytest.mark.parametrize("count", [64, 576, 1536])
def test_one_large_value_is_spread_over_all(count):
    lone = torch.zeros(count)
    lone[5] = 1.0
    assert float(mixed(lone, signs_of(count)).abs().max()) <= (2 / count) ** 0.5 * 1.0001
