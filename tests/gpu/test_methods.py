"""What only a real GPU can show: its numbers are those of the CPU, and nothing mixes devices there either.

Everything else is rehearsed on the CPU, see tests/rehearsal.py, and so is that these tests can run at all
(tests/test_bench_gpu.py).
"""

import pytest
import torch

from backend.methods.compensate.eora import eora
from backend.methods.prune.sparsegpt import sparsegpt
from backend.methods.prune.wanda import wanda
from backend.methods.quantize.gptq import gptq
from backend.parts import combined
from bench import gpu
from tests.layers import after, output_error, random_layer
from tests.synchronisations import on_device

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="its numbers are those of a CUDA device; rehearsed without one"
)

METHODS = {
    "gptq": lambda layer: gptq(layer, bits=4, group_size=32),
    "sparsegpt": lambda layer: sparsegpt(layer, pattern="2:4"),
    "eora": lambda layer: eora(after(layer, wanda(layer, pattern="2:4")), rank=8),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_layer_loses_on_the_gpu_what_it_loses_on_the_cpu(name):
    layer, x = random_layer()
    made = combined(METHODS[name](on_device(layer)))
    assert made.device.type == "cuda"
    lost = output_error(x, layer.weight, made.cpu())
    expected = output_error(x, layer.weight, combined(METHODS[name](random_layer()[0])))
    # A code at a tie may fall to the other side, and later columns make up for it.
    assert lost == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("chain", gpu.CHAINS)
def test_a_tiny_model_answers_as_the_one_that_the_cpu_made(chain, tmp_path):
    with torch.inference_mode():
        assert gpu.apart(gpu.CHAINS[chain], torch.device("cuda"), tmp_path) < 0.05
