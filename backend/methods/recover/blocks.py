"""Tune what is stored, block by block, until each block's outputs are near the dense ones.

    minimize over p:  |block(x̂; p) - dense block(x)|²,   x, x̂ [tokens, d] as the dense and the compressed
    blocks before put them out;  p: scales of codes and bit planes, zero points that are no whole numbers,
    kept values of pruned weights, outliers, low-rank factors;  with `codes` also the codes of uniform grids

Masks stay, and not a byte is added. AdamW in float32, in units of a scale's own size, of a step of the codes
for a code or zero point, of their root mean square for values and factors. Every eighth sample only judges:
of the start and all epochs what loses least there, as it will be stored, is kept. Whole-number zero points
and sums of powers of two stay as they are. Takes about 20 minutes on one core for 135 million weights.
With codes that move, each weight keeps a place on its grid in float32 while it learns, which begins between
its code and the dense weight, counts by what it rounds to, and takes the gradient of what it rounds to: that
is Block-AP of EfficientQAT, arXiv 2407.11062. With the codes fixed it is the block-wise stage of DB-LLM,
arXiv 2402.11960, and of ELUTQ, arXiv 2510.19482.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from backend.parameters import BlockEpochs, Samples
from backend.parts import Part
from backend.registry import Claim, method
from backend.solvers.blockwise import Values, fit, gradients, relative_error
from backend.solvers.tunable import decoder, retuned, sizes, tunable
from backend.views import Block, Work

Rate = Annotated[
    float, Field(gt=0.0, le=1.0, description="Step of AdamW, as a share of a scale; falls to nothing")
]
Codes = Annotated[bool, Field(description="Also learn the codes of uniform grids")]
CodeRate = Annotated[float, Field(gt=0.0, le=1.0, description="Step of AdamW for codes, as a share of one")]
Batch = Annotated[int, Field(ge=1, le=64, description="Samples a step")]
_HLQ = {"method": "quantize.hlq", "params": {"bits": 2, "group_size": 64}}


@method(
    paper="arXiv:2510.19482",
    needs="norms",
    passes=lambda params: 4 * params["samples"] * params["epochs"],
    claim=Claim(
        "Tuning the scales of 2-bit planes block by block loses less, at the same bytes",
        whose="ours",
        paper_says="ELUTQ tunes weights and scales of blocks, then scales of the model, on far more text.",
        better=(_HLQ, {"method": "recover.blocks"}),
        worse=(_HLQ,),
    ),
)
def blocks(
    work: Work,
    *,
    samples: Samples = 16,
    epochs: BlockEpochs = 4,
    learning_rate: Rate = 0.01,
    batch: Batch = 1,
    codes: Codes = False,
    code_rate: CodeRate = 0.005,
) -> None:
    """Parts with other scales for every linear of the stage that has any."""
    for block in work.blocks(samples, batch):
        parts = {
            f"{name}#{number}": part
            for name, layer in block.layers.items()
            for number, part in enumerate(layer.parts)
        }
        with gradients(), torch.no_grad():
            wanted = _wanted(block) if codes else {}
            moved = _tuned(block, parts, wanted, epochs, learning_rate, code_rate, batch)
            for name, layer in block.layers.items():
                if layer.parts:
                    block.parts[name] = tuple(moved[f"{name}#{number}"] for number in range(len(layer.parts)))


def _wanted(block: Block) -> dict[str, Tensor]:
    """What each part would have to be for its linear's weight to be the dense one."""
    return {
        f"{name}#{number}": layer.weight - (layer.now - part.dense())
        for name, layer in block.layers.items()
        for number, part in enumerate(layer.parts)
    }


def _tuned(
    block: Block,
    parts: Mapping[str, Part],
    wanted: Mapping[str, Tensor],
    epochs: int,
    rate: float,
    code_rate: float,
    batch: int,
) -> Mapping[str, Part]:
    start = _each({place: tunable(part, wanted.get(place)) for place, part in parts.items()})
    units = _each({place: sizes(part) for place, part in parts.items()})
    if not start:
        return parts
    decoders = {place: decoder(part) for place, part in parts.items()}

    def changed(values: Mapping[str, Tensor]) -> dict[str, Part]:
        return {place: retuned(part, _of(values, place)) for place, part in parts.items()}

    def stored(values: Values) -> Values:
        made = changed(values)
        exact = {place: part.dense() if place in wanted else None for place, part in made.items()}
        return _each({place: tunable(part, exact[place]) for place, part in made.items()})

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
        {key: code_rate if key.endswith("/codes") else rate for key in start},
        block.rng,
        block.told,
        as_stored=stored,
    )
    return changed(found.values) if found.best else parts


def _each(tensors: Mapping[str, Values]) -> Values:
    return {f"{place}/{key}": tensor for place, found in tensors.items() for key, tensor in found.items()}


def _of(values: Mapping[str, Tensor], place: str) -> Values:
    return {key.split("/")[1]: tensor for key, tensor in values.items() if key.split("/")[0] == place}
