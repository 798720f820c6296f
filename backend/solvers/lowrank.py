"""Best low-rank factors of a weight error, plain or as seen through the inputs.

Minimises ||X (E - B A)ᵀ||² = tr((E - BA) C (E - BA)ᵀ) over B [out, rank], A [rank, in]; C = XᵀX [in, in].
Any T with T Tᵀ = C turns it into the plain problem for E T, so the optimum leaves exactly the discarded
squared singular values of E T (Eckart-Young). All in float64: the spectrum of C spans eight decades and more.
"""

import torch
from torch import Tensor

from backend.views import Statistics


def truncated_error(error: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, rank], A [rank, in] of the plain truncated SVD of `error` [out, in]."""
    error = error.double()
    rows, inputs = error.shape
    rank = min(rank, rows, inputs)
    if rows <= inputs:
        left = _leading(error @ error.T, rank)
        return _balanced(left, left.T @ error)
    right = _leading(error.T @ error, rank)
    return _balanced(error @ right, right.T)


def projected_error(error: Tensor, statistics: Statistics, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, rank], A [rank, in] that leave the least output error of `error` [out, in] under C.

    out <= in: the leading eigenvectors of E C Eᵀ span the best output space, and no inverse of C is needed.
    out > in: project E into the eigenspace of C, truncate there, project back. Eigenvalues that are round-off
    (below in * eps of float64 times the largest) are raised to that bound, not dropped: directions that the
    text never showed then get what the chosen output space holds of E, exactly as in the other form.
    """
    assert statistics.gram is not None
    error, gram = error.double(), statistics.gram.double()
    rows, inputs = error.shape
    rank = min(rank, rows, inputs)
    if rows <= inputs:
        left = _leading(error @ gram @ error.T, rank)
        return _balanced(left, left.T @ error)
    vectors, roots = statistics.once("eigenspace", lambda: _eigenspace(statistics))
    projected = (error @ vectors) * roots
    right = _leading(projected.T @ projected, rank)
    return _balanced(projected @ right, (right.T / roots) @ vectors.T)


def _eigenspace(statistics: Statistics) -> tuple[Tensor, Tensor]:
    assert statistics.gram is not None
    values, vectors = torch.linalg.eigh(statistics.gram.double())
    smallest = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors, values.clamp(min=float(smallest) or 1.0).sqrt()


def _leading(symmetric: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh((symmetric + symmetric.T) / 2)[1].flip(1)[:, :rank]


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    # Equal norms on both sides, so that neither factor loses digits when stored in a short type.
    norms, across = left.norm(dim=0), right.norm(dim=1)
    share = torch.where((norms > 0) & (across > 0), (across / norms.clamp(min=1e-300)).sqrt(), 1)
    return left * share, right / share[:, None]
