"""Best low-rank factors of a weight error, plain or as seen through the inputs.

Minimises ||X (E - B A)ᵀ||² = tr((E - BA) C (E - BA)ᵀ) over B [out, rank], A [rank, in]; C = XᵀX [in, in].
Any T with T Tᵀ = C turns it into the plain problem for E T, so the optimum leaves exactly the discarded
squared singular values of E T (Eckart-Young). All in float64: the spectrum of C spans eight decades and more.
"""

import torch
from torch import Tensor

from backend.views import Statistics

# With fewer tokens than this per input, directions that the text never showed would be left uncompensated.
_TOKENS_PER_INPUT = 4
_SCARCE_DAMPING = 0.01


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
    out > in: project E into the eigenspace of C, truncate there, project back. Directions that C does not
    hold (below in * eps of float64 times the largest eigenvalue) are dropped; where the text has fewer than
    four tokens per input, C is damped by 1% of its mean diagonal.
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
    inverse = torch.where(roots > 0, 1 / roots.clamp(min=torch.finfo(roots.dtype).tiny), 0)
    return _balanced(projected @ right, (right.T * inverse) @ vectors.T)


def _eigenspace(statistics: Statistics) -> tuple[Tensor, Tensor]:
    assert statistics.gram is not None
    gram = statistics.gram.double().clone()
    inputs = gram.shape[0]
    if statistics.tokens < _TOKENS_PER_INPUT * inputs:
        gram.diagonal().add_(_SCARCE_DAMPING * gram.diagonal().mean())
    values, vectors = torch.linalg.eigh(gram)
    values = torch.where(values > inputs * torch.finfo(values.dtype).eps * values[-1], values, 0)
    return vectors, values.sqrt()


def _leading(symmetric: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh((symmetric + symmetric.T) / 2)[1].flip(1)[:, :rank]


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    # Equal norms on both sides, so that neither factor loses digits when stored in a short type.
    norms, across = left.norm(dim=0), right.norm(dim=1)
    share = torch.where((norms > 0) & (across > 0), (across / norms.clamp(min=1e-300)).sqrt(), 1)
    return left * share, right / share[:, None]
