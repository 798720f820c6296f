"""A tiny model from its files to its numbers on a rehearsed GPU."""

import dataclasses
import json

import pytest
import torch

from backend import budget, footprint, surgery
from backend.artifacts import load_model, load_tokenizer, open_artifact
from backend.evaluate import Subject, evaluate
from backend.export import export, formats
from backend.facts import facts
from backend.generate import greedy, write
from backend.host import Host
from backend.levels import DENSE, Level
from backend.pipeline import compress
from backend.progress import silent
from backend.reading import read
from backend.recipe import Calibration
from backend.registry import discover
from backend.sampling import Sampling
from backend.surgery import operate
from tests.methods.models import asked, logits, made
from tests.rehearsal import rehearsal
from tests.tiny import make_model, make_text

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
    "omniquant": [("quantize.omniquant", {"group_size": 16, "samples": 4, "epochs": 1})],
    "affinequant": [
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
    with rehearsal() as device:
        artifact, report = made(tiny, elsewhere, other, *chain)
        assert not device.products
        assert report.device.type == "cuda"
    found = logits(artifact, host)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.fixture(scope="module")
def subjects(tiny, tmp_path_factory):
    """The subject of a metric on a host: of a bfloat16 model with 2:4 linears, whose weights have kernels."""
    folder = tmp_path_factory.mktemp("subjects")
    model = make_model(folder / "model", dtype=torch.bfloat16)
    recipe = asked(model, folder, *stages([WANDA, ("prune.magnitude", {"pattern": "2:4"})]))

    def subject(host: Host) -> Subject:
        host = dataclasses.replace(host, roots=(folder,))
        artifact = folder / f"{host.device}.safetensors"
        compress(recipe, host, artifact, folder / f"scratch-{host.device}", silent)
        return Subject(recipe, host, artifact, folder / f"scores-{host.device}", silent)

    return subject


def test_every_metric_on_the_device_gives_what_it_gives_on_the_cpu(subjects, host, cuda, tmp_path):
    names = [name for name in discover().metrics if name != "memory"]
    cuda = dataclasses.replace(cuda, home=tmp_path / "other")
    on_cpu = subjects(host)
    expected = {name: evaluate(name, on_cpu) for name in names}
    with rehearsal():
        subject = subjects(cuda)
        for name in names:
            found = evaluate(name, subject)
            assert found.broken == expected[name].broken
            for ours, theirs in zip(found.measurements, expected[name].measurements, strict=True):
                assert ours.metric == theirs.metric
                assert ours.protocol.get("device", "cuda") == "cuda"
                if name != "speed":
                    assert ours.value == pytest.approx(theirs.value, rel=0.05, abs=0.05), ours.metric


def test_the_memory_probe_on_the_device_tells_the_allocators_peak(subjects, cuda, monkeypatch, capsys):
    monkeypatch.setattr(footprint, "die_with", lambda parent: None)
    monkeypatch.setenv("PARETOSCOPE_DEVICE", "cuda")
    with rehearsal():
        subject = subjects(cuda)
        footprint.main(str(subject.artifact), str(subject.host.home))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["peak"], told["protocol"]["counted"]) == (2**20, "CUDA allocator peak")


def test_answers_and_readings_on_the_device_are_those_of_the_cpu(tiny, host, cuda, tmp_path):
    artifact, _ = made(tiny, host, tmp_path, *stages([RTN]))
    sampling = Sampling(max_tokens=12)
    drawn = sampling.model_copy(update={"temperature": 0.8})

    def told(host):
        dense, opened = load_model(facts(str(tiny), host), host), open_artifact(artifact, host)
        tokenizer = load_tokenizer(str(tiny), host)
        said = write(opened, tokenizer, "the scale of a group", sampling, lambda token: None)
        assert len(write(opened, tokenizer, "a group", drawn, lambda token: None)) == 12
        answers = greedy(opened, tokenizer, ["the codes", "a group is stored"], 8)
        ids = tokenizer("the scale of a group is stored beside its codes")["input_ids"]
        return said, answers, read(dense, tokenizer, ids, [("run", opened)], 1, silent)["runs"]["run"]

    said, answers, reading = told(host)
    with rehearsal():
        found, found_answers, found_reading = told(cuda)
    assert (found, found_answers) == (said, answers)
    assert found_reading["rank"] == reading["rank"]
    for name in ("loss", "kl"):
        assert found_reading[name] == pytest.approx(reading[name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["budget", "surgery"])
def test_levels_and_surgery_on_the_device_predict_what_they_predict_on_the_cpu(
    tiny, host, cuda, tmp_path, monkeypatch, kind
):
    text = make_text(tmp_path / "text.txt")
    calibration = Calibration(text=f"file:{text}", samples=4, length=64)
    for module in (budget, surgery):
        monkeypatch.setattr(module, "LENGTH", 64)
        monkeypatch.setattr(module, "WINDOWS", 2)
    levels = (DENSE, Level("2", tuple(stages([("quantize.gptq", {"bits": 2, "group_size": 16})]))))
    monkeypatch.setattr(budget, "standard", lambda layers: levels)

    def told(host):
        if kind == "budget":
            return torch.tensor(budget.learn(str(tiny), calibration, host, silent)["losses"])
        chain = stages([("quantize.gptq", {"bits": 2, "group_size": 16})])
        found = operate(str(tiny), "model.layers.0.mlp.down_proj", chain, calibration, host, silent)
        return torch.tensor([found[name] for name in ("kl", "perplexity", "error", "bytes")])

    expected = told(host)
    surgery._patient.cache_clear()
    with rehearsal():
        found = told(dataclasses.replace(cuda, home=tmp_path / "other"))
    surgery._patient.cache_clear()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("form", formats())
def test_an_export_from_the_device_is_written(subjects, cuda, tmp_path, form):
    with rehearsal():
        subject = subjects(cuda)
        export(subject.artifact, form, tmp_path / "exported", subject.host)
    assert any((tmp_path / "exported").iterdir())


@pytest.mark.parametrize("name", ["awq", "affinequant", "recover, codes"])
def test_waits_of_methods_that_learn_do_not_grow_with_the_width(cuda, tmp_path, name):
    counts = []
    for width in (32, 64):
        folder = tmp_path / str(width)
        model = make_model(folder / "m", hidden_size=width, intermediate_size=2 * width, head_dim=width // 4)
        with rehearsal() as device:
            made(model, dataclasses.replace(cuda, home=folder), folder, *stages(CHAINS[name]))
        ours = ("backend/methods", "backend/solvers")
        counts.append(
            sum(times for where, times in device.waits.items() if any(one in where for one in ours))
        )
    assert 0 < counts[1] <= counts[0] + 2


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "phi3"])
def test_models_built_otherwise_run_on_the_device_too(cuda, tmp_path, family):
    model = make_model(tmp_path / "m", family)
    chain = stages([("quantize.awq", {"group_size": 16, "ratios": 2, "clipping": False}), EORA])
    with rehearsal() as device:
        artifact, _ = made(model, cuda, tmp_path, *chain)
        assert not device.products
    assert bool(torch.isfinite(logits(artifact, dataclasses.replace(cuda, device="cpu"))).all())
