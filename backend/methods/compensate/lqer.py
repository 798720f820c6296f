"""Add a low-rank part for the weight error with the input channels weighted by how large they are.

    E = W - Ŵ [out, in];  s_j the size of input channel j;  U Σ Vᵀ = truncated SVD of E diag(s)
    B A = U Σ Vᵀ diag(1 / s),  B [out, rank], A [rank, in];  y += (x Aᵀ) Bᵀ

`scale` says what a channel's size is: mean_abs, the largest mean of |x| over one calibration sample (LQER),
or rms, the root of the mean square (optimal when channels are uncorrelated, QERA-approx).
Needs channel sizes, not the Gram matrix. Stores what compensate.svd stores, and
stops as it does.
Sees how large inputs are but not how they move together; compensate.eora sees both.
Zhang et al., LQER (L²QER), arXiv 2402.02446, section 3.2; Zhang et al., QERA, arXiv 2410.06040.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field

from backend.costs import Cost
from backend.parameters import Energy, FactorBits, Rank
from backend.parts import Part
from backend.registry import Claim, method
from backend.solvers.lowrank import channel_sizes, stored, truncated_error
from backend.views import Layer

Scale = Annotated[Literal["mean_abs", "rms"], Field(description="What the size of an input channel is")]


@method(
    paper="arXiv:2402.02446",
    cost=Cost("svd"),
    needs="norms",
    claim=Claim(
        "Weighting channels by their size repairs more than a plain SVD of the error at the same rank",
        whose="ours",
        paper_says="LQER repairs quantization, not pruning.",
        better=(
            {"method": "prune.wanda", "params": {"pattern": "2:4"}},
            {"method": "compensate.lqer", "params": {"rank": 64}},
        ),
        worse=(
            {"method": "prune.wanda", "params": {"pattern": "2:4"}},
            {"method": "compensate.svd", "params": {"rank": 64}},
        ),
    ),
)
def lqer(
    layer: Layer,
    *,
    rank: Rank = 64,
    scale: Scale = "mean_abs",
    energy: Energy = 1.0,
    factor_bits: FactorBits = 16,
) -> tuple[Part, ...]:
    """The parts so far and a low-rank part for what they miss, weighted by channel."""
    sizes, error = channel_sizes(layer.statistics, scale), (layer.weight - layer.now).double()
    left, right = truncated_error(error * sizes, rank, energy)
    seen = partial(torch.mul, sizes.square())
    return (*layer.parts, stored((left, right / sizes), factor_bits, layer.dtype, error, seen))
