"""The parameters that many methods share: one name, one range and one line of help each."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

GROUPED_ROW = -1
# Factors of so many bits are values in the model's own type.
PLAIN_BITS = 16
# Larger ones are no compression of any linear there is.
MOST_RANK = 4096
# What predicting the KL of a search's levels costs, as windows that the model is run on, about.
PREDICTED_WINDOWS = 36
# Of what may differ between linears: several things at once.
MIXTURE = "mixture"


def aim_of(over: str) -> str:
    """The parameter whose mean sets the bytes of what differs `over`; that of a mixture is the bits."""
    return "bits" if over == MIXTURE else over


def _whole_row_or_positive(size: int) -> int:
    if size != GROUPED_ROW and size < 1:
        raise ValueError("-1 (one group per row) or a positive number of inputs")
    return size


Bits = Annotated[int, Field(ge=2, le=8, description="Bits of one stored code")]
GroupSize = Annotated[
    int,
    Field(ge=-1, le=8192, description="Inputs that share one scale; -1 is the whole row"),
    AfterValidator(_whole_row_or_positive),
]
Symmetric = Annotated[bool, Field(description="No zero point: the grid is centred on zero")]
Sparsity = Annotated[float, Field(ge=0.0, lt=1.0, description="Share of the weights set to zero")]
Pattern = Annotated[
    Literal["free", "2:4", "4:8"],
    Field(description="free: any position; N:M keeps N of every M consecutive inputs (sparsity 0.5)"),
]
Rank = Annotated[
    int, Field(ge=0, le=MOST_RANK, description="Rank of the two factors, cut to the smaller side of a layer")
]
FactorBits = Annotated[
    Literal[4, 8, 16], Field(description="Bits of a value of the factors; 16 is the model's own type")
]
Energy = Annotated[
    float,
    Field(gt=0.0, le=1.0, description="Rank goes up until this share of the error's energy is repaired"),
]
OwnText = Annotated[
    str,
    Field(max_length=500, description="Text that this stage is fitted on; empty is the calibration's"),
]
Damping = Annotated[
    float, Field(ge=0.0, le=1.0, description="Share of the mean diagonal added to the Hessian")
]
ActOrder = Annotated[bool, Field(description="Quantize the inputs with the largest Hessian diagonal first")]
KeptRatio = Annotated[
    float, Field(gt=0.0, le=1.0, description="Share of the weight's own size that the factors may take")
]
MeanBits = Annotated[
    float, Field(ge=2.0, le=8.0, description="Bits of one stored code, on average over the weights")
]
MeanSparsity = Annotated[
    float, Field(gt=0.0, lt=1.0, description="Share of the weights set to zero, on average over the weights")
]
MeanRank = Annotated[
    int,
    Field(ge=1, le=MOST_RANK, description="Rank whose bytes, taken for all linears, are given out"),
]
Over = Annotated[
    Literal["bits", "sparsity", "rank", "mixture"],
    Field(
        description="What differs between linears, as later stages take it; a mixture: bits, and which "
        "linears the later stages that prune or compensate work on, at the bytes of the mean bits alone"
    ),
]
Reach = Annotated[
    int,
    Field(
        ge=1,
        le=6,
        description="A linear gets at most so many bits, tenths of sparsity or halves of rank off the mean",
    ),
]
# Of methods that learn block by block, on some of the calibration samples.
Samples = Annotated[int, Field(ge=1, le=4096, description="How many of the calibration samples are used")]
BlockEpochs = Annotated[int, Field(ge=1, le=100, description="Times that each block sees the samples")]
ClipRate = Annotated[float, Field(gt=0.0, le=1.0, description="Step of AdamW for clipping")]
ScaleRate = Annotated[float, Field(gt=0.0, le=1.0, description="Step of AdamW for scales and matrices")]
