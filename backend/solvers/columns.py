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
# Rows or columns of a large matrix that exist twice at once.
_STRIP = 256
# Beyond this the damped Hessian is nearly its diagonal and the solver is plain rounding.
_DAMPING_LIMIT = 1.0


def inverse_root(
    statistics: Statistics, damping: float, order: Tensor | None = None, ordered: str = "by activation"
) -> Tensor:
    """U [in, in] float32, H⁻¹ = UᵀU for H = C + damping * mean(diag C) * I with inputs reordered by `order`.

    Inputs that were never active get a diagonal of one. When H cannot be factored, the damping is raised
    tenfold (at least to 1e-4) until it can. Shared by all linears with the same inputs and the same order,
    which `ordered` names.
    """
    key = ("inverse_root", damping, "" if order is None else ordered)
    return statistics.once(key, lambda: _inverse_root(statistics, damping, order))


def _inverse_root(statistics: Statistics, damping: float, order: Tensor | None) -> Tensor:
    gram = statistics.gram
    assert gram is not None
    inputs = len(gram)
    order = torch.arange(inputs, device=gram.device) if order is None else order
    diagonal = gram.diagonal()[order].double()
    diagonal[diagonal == 0] = 1
    mean, share = diagonal.mean(), damping
    upper = torch.empty(inputs, inputs, device=gram.device)
    while True:
        # With the inputs in reverse, H = L Lᵀ gives H = V Vᵀ with V upper triangular, and U is the inverse of
        # V: the factor of H⁻¹ without H⁻¹, at half the work and with better conditioning. A wide matrix is
        # large, so it is factored where it lies and its inverse is made some columns at a time.
        hessian = reordered(gram, order.flip(0))
        hessian.diagonal().copy_((diagonal + share * mean).flip(0))
        lower, failed = hessian.mT, torch.empty((), dtype=torch.int32, device=gram.device)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed:
            for start in range(0, inputs, _STRIP):
                stop = min(start + _STRIP, inputs)
                upper[:, start:stop] = _inverse_columns(lower, inputs - stop, inputs - start).flip(0, 1)
            if bool(torch.isfinite(upper).all()):
                return upper
        if share >= _DAMPING_LIMIT:
            raise RuntimeError("the Hessian cannot be factored even when damped by its mean diagonal")
        share = max(share * 10, 1e-4)
        del hessian, lower


def _inverse_columns(lower: Tensor, start: int, stop: int) -> Tensor:
    """Columns start to stop of the inverse of a lower triangular matrix."""
    unit = torch.zeros(len(lower), stop - start, dtype=lower.dtype, device=lower.device)
    unit[start:stop].diagonal().fill_(1)
    return torch.linalg.solve_triangular(lower, unit, upper=False)


def reordered(gram: Tensor, order: Tensor) -> Tensor:
    """A Gram matrix [in, in] in float64 with its inputs in another order, without a third one in between."""
    found = torch.empty(gram.shape, dtype=torch.float64, device=gram.device)
    for start in range(0, len(gram), _STRIP):
        found[start : start + _STRIP] = gram[order[start : start + _STRIP]][:, order]
    return found


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
