"""Prune by Wanda's score, then swap pruned and kept weights so that each output loses less on average.

    μ_j, v_j mean and variance of input j;  c_ij = W_ij μ_j;  ε_i = Σ over pruned j of c_ij  [out]
    regrow, in row i, the pruned weight with the largest c_ij / v_j in the direction of ε_i;
    prune, of the kept weights whose loss moves ε_i towards zero, the one with the smallest |W_ij| ||x_j||;
    go on while 2048 |ε_i| is above the threshold and, with `sign_test`, ε_i keeps its first sign

Needs the channels' sums and norms. Weights are never changed, one goes for each that comes, so the sparsity
and what is stored are Wanda's. The threshold is the authors' 0.1 in the authors' unit: an error summed over
the 2048 tokens of their sequences, whatever the length of the calibration samples. It is absolute.
With a pattern, a swap stays within its group of M. `group_rule` says which weight of the group goes then:
`sign` asks as above, `score` takes the smallest |W_ij| ||x_j|| whatever its loss does to ε_i.
Defaults are the paper's algorithm. The authors' program differs: by its defaults it has no sign test without
a pattern, takes `score` with one (and the sign test), and leaves MLPs at Wanda's mask (here: `only`), where
swaps may do more harm than good.
Zhang et al., DSnoT, arXiv 2310.08915, section 3 and algorithm 1.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.costs import Cost
from backend.parameters import Pattern, Sparsity
from backend.parts import Part, Sparse
from backend.registry import Claim, method
from backend.sizes import kept_by_row
from backend.solvers.masks import keep_largest, keep_pattern
from backend.views import Layer

Cycles = Annotated[int, Field(ge=0, le=1000, description="Most swaps per output; 0 leaves Wanda's mask")]
Threshold = Annotated[
    float,
    Field(ge=0.0, description="Error of an output, summed over 2048 tokens, below which it is left alone"),
]
SignTest = Annotated[bool, Field(description="Stop before the error of an output changes its sign")]
GroupRule = Annotated[
    Literal["sign", "score"],
    Field(
        description="Which weight of a pattern's group goes: the least score of those whose loss lowers the "
        "error, or the least score of all"
    ),
]
# The length of the authors' sequences, over which they sum what the threshold is compared with.
_SEQUENCE = 2048


@method(
    paper="arXiv:2310.08915",
    cost=Cost("round", 65),
    needs="norms",
    keeps=kept_by_row,
    claim=Claim(
        "Swapping positions in attention, where its authors do it, improves Wanda's masks",
        whose="ours",
        paper_says="DSnoT improves Wanda's masks most where they lose most, at 70 % sparsity.",
        better=(
            {"method": "prune.dsnot", "params": {"sparsity": 0.5}, "only": "*att*"},
            {"method": "prune.wanda", "params": {"sparsity": 0.5}},
        ),
        worse=({"method": "prune.wanda", "params": {"sparsity": 0.5}},),
    ),
)
def dsnot(
    layer: Layer,
    *,
    sparsity: Sparsity = 0.6,
    pattern: Pattern = "free",
    cycles: Cycles = 50,
    threshold: Threshold = 0.1,
    sign_test: SignTest = True,
    group_rule: GroupRule = "sign",
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
    width = None if pattern == "free" else int(pattern.split(":")[1])
    shift = weight.double() * statistics.sums * (_SEQUENCE / tokens)
    asks = width is None or group_rule == "sign"
    kept = _swapped(
        shift, variance, score, kept & allowed, allowed, width, cycles, threshold, sign_test, asks
    )
    return (Sparse.keep(weight, kept, layer.dtype),)


def _swapped(
    shift: Tensor,
    variance: Tensor,
    score: Tensor,
    kept: Tensor,
    allowed: Tensor,
    width: int | None,
    cycles: int,
    threshold: float,
    sign_test: bool,
    asks: bool,
) -> Tensor:
    """The mask [out, in] after the swaps; a weight that came or went stays as it is then.

    width   inputs of a group that a swap stays in, or None
    asks    whether a weight may only go if its loss moves the error towards zero
    """
    kept = kept.clone()
    free = allowed.clone()
    error = torch.where(kept, 0.0, shift).mul(allowed).sum(dim=1)
    first = error.sign()
    growth = shift / variance
    rows = torch.arange(len(kept), device=kept.device)
    active = error.abs() > threshold
    for _ in range(cycles):
        if not bool(active.any()):
            break
        way = error.sign()[:, None]
        can_grow = free & ~kept & (shift * way > 0)
        grow = (growth * way).masked_fill(~can_grow, -torch.inf).argmax(dim=1)
        can_go = free & kept
        if asks:
            # Losing a weight adds its share to the error: it must have the other sign.
            can_go &= shift * way < 0
        if width is not None:
            groups = torch.arange(kept.shape[1], device=kept.device) // width
            can_go &= groups[None, :] == groups[grow][:, None]
        go = score.masked_fill(~can_go, torch.inf).argmin(dim=1)
        after = error + shift[rows, go] - shift[rows, grow]
        accepted = active & can_grow[rows, grow] & can_go[rows, go]
        if sign_test:
            accepted &= after.sign() == first
        chosen = rows[accepted]
        kept[chosen, grow[accepted]] = True
        kept[chosen, go[accepted]] = False
        free[chosen, grow[accepted]] = False
        free[chosen, go[accepted]] = False
        error = torch.where(accepted, after, error)
        active = accepted & (error.abs() > threshold)
    return kept
