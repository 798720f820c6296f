"""Everything that computes runs on a rehearsed GPU, and makes of the same seeds what the CPU makes."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from backend.methods.prune.wanda import wanda
from backend.parts import Part, combined
from backend.registry import Method
from backend.views import Layer
from tests.layers import after, random_layer
from tests.rehearsal import rehearsal
from tests.synchronisations import on_device, waits
from tests.test_every_method import LAYER_METHODS, base, run


def small_layer() -> Layer:
    return random_layer(rows=24, inputs=64, tokens=256)[0]


def tensors_of(parts: tuple[Part, ...]) -> list[Tensor]:
    return [tensor for part in parts for tensor in part.tensors().values()]


def variants(found: Method) -> Iterator[dict[str, Any]]:
    """The defaults of a method, and each choice of each of its parameters in turn."""
    yield {}
    for name, field in found.params.model_fields.items():
        values = [True, False] if field.annotation is bool else get_args(field.annotation)
        yield from ({name: value} for value in values if value != field.default)


# Numbers that lead to code of their own.
NUMBERS = {
    "quantize.activations": [
        {"per": "channel", "number": "float", "exponent_bits": 0, "search": 3},
        {"per": "tensor", "search": 3},
    ],
    "quantize.quantease": [{"outliers": 0.02}, {"outliers": 0.02, "start": "gptq"}],
    "quantize.rtn": [{"group_size": -1}],
    "quantize.shiftadd": [{"scales": "column", "incoherent": True, "group_size": 16}],
    "compensate.eora": [{"factor_bits": 4}, {"rank": 0}],
    "compensate.completion": [{"factor_bits": 4}],
    "compensate.lqer": [{"factor_bits": 4}],
}
CASES = [
    (found, changes) for found in LAYER_METHODS for changes in (*variants(found), *NUMBERS.get(found.id, ()))
]
AFTER_PRUNING = [found for found in LAYER_METHODS if found.kind in ("quantize", "prune", "compensate")]


@pytest.mark.parametrize(
    ("found", "changes"), CASES, ids=[f"{found.id} {changes or ''}" for found, changes in CASES]
)
def test_a_layer_on_the_device_gets_the_parts_it_gets_on_the_cpu(found, changes):
    expected = combined(run(found, base(found, small_layer()), **changes))
    layer = base(found, small_layer())
    with rehearsal() as device:
        parts = run(found, on_device(layer), **changes)
        assert not device.products
        assert {tensor.device.type for tensor in tensors_of(parts)} <= {"cuda"}
        made = combined(parts)
        assert made.device.type == "cuda"
        torch.testing.assert_close(made.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", ["free", "2:4"])
@pytest.mark.parametrize("found", AFTER_PRUNING, ids=[found.id for found in AFTER_PRUNING])
def test_a_pruned_layer_on_the_device_gets_the_parts_it_gets_on_the_cpu(found, pattern):
    pruned = [
        after(layer, wanda(layer, sparsity=0.7, pattern=pattern)) for layer in (small_layer(), small_layer())
    ]
    expected = combined(run(found, pruned[0]))
    with rehearsal():
        made = combined(run(found, on_device(pruned[1])))
        assert made.device.type == "cuda"
        torch.testing.assert_close(made.cpu(), expected, rtol=1e-4, atol=1e-4)


# Whose waits may grow with the inputs, and why.
GROWING = {
    "prune.dsnot": "six for each cycle of swaps, of which there are at most `cycles`",
    "quantize.baq": "one for each number of levels that columns have, of which there are at most 256",
}


@pytest.mark.parametrize("found", LAYER_METHODS, ids=[found.id for found in LAYER_METHODS])
def test_waits_for_the_device_do_not_grow_with_the_inputs(found):
    few, many = (waits(found, inputs) for inputs in (32, 64))
    grown = many.total() > few.total()
    assert grown == (found.id in GROWING), many
    assert many.total() <= 40
