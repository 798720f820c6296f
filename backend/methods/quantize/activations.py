"""Round the inputs of each linear to few bits as they come in: what such hardware would see, simulated.

    x̂ = step clamp(round(x / step), -n, n),   step = clip max|x| / n,   n = 2**(bits - 1) - 1
    by channel:  k_j = clamp(round(log2(max_j a_j / a_j)), 0, 2**exponent_bits - 1),  a_j = max_t |x_tj|
                 x_j <- 2**k_j x_j,  W_j <- 2**-k_j W_j, then one range for all

with the largest |x| of each token (`token`, found anew each time), one for all (`tensor`, the largest of the
calibration text), or that of the loudest channel after doubling the others until they are about as loud
(`channel`; of a short float's channel up to sqrt 2 is cut off, whole numbers round k down). Without
`symmetric` the range runs from the smallest to the largest value of the token. `float` rounds to short floats
instead. By channel it must come before the stages that compress, for it moves scales into the weights; else
the weights stay as they are. Stores nothing, 32 bits a linear for a fixed range, 8 more a channel for the
doublings. No speed is claimed: the product itself runs in the model's type.

    for each split of the bits, t in 0 .. 2:  range 2**-t max|x|, doublings anew;  least |(X - X̂) Wᵀ|²

`search` tries so many ranges on up to 512 drawn tokens X, and `exponent_bits` 0 every split, for each linear.
The paper tries 100, for which a linear takes eight times as long as for 12 and ends up to 4 % better.
The paper searches activations and weights in turns; here the outputs are those of the weight as it is, and a
stage that quantizes it comes later and sees the shifted channels.
Liu et al., LLM-FP4, arXiv 2310.16836, section 3; by token: Dettmers et al., LLM.int8(), arXiv 2208.07339.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.errors import UserError
from backend.inputs import Rounded
from backend.parts import Dense, Part
from backend.registry import Claim, method
from backend.sizes import Matrix
from backend.views import Layer, Need

InputBits = Annotated[int, Field(ge=2, le=8, description="Bits of one rounded activation")]
Per = Annotated[
    Literal["token", "tensor", "channel"],
    Field(description="What shares a range: a token, everything, or everything after shifts by channel"),
]
Number = Annotated[Literal["integer", "float"], Field(description="Whole numbers, or short floats")]
Exponent = Annotated[
    int, Field(ge=0, le=5, description="Exponent bits of a short float or of the shifts; 0 tries all")
]
Search = Annotated[
    int, Field(ge=0, le=200, description="Ranges tried for each linear; 0 keeps that of the text")
]
Centred = Annotated[bool, Field(description="The range is centred on zero")]
Clip = Annotated[float, Field(gt=0.0, le=1.0, description="Share of the range that is kept")]


# Ranges down to a quarter of the largest.
_NARROWEST = 2.0
_MOST_EXPONENT_BITS = 5
_RANGE_BYTES = 4
_FLOATS = {"input_bits": 6, "number": "float", "per": "channel", "exponent_bits": 0, "search": 12}


def _tries_splits(number: str, per: str, exponent_bits: int) -> bool:
    return not exponent_bits and (number == "float" or per == "channel")


def _needs(params: Mapping[str, Any]) -> Need:
    splits = _tries_splits(params["number"], params["per"], params["exponent_bits"])
    return "inputs" if params["search"] > 0 or splits else "norms"


def _passes(params: Mapping[str, Any]) -> int:
    """How often the sample, about as long as one of the text, goes through every linear."""
    if _needs(params) == "norms":
        return 0
    splits = _tries_splits(params["number"], params["per"], params["exponent_bits"])
    return max(params["search"], 1) * (min(params["input_bits"] - 1, _MOST_EXPONENT_BITS) if splits else 1)


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    fixed = {"token": 0, "tensor": _RANGE_BYTES, "channel": _RANGE_BYTES + matrix.inputs}
    return fixed[params["per"]]


@method(
    paper="arXiv:2310.16836",
    needs=_needs,
    stored=_stored,
    passes=_passes,
    inputs=True,
    claim=Claim(
        "Searched 6-bit floats with shifted channels lose less than smoothing and 6-bit integers by token",
        whose="ours",
        paper_says="LLM-FP4 rounds weights and activations to 4 bits, and beats SmoothQuant there.",
        better=({"method": "quantize.activations", "params": _FLOATS},),
        worse=(
            {"method": "transform.smoothquant"},
            {"method": "quantize.activations", "params": {"input_bits": 6}},
        ),
        more_bytes=True,
    ),
)
def activations(
    layer: Layer,
    *,
    input_bits: InputBits = 8,
    per: Per = "token",
    symmetric: Centred = True,
    number: Number = "integer",
    exponent_bits: Exponent = 2,
    clip: Clip = 1.0,
    search: Search = 0,
) -> tuple[Part, ...]:
    """The parts as they are, behind rounded inputs."""
    rows, inputs = layer.weight.shape
    largest = None
    if per != "token":
        if layer.statistics.largest is None:
            raise UserError(
                f"quantize.activations: per is '{per}', but the largest input of {layer.name} is not known "
                "behind a rotation; allowed: token"
            )
        largest = layer.statistics.largest.float().clamp(min=1e-30)
    if per == "channel" and layer.parts:
        raise UserError(
            "quantize.activations: per is 'channel', which moves scales into the weight of "
            f"{layer.name}, but a stage before has compressed it; allowed: put this stage first"
        )
    centred = symmetric or per != "token" or number == "float"
    most = min(input_bits - 1, _MOST_EXPONENT_BITS)
    splits = range(1, most + 1) if _tries_splits(number, per, exponent_bits) else [min(exponent_bits, most)]
    shares = torch.linspace(0, _NARROWEST, search).neg().exp2().tolist() if search else [1.0]

    def rounding(split: int, share: float) -> Rounded:
        reach = doublings = None
        if largest is not None:
            # The loudest channel sets it: what the rounding of the others' doublings puts beyond is cut off.
            reach = largest.amax().view(1) * share
            if per == "channel":
                # A narrower range cuts off the loud channels, so that the others are doubled less often.
                doublings = _doublings(reach / largest, split, number).to(torch.uint8)
        return Rounded(
            (rows, inputs), width=input_bits, number=number, exponent_bits=split, symmetric=centred,
            clip=clip if largest is not None else clip * share, range=reach, doublings=doublings,
        )  # fmt: skip

    tried = [rounding(split, share) for split in splits for share in shares]
    change = tried[0] if len(tried) == 1 else _best(tried, layer)
    weight = change.of_weight(layer.weight).to(layer.dtype).contiguous()
    return (*(layer.parts or (Dense((rows, inputs), weight),)), change)


def _doublings(ratio: Tensor, exponent_bits: int, number: str) -> Tensor:
    """How often channels [in] that are so many times below the range are doubled."""
    wanted = ratio.log2()
    # Whole numbers have their finest steps at the end of the range too, so nothing of it may be cut off.
    wanted = wanted.round() if number == "float" else wanted.floor()
    return wanted.clamp(0, 2**exponent_bits - 1)


def _best(tried: Sequence[Rounded], layer: Layer) -> Rounded:
    """The one with the least squared error of the outputs on the sample, for the weight as it is."""
    x, weight = layer.statistics.sample, layer.now
    assert x is not None
    wanted = x @ weight.T
    lost = [
        float((change(x) @ change.of_weight(weight).T - wanted).square().sum(dtype=torch.float64))
        for change in tried
    ]
    return tried[lost.index(min(lost))]
