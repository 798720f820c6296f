"""Which weights to keep, given a score for each."""

import torch
from torch import Tensor


def keep_pattern(scores: Tensor, pattern: str) -> Tensor:
    """Mask [rows, in] of the N highest scores of every M consecutive inputs; the first of equals wins."""
    keep, of = (int(number) for number in pattern.split(":"))
    grouped = scores.reshape(-1, of)
    best = grouped.argsort(dim=-1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, best, True).view(scores.shape)


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """Mask without the int(n * sparsity) lowest of the n scores of each row; exact, also with ties."""
    drop = int(scores.shape[-1] * sparsity)
    worst = scores.argsort(dim=-1, stable=True)[..., :drop]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, worst, False)
