"""Leave linears out: nothing of their weights is stored, and they put out their bias alone.

    W -> 0, as two factors of rank 0

Which ones, `only` says; behind allocate.evopress over a mixture the search says, which takes and gives back
whole attentions and MLPs beside the bits of the linears that stay (allocate.fisher and allocate.dp judge each
linear by itself). A half of a block whose linears have gone adds no more than its last bias to the residual
stream. A plain model has to multiply zeros there; to get a smaller one, take whole blocks (prune.blocks).
Depth as one more level: Sieberling et al., EvoPress, arXiv 2410.14649, sections 3 and 4.
"""

import torch

from backend.costs import Cost
from backend.parts import LowRank, Part
from backend.registry import method
from backend.views import Layer


@method(paper="arXiv:2410.14649", cost=Cost("round"), empties=True)
def linears(layer: Layer) -> tuple[Part, ...]:
    """Factors of rank 0."""
    rows, inputs = layer.weight.shape
    device = layer.weight.device
    nothing = torch.zeros(rows, 0, device=device), torch.zeros(0, inputs, device=device)
    return (LowRank.of(*nothing, layer.dtype),)
