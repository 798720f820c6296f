import pytest
import torch

from backend.methods.compensate.svd import svd
from backend.methods.quantize.rtn import rtn
from backend.parts import LowRank, combined
from tests.layers import after, random_layer


@pytest.mark.parametrize(("rows", "inputs"), [(48, 128), (128, 64)])
@pytest.mark.parametrize("rank", [0, 1, 8, 500])
def test_leaves_the_discarded_singular_values_of_the_error(rows, inputs, rank):
    layer, _ = random_layer(rows=rows, inputs=inputs)
    base = rtn(layer, bits=2, group_size=32)
    values = torch.linalg.svdvals((layer.weight - combined(base)).double())
    left = (layer.weight - combined(svd(after(layer, base), rank=rank))).double().square().sum()
    assert float(left) == pytest.approx(float(values[rank:].square().sum()), rel=1e-4, abs=1e-6)


def test_keeps_the_parts_it_compensates_and_adds_thin_factors():
    layer, _ = random_layer()
    base = rtn(layer, bits=3, group_size=32)
    parts = svd(after(layer, base), rank=5)
    assert parts[:-1] == base
    assert isinstance(parts[-1], LowRank)
    assert (parts[-1].left.shape, parts[-1].right.shape) == ((48, 5), (5, 128))
