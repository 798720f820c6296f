"""Prune by Wanda's score, then swap pruned and kept weights so that each output loses less on average.

    μ_j, v_j mean and variance of input j;  c_ij = W_ij μ_j;  ε_i = Σ over pruned j of c_ij  [out]
    regrow, in row i, the pruned weight with the largest c_ij / v_j in the direction of ε_i;
    prune, of the kept weights whose loss moves ε_i towards zero, the one with the smallest |W_ij| ||x_j||;
    go on while |ε_i| is above the threshold and keeps its first sign

Needs the channels' sums and norms. Weights are never changed, one goes for each that comes, so the sparsity
and what is stored are Wanda's. With a pattern, a swap stays within its group of M. The threshold is
absolute, in units of the output. Helps at high sparsity; at 50% there is little left to gain.
Zhang et al., DSnoT, arXiv 2310.08915, section 3 and algorithm 1.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from backend.parameters import Pattern, Sparsity
from backend.parts import Part, Sparse
from backend.registry import Claim, method
from backend.sizes import kept_by_row
from backend.solvers.masks import keep_largest, keep_pattern
from backend.views import Layer

Cycles = Annotated[int, Field(ge=0, le=1000, description="Most swaps per output; 0 leaves Wanda's mask")]
Threshold = Annotated[
    float, Field(ge=0.0, description="Mean error of an output below which it is left alone")
]


@method(
    paper="arXiv:2310.08915",
    needs="norms",
    keeps=kept_by_row,
    claim=Claim(
        "Swapping positions without training improves Wanda's masks at high sparsity",
        better=({"method": "prune.dsnot", "params": {"sparsity": 0.6}},),
        worse=({"method": "prune.wanda", "params": {"sparsity": 0.6}},),
    ),
)
def dsnot(
    layer: Layer,
    *,
    sparsity: Sparsity = 0.6,
    pattern: Pattern = "free",
    cycles: Cycles = 50,
    threshold: Threshold = 0.1,
) -> tuple[Part, ...]:
    """Sparse part of the weights that are kept after the swaps."""
    statistics = layer.statistics
    assert statistics.squares is not None
    assert statistics.sums is not None
    weight = layer.now
    tokens = max(statistics.tokens, 1)
    mean = statistics.sums / tokens
    variance = (statistics.squares / tokens - mean.square()).clamp(min=1e-12)
    score = weight.abs() * statistics.squares.sqrt().float()
    kept = keep_pattern(score, pattern) if pattern != "free" else keep_largest(score, sparsity)
    allowed = torch.ones_like(kept) if layer.kept is None else layer.kept
    width = weight.shape[1] if pattern == "free" else int(pattern.split(":")[1])
    kept = _swapped(
        weight.double() * mean, variance, score, kept & allowed, allowed, width, cycles, threshold
    )
    return (Sparse.keep(weight, kept, layer.dtype),)


def _swapped(
    shift: Tensor,
    variance: Tensor,
    score: Tensor,
    kept: Tensor,
    allowed: Tensor,
    width: int,
    cycles: int,
    threshold: float,
) -> Tensor:
    """The mask [out, in] after the swaps; a weight that came or went stays as it is then."""
    kept = kept.clone()
    free = allowed.clone()
    error = torch.where(kept, 0.0, shift).mul(allowed).sum(dim=1)
    first = error.sign()
    growth = shift / variance * first[:, None]
    rows = torch.arange(len(kept), device=kept.device)
    active = error.abs() > threshold
    for _ in range(cycles):
        if not bool(active.any()):
            break
        can_grow = free & ~kept & (growth > 0)
        grow = growth.masked_fill(~can_grow, -torch.inf).argmax(dim=1)
        # Losing a weight adds its share to the error: it must have the other sign.
        can_go = free & kept & (shift * first[:, None] < 0)
        if width < kept.shape[1]:
            groups = torch.arange(kept.shape[1], device=kept.device) // width
            can_go &= groups[None, :] == groups[grow][:, None]
        go = score.masked_fill(~can_go, torch.inf).argmin(dim=1)
        possible = active & can_grow[rows, grow] & can_go[rows, go]
        after = error + shift[rows, go] - shift[rows, grow]
        accepted = possible & (after.sign() == first)
        chosen = rows[accepted]
        kept[chosen, grow[accepted]] = True
        kept[chosen, go[accepted]] = False
        free[chosen, grow[accepted]] = False
        free[chosen, go[accepted]] = False
        error = torch.where(accepted, after, error)
        active = accepted & (error.abs() > threshold)
    return kept
