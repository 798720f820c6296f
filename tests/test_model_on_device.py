"""A tiny model from its files to its numbers on a rehearsed GPU."""

import dataclasses

import pytest
import torch

from backend.host import Host
from backend.registry import discover
from tests.methods.models import logits, made
from tests.rehearsal import rehearsal
from tests.tiny import make_model

RTN = ("quantize.rtn", {"bits": 3, "group_size": 16})
GPTQ = ("quantize.gptq", {"group_size": 16})
WANDA = ("prune.wanda", {"pattern": "2:4"})
EORA = ("compensate.eora", {"rank": 4})
SEARCH = {"generations": 1, "offspring": 2}
HEAD = {"codes": 16, "steps": 3, "samples": 4, "epochs": 1}
LESS = {"blocks": 1, "samples": 4}
CHAINS = {
    "sequential": [WANDA, GPTQ, EORA],
    "rounded inputs": [("quantize.activations", {"per": "channel"}), GPTQ],
    "hadamard": [("transform.hadamard", {}), ("quantize.activations", {"input_bits": 4}), GPTQ],
    "smoothquant": [("transform.smoothquant", {}), RTN],
    "awq": [("quantize.awq", {"group_size": 16, "ratios": 3})],
    "affinequant": [("quantize.affinequant", {"group_size": 16, "samples": 4, "epochs": 1})],
    "affinequant, matrices": [
        ("quantize.affinequant", {"group_size": 16, "samples": 4, "epochs": 2, "shape": "affine"})
    ],
    "affinequant, clipping": [
        ("quantize.affinequant", {"group_size": 16, "samples": 4, "epochs": 1, "shape": "clipping"})
    ],
    "untie": [("head.untie", {}), RTN],
    "vq_logits": [("head.vq_logits", HEAD)],
    "vq_logits, activation": [("head.vq_logits", {**HEAD, "tokens": "activation"})],
    "dp": [("allocate.dp", {}), GPTQ],
    "fisher": [("allocate.fisher", {}), GPTQ],
    "fisher over mixture": [("allocate.fisher", {"over": "mixture"}), WANDA, GPTQ],
    "evopress": [("allocate.evopress", SEARCH), GPTQ],
    "owl": [("allocate.owl", {}), ("prune.sparsegpt", {})],
    "rank": [RTN, ("allocate.rank", {"rank": 4}), EORA],
    "blocks": [("prune.blocks", LESS)],
    "attention": [("prune.blocks", {**LESS, "piece": "attention", "score": "evolution", **SEARCH})],
    "greedy": [("prune.blocks", {**LESS, "score": "greedy"})],
    "width": [("prune.width", {"samples": 4})],
    "width, heads": [("prune.width", {"samples": 4, "units": "both"})],
    "maskllm": [("prune.maskllm", {"samples": 4, "epochs": 1})],
    "maskllm, text": [("prune.maskllm", {"samples": 4, "epochs": 1, "objective": "text"})],
    "recover": [RTN, ("recover.blocks", {"samples": 4, "epochs": 1})],
    "recover, codes": [RTN, ("recover.blocks", {"samples": 4, "epochs": 1, "codes": True})],
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def host(host, tiny):
    return dataclasses.replace(host, roots=(*host.roots, tiny.parent))


@pytest.fixture
def cuda(host: Host) -> Host:
    return dataclasses.replace(host, device="cuda")


def stages(chain):
    return [{"method": name, "params": params} for name, params in chain]


def test_every_method_on_whole_models_is_among_the_chains():
    here = {name for chain in CHAINS.values() for name, _ in chain}
    assert {found.id for found in discover().methods.values() if found.shape == "work"} <= here


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_on_the_device_makes_the_model_that_the_cpu_makes(tiny, host, cuda, tmp_path, name):
    chain = stages(CHAINS[name])
    on_cpu, _ = made(tiny, host, tmp_path, *chain)
    expected = logits(on_cpu, host)
    on_cpu.unlink()
    other = tmp_path / "device"
    other.mkdir()
    elsewhere = dataclasses.replace(cuda, home=other)
    with rehearsal():
        artifact, report = made(tiny, elsewhere, other, *chain)
        assert report.device.type == "cuda"
    found = logits(artifact, host)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
