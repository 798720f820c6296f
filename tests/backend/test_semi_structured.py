"""Which linears go by the sparse kernels, and that their layout holds the same weights in half the room."""

from dataclasses import replace

import pytest
import torch
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from backend.artifacts import compressed_modules, open_artifact
from backend.semi_structured import sparse_kernels, two_of_four
from tests.methods.models import IDS, made
from tests.tiny import make_model

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
PRUNE = {"method": "prune.magnitude", "params": {"pattern": "2:4"}}


def as_laid_out(weight):
    """The layout of the kernels, as the library makes it on any device, and what it decodes to."""
    values, places = sparse_semi_structured_from_dense_cutlass(weight)
    assert values.numel() == weight.numel() // 2
    # Two bits for each kept weight.
    assert 8 * places.numel() * places.element_size() == weight.numel()
    return sparse_semi_structured_to_dense_cutlass(values, places)


@pytest.fixture
def pruned(host, tmp_path):
    def opened(*stages, dtype=torch.bfloat16, compute="bfloat16"):
        folder, here = make_model(tmp_path / "model", dtype=dtype, **SIZES), replace(host, compute=compute)
        return open_artifact(made(folder, here, tmp_path, *stages)[0], here).model

    return opened


def test_the_layout_holds_exactly_the_weights_that_pruning_kept(pruned):
    model = pruned(PRUNE)
    with torch.inference_mode():
        before = model(IDS).logits
        with sparse_kernels(model, as_laid_out) as count:
            assert count == len(compressed_modules(model)) == 14
            for module in compressed_modules(model).values():
                assert torch.equal(module.weight, module.parts[0].dense().to(torch.bfloat16))
            assert torch.equal(model(IDS).logits, before)


def test_afterwards_every_weight_is_the_dense_one_again(pruned):
    model = pruned(PRUNE)
    before = {name: module.weight for name, module in compressed_modules(model).items()}
    with pytest.raises(KeyError), sparse_kernels(model, as_laid_out):
        raise KeyError
    assert all(module.weight is before[name] for name, module in compressed_modules(model).items())


@pytest.mark.parametrize(
    ("stages", "dtype"),
    [
        ([PRUNE], torch.float32),
        ([{"method": "prune.magnitude", "params": {"pattern": "4:8"}}], torch.bfloat16),
        ([PRUNE, {"method": "compensate.svd", "params": {"rank": 4}}], torch.bfloat16),
        ([{"method": "quantize.rtn", "params": {"group_size": 16}}], torch.bfloat16),
    ],
)
def test_anything_but_two_of_four_plain_weights_stays_dense(pruned, stages, dtype):
    with sparse_kernels(pruned(*stages, dtype=dtype), as_laid_out) as count:
        assert count == 0


def test_weights_that_are_computed_wider_than_they_are_stored_stay_dense(pruned):
    model = pruned(PRUNE, compute="float32")
    with torch.inference_mode(), sparse_kernels(model, as_laid_out) as count:
        assert count == 0
        assert model(IDS).logits.dtype == torch.float32


def test_without_a_cuda_device_nothing_is_converted(pruned):
    with sparse_kernels(pruned(PRUNE)) as count:
        assert count == 0


def test_at_most_two_of_four_are_counted_along_the_row():
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]])
    assert two_of_four(weight)
    assert not two_of_four(torch.tensor([[1.0, 4, 2, 0, 0, 0, 0, 3]]))
    assert not two_of_four(torch.ones(2, 6))
