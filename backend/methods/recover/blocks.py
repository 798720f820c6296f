"""Tune the scales of what is stored, block by block, until each block's outputs are near the dense ones.

    minimize over p:  |block(x̂; p) - dense block(x)|²,   x, x̂ [tokens, d] as the dense and the compressed
    blocks before put them out;  p: scales of codes and bit planes, zero points that are no whole numbers,
    kept values of pruned weights, outliers, low-rank factors

Codes and masks stay, so not a byte is added. AdamW in float32, in units of a scale's own size, of a step of
the codes for a zero point, of their root mean square for values and factors. Every eighth sample only judges:
of the start and all epochs what loses least there, as it will be stored, is kept. Whole-number zero points
and sums of powers of two stay as they are. Takes about 20 minutes on one core for 135 million weights.
The block-wise stage of ELUTQ, arXiv 2510.19482, and of DB-LLM, arXiv 2402.11960, with the codes fixed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from backend.parts import Part
from backend.registry import Claim, method
from backend.solvers.blockwise import Values, fit, gradients, relative_error
from backend.solvers.tunable import decoder, retuned, sizes, tunable
from backend.views import Block, Work

Epochs = Annotated[int, Field(ge=1, le=100, description="Times that each block sees the samples")]
Samples = Annotated[int, Field(ge=1, le=4096, description="How many of the calibration samples are used")]
Rate = Annotated[
    float, Field(gt=0.0, le=1.0, description="Step of AdamW, as a share of a scale; falls to nothing")
]
Batch = Annotated[int, Field(ge=1, le=64, description="Samples a step")]
_HLQ = {"method": "quantize.hlq", "params": {"bits": 2, "group_size": 64}}


@method(
    paper="arXiv:2510.19482",
    needs="norms",
    passes=lambda params: 4 * params["samples"] * params["epochs"],
    claim=Claim(
        "Tuning the scales of 2-bit planes block by block loses less, at the same bytes",
        better=(_HLQ, {"method": "recover.blocks"}),
        worse=(_HLQ,),
    ),
)
def blocks(
    work: Work, *, samples: Samples = 16, epochs: Epochs = 4, learning_rate: Rate = 0.01, batch: Batch = 1
) -> None:
    """Parts with other scales for every linear of the stage that has any."""
    for block in work.blocks(samples, batch):
        parts = {
            f"{name}#{number}": part
            for name, layer in block.layers.items()
            for number, part in enumerate(layer.parts)
        }
        with gradients(), torch.no_grad():
            moved = _tuned(block, parts, epochs, learning_rate, batch)
            for name, layer in block.layers.items():
                if layer.parts:
                    block.parts[name] = tuple(moved[f"{name}#{number}"] for number in range(len(layer.parts)))


def _tuned(
    block: Block, parts: Mapping[str, Part], epochs: int, rate: float, batch: int
) -> Mapping[str, Part]:
    start, units = _each(parts, tunable), _each(parts, sizes)
    if not start:
        return parts
    decoders = {place: decoder(part) for place, part in parts.items()}

    def changed(values: Mapping[str, Tensor]) -> dict[str, Part]:
        return {place: retuned(part, _of(values, place)) for place, part in parts.items()}

    def loss(values: Mapping[str, Tensor], samples: Tensor) -> Tensor:
        weights: dict[str, Tensor] = {}
        for place, decode in decoders.items():
            name, made = place.split("#")[0], decode(_of(values, place))
            weights[name] = weights[name] + made if name in weights else made
        linears = {
            name: partial(linear, weight=weight, bias=block.biases[name]) for name, weight in weights.items()
        }
        return relative_error(block.outputs(block.inputs[samples], linears), block.targets[samples])

    found = fit(
        start,
        units,
        loss,
        len(block.inputs),
        batch,
        epochs,
        dict.fromkeys(start, rate),
        block.rng,
        block.told,
        as_stored=lambda values: _each(changed(values), tunable),
    )
    return changed(found.values) if found.best else parts


def _each(parts: Mapping[str, Part], tensors: Callable[[Part], Values]) -> Values:
    return {
        f"{place}/{key}": values for place, part in parts.items() for key, values in tensors(part).items()
    }


def _of(values: Mapping[str, Tensor], place: str) -> Values:
    return {key.split("/")[1]: tensor for key, tensor in values.items() if key.split("/")[0] == place}
