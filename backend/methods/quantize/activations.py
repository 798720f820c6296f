"""Round the inputs of each linear to few bits as they come in: what such hardware would see, simulated.

    x̂ = step clamp(round(x / step), -n, n),   step = clip max|x| / n,   n = 2**(bits - 1) - 1
    by channel:  k_j = clamp(round(log2(max_j a_j / a_j)), 0, 2**exponent_bits - 1),  a_j = max_t |x_tj|
                 x_j <- 2**k_j x_j,  W_j <- 2**-k_j W_j, then one range for all

with the largest |x| of each token (`token`, found anew each time), one for all (`tensor`, the largest of the
calibration text), or one for all after doubling each channel as often as it stays within (`channel`). Without
`symmetric` the range runs from the smallest to the largest value of the token. `float` rounds to short floats
instead. By channel it must come before the stages that compress, for it moves scales into the weights; else
the weights stay as they are. Stores nothing, 32 bits a linear for a fixed range, 8 more a channel for the
doublings. No speed is claimed: the product itself runs in the model's type. The paper also searches range
and format on the outputs, which takes the inputs themselves; here they are parameters.
Liu et al., LLM-FP4, arXiv 2310.16836, section 3; by token: Dettmers et al., LLM.int8(), arXiv 2208.07339.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field

from backend.errors import UserError
from backend.inputs import Rounded
from backend.parts import Dense, Part
from backend.registry import Claim, method
from backend.views import Layer

InputBits = Annotated[int, Field(ge=2, le=8, description="Bits of one rounded activation")]
Per = Annotated[
    Literal["token", "tensor", "channel"],
    Field(description="What shares a range: a token, everything, or everything after shifts by channel"),
]
Number = Annotated[Literal["integer", "float"], Field(description="Whole numbers, or short floats")]
Exponent = Annotated[
    int, Field(ge=1, le=5, description="Exponent bits of a short float, fewer than its bits less one")
]
Centred = Annotated[bool, Field(description="The range is centred on zero")]
Clip = Annotated[float, Field(gt=0.0, le=1.0, description="Share of the range that is kept")]


# With four bits a small model is broken either way.
_SHORT = {"input_bits": 6, "number": "float"}


@method(
    paper="arXiv:2310.16836",
    needs="norms",
    inputs=True,
    claim=Claim(
        "6-bit floats whose channels are shifted lose less than 6-bit floats of one range",
        better=({"method": "quantize.activations", "params": {**_SHORT, "per": "channel"}},),
        worse=({"method": "quantize.activations", "params": {**_SHORT, "per": "tensor"}},),
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
) -> tuple[Part, ...]:
    """The parts as they are, behind rounded inputs."""
    rows, inputs = layer.weight.shape
    exponent_bits = min(exponent_bits, input_bits - 1)
    reach = doublings = None
    if per != "token":
        largest = layer.statistics.largest
        if largest is None:
            raise UserError(
                f"quantize.activations: per is '{per}', but the largest input of {layer.name} is not known "
                "behind a rotation; allowed: token"
            )
        reach = largest.float().clamp(min=1e-30)
    if per == "channel" and reach is not None:
        if layer.parts:
            raise UserError(
                "quantize.activations: per is 'channel', which moves scales into the weight of "
                f"{layer.name}, but a stage before has compressed it; allowed: put this stage first"
            )
        doublings = (reach.amax() / reach).log2().round().clamp(0, 2**exponent_bits - 1)
        reach = reach * doublings.exp2()
        doublings = doublings.to(torch.uint8)
    change = Rounded(
        (rows, inputs), width=input_bits, number=number, exponent_bits=exponent_bits,
        symmetric=symmetric or per != "token" or number == "float", clip=clip,
        range=None if reach is None else reach.amax().view(1), doublings=doublings,
    )  # fmt: skip
    weight = change.of_weight(layer.weight).to(layer.dtype)
    return (*(layer.parts or (Dense((rows, inputs), weight),)), change)
