"""Orthogonal Hadamard matrices of every size for which Sylvester's and Paley's constructions have one.

    H_2n = [[H_n, H_n], [H_n, -H_n]]                                    Sylvester
    H_(q+1) = I + S, S = [[0, 1], [-1, Q]]                  q = 3 mod 4  Paley I
    H_2(q+1) = C ⊗ [[1, 1], [1, -1]] + I ⊗ [[1, -1], [-1, -1]]  q = 1 mod 4  Paley II, C = [[0, 1], [1, Q]]

with Q_ij = χ(i - j), the quadratic residues modulo the prime q. Divided by sqrt(n), H Hᵀ = I.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def hadamard(size: int) -> Tensor:
    """H / sqrt(size) [size, size] float64; ValueError for a size that no construction here has."""
    rest, doublings = size, 0
    while rest > 0:
        core = _core(rest)
        if core is not None:
            break
        if rest % 2:
            raise ValueError(f"no Hadamard matrix of size {size}")
        rest, doublings = rest // 2, doublings + 1
    else:
        raise ValueError(f"no Hadamard matrix of size {size}")
    for _ in range(doublings):
        core = torch.cat([torch.cat([core, core], dim=1), torch.cat([core, -core], dim=1)])
    return core / size**0.5


def exists(size: int) -> bool:
    """Whether `hadamard` has a matrix of this size."""
    try:
        hadamard(size)
    except ValueError:
        return False
    return True


def _core(size: int) -> Tensor | None:
    """A Hadamard matrix that is no doubling of a smaller one, or None."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(size - 1) and (size - 1) % 4 == 3:
        paley = _bordered(size - 1, -1.0)
        return torch.eye(size, dtype=torch.float64) + paley
    half = size // 2
    if size % 2 == 0 and _is_prime(half - 1) and (half - 1) % 4 == 1:
        conference = _bordered(half - 1, 1.0)
        first = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        second = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(conference, first) + torch.kron(torch.eye(half, dtype=torch.float64), second)
    return None


def _bordered(q: int, left: float) -> Tensor:
    """[[0, 1], [left, Q]] with the residues Q of the prime q."""
    residues = {number * number % q for number in range(1, q)}
    signs = torch.tensor([0.0] + [1.0 if n in residues else -1.0 for n in range(1, q)], dtype=torch.float64)
    index = (torch.arange(q)[:, None] - torch.arange(q)[None]) % q
    out = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    out[0, 1:], out[1:, 0], out[1:, 1:] = 1.0, left, signs[index]
    return out


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))
