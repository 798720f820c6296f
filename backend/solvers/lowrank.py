"""Best low-rank factors of a weight error, plain or as seen through the inputs.

Minimises ||X (E - B A)ᵀ||² = tr((E - BA) C (E - BA)ᵀ) over B [out, rank], A [rank, in]; C = XᵀX [in, in].
Any T with T Tᵀ = C turns it into the plain problem for E T, so the optimum leaves exactly the discarded
squared singular values of E T (Eckart-Young). All in float64: the spectrum of C spans eight decades and more.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from backend.factors import CodedFactors
from backend.parameters import PLAIN_BITS
from backend.parts import Factors, LowRank
from backend.views import Statistics

# What holds B, where A does not tell directions apart, to what it was: a share of the mean diagonal.
_HOLD = 1e-6
# Channels that were never active still get a little of the rank, and division stays possible.
_SMALLEST = 1e-4


def truncated_error(error: Tensor, rank: int, energy: float = 1.0) -> tuple[Tensor, Tensor]:
    """B [out, r], A [r, in] of the plain truncated SVD of `error` [out, in].

    r is `rank`, or fewer where these leave at most the share 1 - `energy` of the sum of squares.
    """
    error = error.double()
    rows, inputs = error.shape
    rank = min(rank, rows, inputs)
    if rows <= inputs:
        left = _leading(error @ error.T, rank, energy)
        return _balanced(left, left.T @ error)
    right = _leading(error.T @ error, rank, energy)
    return _balanced(error @ right, right.T)


def projected_error(
    error: Tensor, statistics: Statistics, rank: int, energy: float = 1.0
) -> tuple[Tensor, Tensor]:
    """B [out, r], A [r, in] that leave the least output error of `error` [out, in] under C.

    out <= in: the leading eigenvectors of E C Eᵀ span the best output space, and no inverse of C is needed.
    out > in: project E into the eigenspace of C, truncate there, project back. Eigenvalues that are round-off
    (below in * eps of float64 times the largest) are raised to that bound, not dropped: directions that the
    text never showed then get what the chosen output space holds of E, exactly as in the other form.
    r is `rank`, or fewer where these leave at most the share 1 - `energy` of the output error.
    """
    assert statistics.gram is not None
    error, gram = error.double(), statistics.gram.double()
    rows, inputs = error.shape
    rank = min(rank, rows, inputs)
    if rows <= inputs:
        left = _leading(error @ gram @ error.T, rank, energy)
        return _balanced(left, left.T @ error)
    vectors, roots = statistics.once("eigenspace", lambda: _eigenspace(statistics))
    projected = (error @ vectors) * roots
    right = _leading(projected.T @ projected, rank, energy)
    return _balanced(projected @ right, (right.T / roots) @ vectors.T)


def left_by_rank(error: Tensor, factors: tuple[Tensor, Tensor], gram: Tensor, points: int) -> list[float]:
    """The share of the output error of `error` [out, in] left at so many ranks, from 0 to the whole.

    For the factors of `projected_error`, whose terms are orthogonal in the output: each repairs its own.
    Nothing where there is no error.
    """
    left, right = factors
    whole = float(((error.double() @ gram) * error).sum())
    repaired = left.square().sum(dim=0) * ((right @ gram) * right).sum(dim=1)
    if whole <= 0:
        return []
    ranks = torch.linspace(0, left.shape[1], points).round().long()
    summed = torch.nn.functional.pad(repaired.cumsum(0), (1, 0)) / whole
    return (1 - summed[ranks.to(summed.device)]).clamp(min=0).tolist()


def energies(error: Tensor, statistics: Statistics) -> Tensor:
    """How much of the output error of `error` [out, in] each rank repairs [min(out, in)], most first.

    These are the squared singular values of X Eᵀ; their sum is the whole output error.
    """
    assert statistics.gram is not None
    error, gram = error.double(), statistics.gram.double()
    if error.shape[0] <= error.shape[1]:
        symmetric = error @ gram @ error.T
    else:
        vectors, roots = statistics.once("eigenspace", lambda: _eigenspace(statistics))
        projected = (error @ vectors) * roots
        symmetric = projected.T @ projected
    return torch.linalg.eigvalsh((symmetric + symmetric.T) / 2).flip(0).clamp(min=0)


def channel_sizes(statistics: Statistics, scale: str) -> Tensor:
    """The size of each input channel [in], positive and around one.

    mean_abs: the largest mean of |x| over one calibration sample; rms: the root of the mean square.
    """
    assert statistics.squares is not None
    assert statistics.magnitudes is not None
    if scale == "rms":
        found = (statistics.squares / max(statistics.tokens, 1)).sqrt()
    else:
        found = statistics.magnitudes
    clamped = found.clamp(min=_SMALLEST)
    return clamped / torch.sqrt(clamped.min() * clamped.max())


def stored(
    factors: tuple[Tensor, Tensor],
    bits: int,
    dtype: torch.dtype,
    error: Tensor,
    seen: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Factors:
    """The part that holds B [out, rank] and A [rank, in] of `error` in so many bits; 16 are plain `dtype`.

    With fewer bits B is fitted anew to A as stored, least squares under C, before it is rounded itself:
    B' = B + (E - B A) C Aᵀ (A C Aᵀ)⁻¹. `seen` maps rows r [n, in] to r C.
    """
    left, right = factors
    if bits == PLAIN_BITS:
        return LowRank.of(left, right, dtype)
    coded = CodedFactors.of(left, right, bits)
    if not coded.rank:
        return coded
    right = coded.factors()[1].double()
    across = seen(right).T
    gram = right @ across
    hold = float(_HOLD * gram.diagonal().mean()) or 1.0
    missed = (error.double() - left @ right) @ across
    held = gram + hold * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return coded.with_left(left + torch.linalg.solve(held, missed.T).T)


def _eigenspace(statistics: Statistics) -> tuple[Tensor, Tensor]:
    assert statistics.gram is not None
    values, vectors = torch.linalg.eigh(statistics.gram.double())
    smallest = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors, values.clamp(min=float(smallest) or 1.0).sqrt()


def _leading(symmetric: Tensor, rank: int, energy: float) -> Tensor:
    """Eigenvectors of the largest eigenvalues: `rank` of them, or as few as add up to the share `energy`."""
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    if energy < 1:
        summed = values.flip(0).clamp(min=0).cumsum(0)
        wanted = energy * float(summed[-1])
        rank = min(rank, int((summed < wanted).sum()) + (wanted > 0))
    return vectors.flip(1)[:, :rank]


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    # Equal norms on both sides, so that neither factor loses digits when stored in a short type.
    norms, across = left.norm(dim=0), right.norm(dim=1)
    share = torch.where((norms > 0) & (across > 0), (across / norms.clamp(min=1e-300)).sqrt(), 1)
    return left * share, right / share[:, None]
