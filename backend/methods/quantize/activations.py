"""Round the inputs of each linear to few bits as they come in: what integer hardware would see, simulated.

    x̂ = step clamp(round(x / step), -n, n),   step = clip max|x| / n,   n = 2**(bits - 1) - 1

with the largest |x| of each token (`token`, found anew each time) or one for all (`tensor`, the largest of
the calibration text). Without `symmetric` the range runs from the smallest to the largest value of the token.
`float` rounds to short floats instead. The weights stay as the stages before left them. Stores nothing, or 32
bits a linear for a fixed range; no speed is claimed, for the product itself runs in the model's type.
Dettmers et al., LLM.int8(), arXiv 2208.07339, section 2; Liu et al., LLM-FP4, arXiv 2310.16836.
"""

from typing import Annotated, Literal

from pydantic import Field

from backend.errors import UserError
from backend.inputs import Rounded
from backend.parts import Dense, Part
from backend.registry import method
from backend.views import Layer

InputBits = Annotated[int, Field(ge=2, le=8, description="Bits of one rounded activation")]
Per = Annotated[Literal["token", "tensor"], Field(description="What shares a range: a token, or everything")]
Number = Annotated[Literal["integer", "float"], Field(description="Whole numbers, or short floats")]
Exponent = Annotated[
    int, Field(ge=1, le=5, description="Exponent bits of a short float, fewer than its bits less one")
]
Centred = Annotated[bool, Field(description="The range is centred on zero")]
Clip = Annotated[float, Field(gt=0.0, le=1.0, description="Share of the range that is kept")]


@method(paper="arXiv:2208.07339", needs="norms", inputs=True)
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
    fixed = None
    if per == "tensor":
        largest = layer.statistics.largest
        if largest is None:
            raise UserError(
                f"quantize.activations: per is 'tensor', but the largest input of {layer.name} is not known "
                "behind a rotation; allowed: token"
            )
        fixed = largest.amax().float().view(1)
    rounding = Rounded(
        (rows, inputs), width=input_bits, number=number, exponent_bits=min(exponent_bits, input_bits - 1),
        per=per, symmetric=symmetric or per == "tensor" or number == "float", clip=clip, range=fixed,
        shift=None,
    )  # fmt: skip
    return (*(layer.parts or (Dense((rows, inputs), layer.weight.to(layer.dtype)),)), rounding)
