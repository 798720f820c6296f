"""Give rank to the linears where a byte of it repairs the most, at the bytes of one rank for all.

    σ²_lk: what the k-th rank repairs of the output error ||X (W - Ŵ)ᵀ||² of linear l (compensate.eora)
    gain_lk = σ²_lk / (w_l bytes a rank of l takes);   w_l = ||X Wᵀ||² (relative) or 1 (absolute)

Takes the largest gains while the bytes of rank `rank` everywhere pay for them; σ² fall with k, so no other
ranks leave a smaller weighted sum of errors, but for the last few bytes. Errors are those that the stages
before this one made, on inputs that went through them; plans `rank` for the stages after it and stores
nothing itself.
Output errors add up here; what the rest of the model makes of them is not seen, and can be more than a plan
gains. Absolute errors put nearly all rank where outputs are large, which the model may hardly feel.
The spectra are those of Liu et al., EoRA, arXiv 2410.21271; a fixed budget spread by gain is Fox, 1966.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from backend.costs import Cost
from backend.parameters import MOST_RANK, Rank
from backend.registry import Claim, method
from backend.sizes import Matrix, low_rank_bytes
from backend.solvers.budget import by_gain
from backend.solvers.lowrank import energies
from backend.views import Work

Weighting = Annotated[
    Literal["relative", "absolute"], Field(description="relative: errors count as shares of the outputs")
]
# Ranks that the run's card tells the error at.
_TOLD = (0, 8, 16, 32, 64, 128, 256, 512)
_WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
_EORA = {"method": "compensate.eora", "params": {"rank": 64}}


@method(
    paper="arXiv:2410.21271",
    cost=Cost("svd", 1.8),
    needs="gram",
    plans="rank",
    claim=Claim(
        "Rank where it repairs the most output error loses less than the same rank everywhere",
        whose="ours",
        paper_says="EoRA gives every linear the same rank.",
        better=(_WANDA, {"method": "allocate.rank", "params": {"rank": 64}}, _EORA),
        worse=(_WANDA, _EORA),
    ),
)
def rank(work: Work, *, rank: Rank = 64, weighting: Weighting = "relative") -> None:
    """Plan a rank for every linear that a later stage gives one."""
    found: dict[str, tuple[list[float], Callable[[int], int]]] = {}
    curves = []
    for layer in work.layers("gram"):
        takers = work.takers("rank", layer.name) if work.covers(layer.name) else []
        if not takers:
            continue
        assert layer.statistics.gram is not None
        weight, gram = layer.weight.double(), layer.statistics.gram.double()
        whole = float(((weight @ gram) * weight).sum())
        repaired = energies(layer.weight - layer.now, layer.statistics)
        relative = repaired / whole if whole > 0 else torch.zeros_like(repaired)
        curves.append([float(relative[told:].sum()) for told in _TOLD])
        rows, inputs = layer.weight.shape
        matrix = Matrix(rows, inputs, 0, 8 * layer.dtype.itemsize)
        gains = relative if weighting == "relative" else repaired
        found[layer.name] = (gains[:MOST_RANK].tolist(), partial(_bytes, matrix, takers))
    budget = sum(price(min(rank, len(gains))) for gains, price in found.values())
    ranks = by_gain(list(found.values()), budget)
    for name, planned in zip(found, ranks, strict=True):
        work.plan.setdefault(name, {})["rank"] = planned
    if ranks:
        work.report["ranks from, to"] = [min(ranks), max(ranks)]
        work.report[f"mean output error left at rank {', '.join(map(str, _TOLD))}"] = [
            round(sum(column) / len(curves), 5) for column in zip(*curves, strict=True)
        ]


def _bytes(matrix: Matrix, takers: Sequence[Mapping[str, Any]], rank: int) -> int:
    """What all stages that get the rank store for it."""
    return sum(low_rank_bytes(matrix, {**params, "rank": rank}) for params in takers)
