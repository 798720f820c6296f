"""Learn where to clip each group and how to scale channels, so that rounding costs each block little.

    s = (u - l) / (2**bits - 1),   z = round(-l / s)                                     c, d [out, groups]
    u = sigmoid(c) max W',   l = sigmoid(d) min W'     over each row and group of inputs
    norm to linears:    norm.weight <- norm.weight / a,        W' = W diag(a)                    a [in]
    values to output:   V <- V / a,   b <- b / a,              O' = O diag(a)
    minimize over c, d, a:  |block(x̂; rounded) - dense block(x)|²

`scales` off learns c and d alone. All of it folds into norms and weights, so it stores what quantize.rtn
stores. Rounding passes gradients straight through. Of the start (98% of the range or more, SmoothQuant's
scales) and all epochs the one is kept that loses least on every eighth sample. The paper's shifts of channels
and its scales between queries and keys are left out. Takes about half an hour on one core for 135 million
weights. Shao et al., OmniQuant, arXiv 2308.13137.
"""

from typing import Annotated

from pydantic import Field

from backend.parameters import Bits, BlockEpochs, ClipRate, GroupSize, Samples, ScaleRate
from backend.registry import Claim, method
from backend.sizes import grid_bytes
from backend.solvers.clipping import learn
from backend.views import Work

# What is learned for a whole model takes half an hour.
_FIRST = {"bits": 2, "group_size": 64}

Scales = Annotated[bool, Field(description="A scale of each channel is learned too, not clipping alone")]


@method(
    paper="arXiv:2308.13137",
    needs="norms",
    stored=grid_bytes,
    passes=lambda params: 4 * params["samples"] * params["epochs"],
    claim=Claim(
        "In the first block at 2 bits, learned scales and clipping lose less than learned clipping alone",
        whose="ours",
        paper_says="OmniQuant learns all blocks and loses less than rounding, GPTQ and AWQ.",
        better=({"method": "quantize.omniquant", "only": "*.0.*", "params": _FIRST},),
        worse=({"method": "quantize.omniquant", "only": "*.0.*", "params": {**_FIRST, "scales": False}},),
    ),
)
def omniquant(
    work: Work,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 64,
    scales: Scales = True,
    samples: Samples = 16,
    epochs: BlockEpochs = 8,
    clip_rate: ClipRate = 0.01,
    scale_rate: ScaleRate = 0.005,
) -> None:
    """Grid parts for every linear of the stage, and the model changed to fit them."""
    learn(
        work, "diagonal" if scales else "clipping", bits=bits, group_size=group_size, samples=samples,
        epochs=epochs, clip_rate=clip_rate, scale_rate=scale_rate,
    )  # fmt: skip
