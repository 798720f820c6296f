"""How often the CPU waits for the device, by method: python -m tests.synchronisations prints the table.

One linear of 48 outputs, groups of 16, the other parameters at their defaults, on the rehearsed device; a
compensating method works on a 2-bit or on a pruned linear. Decoding what comes out is not counted.
"""

import dataclasses
from collections import Counter

from torch import Tensor

from backend.registry import Method
from backend.views import Layer
from tests.layers import random_layer
from tests.rehearsal import rehearsal
from tests.test_every_method import LAYER_METHODS, base, run

ROWS, GROUP = 48, 16


def on_device(layer: Layer) -> Layer:
    """The layer as a GPU holds it; its generator stays on the CPU, as the walk makes it."""
    moved = {
        field.name: value.to("cuda")
        for field in dataclasses.fields(layer.statistics)
        if isinstance(value := getattr(layer.statistics, field.name), Tensor)
    }
    statistics = dataclasses.replace(layer.statistics, **moved, _cache={})
    parts = tuple(part.to("cuda") for part in layer.parts)
    return Layer(layer.name, layer.weight.to("cuda"), parts, statistics, layer.rng, layer.dtype)


def waits(found: Method, inputs: int) -> Counter[str]:
    """Waits by operation and line for a linear [48, inputs]."""
    layer = base(found, random_layer(ROWS, inputs)[0])
    sized = {"group_size": GROUP} if "group_size" in found.params.model_fields else {}
    with rehearsal() as device:
        moved = on_device(layer)
        device.waits.clear()
        run(found, moved, **sized)
        return Counter(device.waits)


def main() -> None:
    sizes = (32, 64, 128)
    print("| method | " + " | ".join(f"{size} inputs" for size in sizes) + " | where, most often, at 128 |")
    print("|---" * (len(sizes) + 2) + "|")
    for found in LAYER_METHODS:
        counts = [waits(found, size) for size in sizes]
        often = ", ".join(f"{where} ({times})" for where, times in counts[-1].most_common(2))
        print(f"| {found.id} | " + " | ".join(str(one.total()) for one in counts) + f" | {often} |")


if __name__ == "__main__":
    main()
