"""Prune column by column by the second-order cost of a weight, and let the later columns absorb the error.

    H = XᵀX + damping * mean(diag) * I  [in, in],  H⁻¹ = UᵀU;  cost of weight (i, j) = w_ij² / U_jj²
    free: drop the int(n * sparsity) cheapest of each block of 128 columns, chosen on the block as updated
    N:M: keep the N dearest of every M consecutive inputs, chosen when the group is reached
    for j = 1 .. in:  e = (w_j - q) / U_jj with pruned entries of q zero,  w_k -= e U_jk for k > j

Needs the Gram matrix of the layer's inputs. Kept weights change. Stores what prune.magnitude stores.
Weights that an earlier stage pruned stay zero and count towards the sparsity.
Frantar & Alistarh, SparseGPT, arXiv 2301.00774, algorithm 1.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backend.costs import Cost
from backend.parameters import Damping, Pattern, Sparsity
from backend.parts import Part, Sparse
from backend.registry import Claim, method
from backend.solvers.columns import inverse_root, solve_columns
from backend.solvers.masks import keep_largest, keep_pattern
from backend.views import Layer

_MASK_BLOCK = 128


def _keeps(rows: int, inputs: int, params: Mapping[str, Any]) -> int:
    sizes = [min(_MASK_BLOCK, inputs - start) * rows for start in range(0, inputs, _MASK_BLOCK)]
    return sum(size - int(size * params["sparsity"]) for size in sizes)


@method(
    paper="arXiv:2301.00774",
    cost=Cost("solve", 1.7),
    needs="gram",
    keeps=_keeps,
    claim=Claim(
        "SparseGPT loses less than Wanda at 2:4",
        whose="ours",
        paper_says="SparseGPT loses less than magnitude pruning; Wanda came after it.",
        better=({"method": "prune.sparsegpt", "params": {"pattern": "2:4"}},),
        worse=({"method": "prune.wanda", "params": {"pattern": "2:4"}},),
    ),
)
def sparsegpt(
    layer: Layer, *, sparsity: Sparsity = 0.5, pattern: Pattern = "free", damping: Damping = 0.01
) -> tuple[Part, ...]:
    """Sparse part of kept weights, updated for the lost ones."""
    weight, before = layer.now, layer.kept
    upper = inverse_root(layer.statistics, damping)
    diagonal = upper.diagonal()
    mask = torch.ones_like(weight.T, dtype=torch.bool)

    def choose(start: int, columns: Tensor) -> None:
        stop = start + columns.shape[1]
        cost = (columns / diagonal[start:stop]).square()
        if before is not None:
            cost = cost.masked_fill(~before[:, start:stop], -1)
        if pattern != "free":
            kept = keep_pattern(cost, pattern)
        else:
            kept = keep_largest(cost.reshape(1, -1), sparsity).view(cost.shape)
        mask[start:stop] = (kept if before is None else kept & before[:, start:stop]).T

    every = _MASK_BLOCK if pattern == "free" else int(pattern.split(":")[1])
    solved, _ = solve_columns(weight, upper, lambda j, column: column * mask[j], choose, every)
    return (Sparse.keep(solved, mask.T, layer.dtype),)
