"""Second moments of wide inputs are large: no method holds more than two of their size in float64."""

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from backend.methods.prune.wanda import wanda
from backend.methods.quantize.rtn import rtn
from backend.registry import discover
from backend.statistics import Gatherer, read_statistics, write_statistics
from tests.layers import after, layer_of

INPUTS, ROWS = 384, 16
METHODS = [
    found
    for found in discover().methods.values()
    if found.shape == "layer" and found.asks(found.params().model_dump()) in ("gram", "inputs")
]


class Alive(TorchDispatchMode):
    """The most bytes of float64 matrices [INPUTS, INPUTS] that were alive at once, in matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and one.untyped_storage().nbytes() >= 8 * INPUTS**2:
                storage = one.untyped_storage()
                self.storages[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.storages = {key: kept for key, kept in self.storages.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.storages.values()) // (8 * INPUTS**2))
        return out


def wide(found, seed=0):
    """A layer with wide inputs that the method has something to do on; its Gram matrix is one of the two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, INPUTS, generator=generator, dtype=torch.float64)
    layer = layer_of(torch.randn(ROWS, INPUTS, generator=generator), x)
    if found.follows == "prune":
        return after(layer, wanda(layer, sparsity=0.5))
    return after(layer, rtn(layer, bits=2, group_size=32)) if found.kind == "compensate" else layer


@pytest.mark.parametrize("found", METHODS, ids=lambda found: found.id)
def test_no_method_holds_more_than_two_with_that_of_the_statistics(found):
    layer = wide(found)
    params = {"group_size": 32} if "group_size" in found.params.model_fields else {}
    given = found.params.model_validate(params).model_dump()
    with Alive() as alive:
        found.fn(layer, **given)
    assert alive.most <= 2


def test_gathering_keeping_and_reading_hold_two_at_most(tmp_path):
    linear = torch.nn.Linear(INPUTS, 8)
    model = torch.nn.Sequential(linear)
    with Alive() as alive, Gatherer(model, [["0"]], {"0": "gram"}) as gatherer:
        gatherer.feed(lambda: model(torch.randn(2, 64, INPUTS)))
        found = {"0": gatherer.of(["0"])}
    assert alive.most == 1
    with Alive() as alive:
        write_statistics(tmp_path / "kept.safetensors", found)
    assert alive.most <= 1
    with Alive() as alive:
        again = read_statistics(tmp_path / "kept.safetensors", [["0"]], torch.device("cpu"))
    assert alive.most <= 2
    assert torch.equal(again["0"].gram, found["0"].gram)
    assert torch.equal(again["0"].gram, again["0"].gram.T)
