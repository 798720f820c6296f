"""Cyclic coordinate descent on a layer's output error, a column at a time, without an inverse.

    f(Q) = tr((W - Q) C (W - Q)ᵀ),  C = XᵀX [in, in];   the best real value of column j alone is
    β_j = Q_j + ((W - Q) C)_j / C_jj        (Behdin et al., QuantEase, arXiv 2309.01885, section 3)

Putting column j to the nearest allowed value of β_j cannot raise f, which is a parabola in each entry.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK = 128


def sweep_columns(
    target: Tensor, start: Tensor, gram: Tensor, assign: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Q [out, in] float32 after each column of `start` in turn took its best value near `target` [out, in].

    assign(j, β)     what column j [out] may be that is nearest to β [out]
    Columns whose diagonal of `gram` is zero get the nearest value to the target's.
    """
    gram = gram.double()
    # Normalised, so that the size of the calibration text does not matter to float32.
    gram = (gram / gram.diagonal().mean().clamp(min=1e-300)).float()
    diagonal = gram.diagonal().tolist()
    now = start.T.contiguous()
    wanted = target.T.contiguous()
    # C is symmetric: row j of (W - Q)ᵀ seen through C is C (W - Q)ᵀ.
    pull = gram @ (wanted - now)
    for begin in range(0, len(now), _BLOCK):
        end = min(begin + _BLOCK, len(now))
        moved = torch.zeros_like(now[begin:end])
        inner = gram[begin:end, begin:end]
        for k, j in enumerate(range(begin, end)):
            if diagonal[j] == 0:
                now[j] = assign(j, wanted[j])
                continue
            felt = torch.addmv(pull[j], moved[:k].T, inner[k, :k], alpha=-1)
            new = assign(j, now[j] + felt / diagonal[j])
            torch.sub(new, now[j], out=moved[k])
            now[j] = new
        pull.addmm_(gram[:, begin:end], moved, alpha=-1)
    return now.T.contiguous()
