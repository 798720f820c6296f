"""The second-order column solver: fix one input column at a time, let the later columns absorb its error.

For a linear with weight W [out, in] and Hessian H ~ XᵀX [in, in] of its inputs it lowers
tr((W - Q) H (W - Q)ᵀ) greedily. With H⁻¹ = UᵀU (U upper triangular), fixing column j to q leaves the error
e = (w_j - q) / U_jj, and column k > j moves by -e U_jk (Frantar et al., GPTQ, arXiv 2210.17323, section 3.3;
Frantar & Alistarh, SparseGPT, arXiv 2301.00774, section 3.2). Updates are applied when a column is read,
as products with the errors so far, which gives the same numbers as updating all later columns each time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from backend.views import Statistics

_BLOCK = 128
# Beyond this the damped Hessian is nearly its diagonal and the solver is plain rounding.
_DAMPING_LIMIT = 1.0


def inverse_root(statistics: Statistics, damping: float, order: Tensor | None = None) -> Tensor:
    """U [in, in] float32, H⁻¹ = UᵀU for H = C + damping * mean(diag C) * I with inputs reordered by `order`.

    Inputs that were never active get a diagonal of one. When H cannot be factored, the damping is raised
    tenfold (at least to 1e-4) until it can. Shared by all linears with the same inputs.
    """
    key = ("inverse_root", damping, order is not None)
    return statistics.once(key, lambda: _inverse_root(statistics, damping, order))


def _inverse_root(statistics: Statistics, damping: float, order: Tensor | None) -> Tensor:
    assert statistics.gram is not None
    hessian = statistics.gram.double().clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    if order is not None:
        hessian = hessian[order][:, order]
    mean = hessian.diagonal().mean()
    share = damping
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(share * mean)
        # With the inputs in reverse, H = L Lᵀ gives H = V Vᵀ with V upper triangular, and U is the inverse of
        # V: the factor of H⁻¹ without H⁻¹, at half the work and with better conditioning.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            if bool(torch.isfinite(upper).all()):
                return upper.float()
        if share >= _DAMPING_LIMIT:
            raise RuntimeError("the Hessian cannot be factored even when damped by its mean diagonal")
        share = max(share * 10, 1e-4)


def activation_order(statistics: Statistics) -> Tensor:
    """Inputs by falling diagonal of the Hessian [in]."""
    assert statistics.gram is not None
    return statistics.gram.diagonal().argsort(descending=True, stable=True)


def solve_columns(
    weight: Tensor,
    upper: Tensor,
    assign: Callable[[int, Tensor], Tensor],
    prepare: Callable[[int, Tensor], None] | None = None,
    every: int = _BLOCK,
) -> tuple[Tensor, float]:
    """Q [out, in] and its loss sum(e²) / 2 for `weight` [out, in] float32.

    assign(j, w)    what column j [out] becomes
    prepare(j, W)   called before columns 0, every, 2 every, ... with columns j .. j+every as updated so far
    """
    inputs = weight.shape[1]
    remaining = weight.T.contiguous()
    result = torch.empty_like(remaining)
    errors = torch.empty_like(remaining)
    upper_t = upper.T.contiguous()
    diagonal = upper.diagonal().tolist()
    block = max(every, _BLOCK // every * every)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        # Views taken at once: taking them one by one costs as much as the arithmetic of a narrow layer.
        columns, lost = remaining[start:stop].unbind(), errors[start:stop].unbind()
        made, factors = result[start:stop].unbind(), upper_t[start:stop, start:stop].unbind()
        so_far = errors[start:stop].T
        for k, j in enumerate(range(start, stop)):
            if prepare is not None and k % every == 0:
                end = min(j + every, inputs)
                ahead = remaining[j:end] - upper_t[j:end, start:j] @ errors[start:j]
                prepare(j, ahead.T)
            column = torch.addmv(columns[k], so_far[:, :k], factors[k][:k], alpha=-1)
            fixed = made[k].copy_(assign(j, column))
            torch.sub(column, fixed, out=lost[k]).div_(diagonal[j])
        if stop < inputs:
            remaining[stop:].addmm_(upper_t[stop:, start:stop], errors[start:stop], alpha=-1)
    return result.T.contiguous(), float(errors.double().square().sum() / 2)
