"""Alternating least squares for factors that are to match a matrix at some of its places only.

    min over U [out, rank], V [rank, in] of ||P (M - U V)||²,  P keeps the places where a mask is true

Each column of V, and each row of U, is a least-squares problem of its own. A step holds what it does not see
to what it was: (Uᵀ D_j U + h) d_j = Uᵀ D_j r_j for the change d_j of column j, D_j its places, r_j what is
missed there. So no step raises the objective, and a column with fewer places than ranks stays near its start.
"""

import torch
from torch import Tensor

# What holds a step, as a share of the mean diagonal of all its systems.
_HOLD = 1e-6
# Values of normal equations in memory at a time.
_AT_ONCE = 2**24


def completed(
    matrix: Tensor, wanted: Tensor, start: tuple[Tensor, Tensor], sweeps: int
) -> tuple[Tensor, Tensor]:
    """U [out, rank], V [rank, in] for `matrix` [out, in] where the mask `wanted` is true, from `start` on."""
    left, right = start
    if not left.shape[1]:
        return start
    for _ in range(sweeps):
        right = right + _steps(left, torch.where(wanted, matrix - left @ right, 0.0), wanted)
        left = left + _steps(right.T, torch.where(wanted, matrix - left @ right, 0.0).T, wanted.T).T
    return left, right


def _steps(factor: Tensor, residual: Tensor, wanted: Tensor) -> Tensor:
    """Changes d [rank, n] that lower ||residual - factor d||² at wanted places [m, n], factor [m, rank]."""
    rank, count = factor.shape[1], residual.shape[1]
    one, other = torch.triu_indices(rank, rank, device=factor.device)
    pairs = factor[:, one] * factor[:, other]
    aims = (factor.T @ residual).T
    hold = _HOLD * float(factor.square().sum(dim=0).mean()) or 1.0
    steps = torch.empty_like(aims)
    for some in torch.arange(count, device=factor.device).split(max(1, _AT_ONCE // rank**2)):
        systems = factor.new_empty(len(some), rank, rank)
        systems[:, one, other] = wanted[:, some].to(factor.dtype).T @ pairs
        systems[:, other, one] = systems[:, one, other]
        systems.diagonal(dim1=1, dim2=2).add_(hold)
        steps[some] = torch.cholesky_solve(aims[some][..., None], torch.linalg.cholesky(systems))[..., 0]
    return steps.T
