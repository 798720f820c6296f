"""Learn a matrix within each head, beside clipping and scales of channels, so that rounding costs little.

    values to output:   V_h <- A_h**-T V_h,   b_h <- b_h A_h**-1,   O_h' = O_h A_hᵀ         A_h [head, head]
    norm to linears:    norm.weight <- norm.weight / a,        W' = W diag(a)                    a [in]
    clipping of W' and objective as in quantize.omniquant:  |block(x̂; rounded) - dense block(x)|²

`affine` learns whole A_h: from epoch to epoch entries further from the diagonal join in, so that A_h stays
invertible; `diagonal` and `clipping` are quantize.omniquant. Query heads that share values share A_h. All of
it folds into norms and weights, so it stores what quantize.rtn stores. The paper's matrices behind norms do
not fold and are not learned, nor are those between queries and keys, so that of its gain over scales little
is left; heads whose weights were pruned stay diagonal. Of the start and all epochs the one is kept that loses
least on every eighth sample. Takes about half an hour on one core for 135 million weights.
Ma et al., AffineQuant, arXiv 2403.12544.
"""

from typing import Annotated, Literal

from pydantic import Field

from backend.parameters import Bits, BlockEpochs, ClipRate, GroupSize, Samples, ScaleRate
from backend.registry import Claim, method
from backend.sizes import grid_bytes
from backend.solvers.clipping import learn
from backend.views import Work

# What is learned for a whole model takes half an hour.
_FIRST = {"only": "*.0.*", "params": {"bits": 2, "group_size": 64}}

Freedom = Annotated[
    Literal["clipping", "diagonal", "affine"],
    Field(description="What is learned: clipping, also a scale a channel, also a matrix a head"),
]
MaskFactor = Annotated[
    float, Field(gt=0.0, le=1.0, description="How much slower entries beside the diagonal move")
]


@method(
    paper="arXiv:2403.12544",
    needs="norms",
    stored=grid_bytes,
    passes=lambda params: 4 * params["samples"] * params["epochs"],
    claim=Claim(
        "In the first block at 2 bits, matrices within heads lose less than scales alone",
        whose="ours",
        paper_says="AffineQuant learns matrices behind norms too, in all blocks, and beats OmniQuant.",
        better=({"method": "quantize.affinequant", **_FIRST},),
        worse=({"method": "quantize.omniquant", **_FIRST},),
    ),
)
def affinequant(
    work: Work,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    shape: Freedom = "affine",
    samples: Samples = 16,
    epochs: BlockEpochs = 8,
    clip_rate: ClipRate = 0.01,
    scale_rate: ScaleRate = 0.005,
    mask_factor: MaskFactor = 0.1,
) -> None:
    """Grid parts for every linear of the stage, and the model changed to fit them."""
    learn(
        work, shape, bits=bits, group_size=group_size, samples=samples, epochs=epochs, clip_rate=clip_rate,
        scale_rate=scale_rate, mask_factor=mask_factor,
    )  # fmt: skip
