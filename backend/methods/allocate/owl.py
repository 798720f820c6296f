"""Give blocks with many outlier weights a lower sparsity, and the others a higher one, the mean as asked.

    A_l = |W| ||x_j|| of all linears of block l;  D_l = share of A_l above `outlier` times its mean
    k_l = 2 spread (D_l - min D) / (max D - min D);  kept_l = k_l - mean k + 1 - sparsity
    sparsity_l = 1 - kept_l, the same for all linears of the block; means are weighted by the number of
    weights

Needs the channel norms of the dense model, one more pass of the calibration text. Plans `sparsity` for the
pruning stages after it, whose pattern must be free; stores nothing itself. Where all blocks are alike the
plan is uniform. The spread is narrowed where a block would keep less than nothing or more than all of its
weights; the authors' program goes on there. Helps at 60% and more with Wanda's scores; little with
SparseGPT, and nothing at 50%.
Yin et al., OWL, arXiv 2310.05175, section 3.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from backend.parameters import Sparsity
from backend.parts import gone
from backend.registry import Claim, method
from backend.views import Work

Spread = Annotated[float, Field(ge=0.0, le=0.5, description="Half the range of the blocks' sparsities")]
Outlier = Annotated[
    float, Field(gt=0.0, description="An outlier is so many times the mean score of its block")
]

_SPARSEST = 0.999


@method(
    paper="arXiv:2310.05175",
    needs="norms",
    plans="sparsity",
    claim=Claim(
        "At 70% sparsity, blocks with outliers kept denser lose less than all blocks alike",
        whose="paper",
        better=(
            {"method": "allocate.owl", "params": {"sparsity": 0.7}},
            {"method": "prune.wanda", "params": {"sparsity": 0.7}},
        ),
        worse=({"method": "prune.wanda", "params": {"sparsity": 0.7}},),
    ),
)
def owl(work: Work, *, sparsity: Sparsity = 0.7, spread: Spread = 0.08, outlier: Outlier = 5.0) -> None:
    """Plan a sparsity for every linear."""
    scores: dict[int, list[Tensor]] = {}
    names: dict[int, list[str]] = {}
    shares: dict[int, float] = {}
    weights: dict[int, int] = {}
    for layer in work.layers("norms"):
        assert layer.statistics.squares is not None
        if gone(layer.parts):
            continue
        block, _ = work.family.place(layer.name)
        score = layer.now.abs() * layer.statistics.squares.sqrt().float()
        scores.setdefault(block, []).append(score.reshape(-1))
        names.setdefault(block, []).append(layer.name)
        weights[block] = weights.get(block, 0) + score.numel()
        if len(scores) > 1 and block - 1 in scores:
            shares[block - 1] = _share(scores.pop(block - 1), outlier)
    for block, rest in scores.items():
        shares[block] = _share(rest, outlier)
    for block, planned in _spread(shares, weights, sparsity, spread).items():
        for name in names[block]:
            work.plan.setdefault(name, {})["sparsity"] = planned


def _share(scores: list[Tensor], outlier: float) -> float:
    flat = torch.cat(scores)
    return float((flat > outlier * flat.mean(dtype=torch.float64)).double().mean())


def _spread(
    shares: dict[int, float], weights: dict[int, int], sparsity: float, spread: float
) -> dict[int, float]:
    """Each block's sparsity, in [0, 1), `sparsity` on average over the weights."""
    low, high = min(shares.values()), max(shares.values())
    if high == low:
        return dict.fromkeys(shares, sparsity)
    lifted = {block: 2 * (share - low) / (high - low) for block, share in shares.items()}
    mean = sum(lifted[block] * weights[block] for block in lifted) / sum(weights.values())
    # No block can be denser than dense, nor emptied.
    spread = min(spread, max(_SPARSEST - sparsity, 0.0) / mean, sparsity / (2 - mean))
    return {block: max(sparsity - spread * (lift - mean), 0.0) for block, lift in lifted.items()}
