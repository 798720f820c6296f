"""Quantize column by column and let the columns not yet quantized absorb each column's output error.

    min over codes of tr((W - Ŵ) H (W - Ŵ)ᵀ),  H = XᵀX + damping * mean(diag) * I  [in, in],  H⁻¹ = UᵀU
    for j = 1 .. in:  q = round_to_grid(w_j),  e = (w_j - q) / U_jj,  w_k -= e U_jk for k > j

Needs the Gram matrix of the layer's inputs. A group's grid is fitted on its columns as updated so far; with
`act_order` all grids are fitted beforehand on the weight as it came, so that no order has to be stored.
Stores what quantize.rtn stores. Pruned weights are fixed to zero when their column is reached and stay zero.
Gains little at 4 bits and more; at 2 bits the result is usable only with small groups.
Frantar et al., GPTQ, arXiv 2210.17323.
"""

from backend.costs import Cost
from backend.parameters import ActOrder, Bits, Damping, GroupSize, Symmetric
from backend.parts import Part
from backend.registry import Claim, method
from backend.sizes import grid_bytes
from backend.solvers.feedback import quantize_columns
from backend.views import Layer


@method(
    paper="arXiv:2210.17323",
    cost=Cost("solve"),
    needs="gram",
    stored=grid_bytes,
    pads=True,
    claim=Claim(
        "GPTQ loses less than rounding to nearest at the same bytes",
        whose="paper",
        better=({"method": "quantize.gptq", "params": {"bits": 3, "group_size": 64}},),
        worse=({"method": "quantize.rtn", "params": {"bits": 3, "group_size": 64}},),
    ),
)
def gptq(
    layer: Layer,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    symmetric: Symmetric = False,
    act_order: ActOrder = False,
    damping: Damping = 0.01,
) -> tuple[Part, ...]:
    """Grid part of the weight so far, quantized with error feedback."""
    return (
        quantize_columns(
            layer.now, layer.statistics, bits=bits, group_size=group_size, symmetric=symmetric,
            damping=damping, act_order=act_order, kept=layer.kept,
        ),
    )  # fmt: skip
