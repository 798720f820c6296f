"""At its defaults every method on the whole model does what its name says, on a model with loud channels as
real ones have. Only what a tiny model is too small for is another: widths of groups, ranks and codes."""

import json
from pathlib import Path

import pytest
import torch

from backend.artifacts import open_artifact, read_metadata, read_parts, tensor_sizes
from backend.host import Host
from backend.registry import discover
from backend.report import Report
from tests.methods.models import IDS, apart, logits, made, outlying

WHOLE = {found.id for found in discover().methods.values() if found.shape == "work"}
GROUP = {"group_size": 16}


def stage(method, **params):
    return {"method": method, "params": params}


def rtn(bits=4):
    return stage("quantize.rtn", bits=bits, **GROUP)


WANDA, GPTQ = stage("prune.wanda"), stage("quantize.gptq", bits=3, **GROUP)


class Bench:
    """A model, and what chains make of it."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.host, self.folder = host, folder
        self.model = outlying(folder / "model", size=6.0, num_hidden_layers=5)
        self.runs: dict[str, tuple[Path, Report]] = {}

    def run(self, *stages) -> tuple[Path, Report]:
        name = json.dumps(stages)
        if name not in self.runs:
            # What plans are made by is measured on the inputs of the dense model.
            self.runs[name] = made(self.model, self.host, self.folder, *stages, order="dense")
        return self.runs[name]

    def lost(self, *stages) -> float:
        """KL from the dense model in nats a token."""
        return apart(self.model, self.run(*stages)[0], self.host)

    def size(self, *stages) -> int:
        return sum(tensor_sizes(self.run(*stages)[0]).values())


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("defaults")
    places = {"PARETOSCOPE_HOME": str(folder / "home"), "PARETOSCOPE_ROOTS": str(folder)}
    return Bench(folder, Host.from_environment({**places, "PARETOSCOPE_DEVICE": "cpu"}))


def plans(bench, name):
    """More than one number of bits, at the bytes of three everywhere and less error for them."""
    _, report = bench.run(stage(name), GPTQ)
    assert len({planned["bits"] for planned in report.plan.values()}) > 1
    assert bench.size(stage(name), GPTQ) <= bench.size(GPTQ)
    return bench.lost(stage(name), GPTQ), bench.lost(GPTQ)


def plans_that_are_searched_or_felt(bench, name):
    ours, everywhere = plans(bench, name)
    assert ours < everywhere


def plans_by_error(bench, name):
    _, report = bench.run(stage(name), GPTQ)
    plans(bench, name)
    planned, same = (
        sum(row["error"] for row in found.layers if row["method"] == "quantize.gptq")
        for found in (report, bench.run(GPTQ)[1])
    )
    assert planned < same


def spreads_sparsity(bench, name):
    _, report = bench.run(stage(name), WANDA)
    shares = {row["block"]: row["sparsity"] for row in report.layers}
    assert max(shares.values()) - min(shares.values()) > 0.02
    assert sum(shares.values()) / len(shares) == pytest.approx(0.7, abs=0.02)


def spreads_rank(bench, name):
    chain = (stage("quantize.rtn", bits=2, **GROUP), stage(name, rank=4), stage("compensate.eora", rank=4))
    _, report = bench.run(*chain)
    assert len({planned["rank"] for planned in report.plan.values()}) > 1
    assert bench.size(*chain) <= bench.size(chain[0], chain[2])


def gives_a_head(bench, name):
    artifact, _ = bench.run(stage(name))
    opened = open_artifact(artifact, bench.host).model
    assert opened.lm_head.weight is not opened.model.embed_tokens.weight
    assert bench.size(stage(name)) - bench.size() == 260 * 32 * 4
    assert bench.lost(stage(name)) == 0


def shares_rows(bench, name):
    chain = (stage(name, codes=64),)
    assert bench.size(*chain) < bench.size(stage("head.untie"))
    head = open_artifact(bench.run(*chain)[0], bench.host).head.weight
    assert len(head.unique(dim=0)) == 64
    assert 0 < bench.lost(*chain) < 10


def leaves_blocks_out(bench, name):
    artifact, _ = bench.run(stage(name))
    assert read_metadata(artifact)["config"]["num_hidden_layers"] == 1
    assert bench.size(stage(name)) < bench.size()


def narrows(bench, name):
    artifact, _ = bench.run(stage(name))
    assert 0.75 * 64 <= read_metadata(artifact)["config"]["intermediate_size"] <= 0.85 * 64
    assert bench.size(stage(name)) < bench.size()


def learns_masks(bench, name):
    ours, wandas = (
        read_parts(bench.run(chain)[0]) for chain in (stage(name), stage("prune.wanda", pattern="2:4"))
    )
    moved = [(ours[layer][0].kept() != wandas[layer][0].kept()).float().mean() for layer in ours]
    assert 0.001 < float(torch.stack(moved).mean()) < 0.5
    assert all(bool((part.kept().view(-1, 4).sum(dim=1) == 2).all()) for (part,) in ours.values())


def loses_less_than_rounding(bench, name):
    assert bench.size(stage(name, **GROUP)) == bench.size(rtn())
    assert bench.lost(stage(name, **GROUP)) < 0.9 * bench.lost(rtn())


def has_matrices_beside_scales(bench, name):
    loses_less_than_rounding(bench, name)
    ours, scales = (read_parts(bench.run(stage(each, **GROUP))[0]) for each in (name, "quantize.omniquant"))
    values = [layer for layer in ours if layer.endswith("v_proj")]
    assert all(not torch.allclose(ours[at][0].dense(), scales[at][0].dense(), atol=1e-3) for at in values)


def repairs(bench, name):
    pruned = stage("prune.wanda", pattern="2:4")
    assert bench.size(pruned, stage(name)) == bench.size(pruned)
    assert bench.lost(pruned, stage(name)) < 0.9 * bench.lost(pruned)


def loudness(bench, model) -> float:
    """How much louder the loudest channel in front of the first linears is than the middle one."""
    opened = open_artifact(model, bench.host).model
    heard = []
    linear = opened.model.layers[0].mlp.gate_proj
    linear.register_forward_pre_hook(lambda module, given: heard.append(given[0].abs().amax(dim=(0, 1))))
    with torch.no_grad():
        opened(IDS)
    return float(heard[0].max() / heard[0].median())


def quietens(bench, name):
    artifact, _ = bench.run(stage(name))
    before, after = logits(bench.model, bench.host), logits(artifact, bench.host)
    assert float((before - after).abs().max()) < 1e-3 * float(before.abs().max())
    assert loudness(bench, artifact) < 0.5 * loudness(bench, bench.run()[0])


DOES = {
    "allocate.dp": plans_by_error, "allocate.evopress": plans_that_are_searched_or_felt,
    "allocate.fisher": plans_that_are_searched_or_felt, "allocate.owl": spreads_sparsity,
    "allocate.rank": spreads_rank, "head.untie": gives_a_head, "head.vq_logits": shares_rows,
    "prune.blocks": leaves_blocks_out, "prune.maskllm": learns_masks, "prune.width": narrows,
    "quantize.affinequant": has_matrices_beside_scales, "quantize.awq": loses_less_than_rounding,
    "quantize.omniquant": loses_less_than_rounding, "recover.blocks": repairs,
    "transform.hadamard": quietens, "transform.smoothquant": quietens,
}  # fmt: skip


def test_every_method_on_the_whole_model_is_asked():
    assert set(DOES) == WHOLE


@pytest.mark.parametrize("name", DOES)
def test_at_its_defaults_it_does_what_its_name_says(bench, name):
    DOES[name](bench, name)
