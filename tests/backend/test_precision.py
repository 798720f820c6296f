"""What a model is computed in is chosen, told, and apart from what it is stored in."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from backend import precision
from backend.artifacts import OpenModel, load_model, open_artifact
from backend.effort import first_rates
from backend.errors import UserError
from backend.evaluate import Subject, evaluate
from backend.facts import facts
from backend.families import blocks_of
from backend.feed import Feed
from backend.host import Host
from backend.pipeline import compress
from backend.precision import all_widened, compute_dtype, known_products, products
from backend.progress import silent
from backend.recipe import Recipe, parse_recipe
from backend.statistics import Gatherer
from tests.tiny import DIFFERENT, make_model, make_text

IDS = torch.arange(48)[None] * 5 % 97 + 4
CPU = torch.device("cpu")


@pytest.fixture
def wide(host: Host) -> Host:
    return replace(host, compute="float32")


@pytest.fixture
def narrow(host: Host) -> Host:
    return replace(host, compute="bfloat16")


def opened(folder: Path, host: Host, kind: str = "llama", dtype: torch.dtype = torch.bfloat16) -> OpenModel:
    make_model(folder, kind, dtype)
    return load_model(facts(str(folder), host), host)


def types_of(model: nn.Module) -> set[torch.dtype]:
    held = [*model.named_parameters(), *model.named_buffers()]
    return {tensor.dtype for name, tensor in held if tensor.is_floating_point() and "inv_freq" not in name}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_16_bit_model_is_computed_in_float32_as_a_float32_copy_would_be(
    kind: str, tmp_path: Path, wide: Host
) -> None:
    found = opened(tmp_path / "model", wide, kind)
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").float()(IDS).logits
        first, second = found.model(IDS).logits, found.model(IDS).logits
        with all_widened(found.model, found.family):
            kept = found.model(IDS).logits
    assert found.compute_dtype == torch.float32
    assert first.dtype == torch.float32
    for made in (first, second, kept):
        torch.testing.assert_close(made, plain, rtol=0, atol=0)
    assert types_of(found.model) == {torch.bfloat16}


def test_float16_weights_are_widened_too_and_float32_ones_are_left_alone(tmp_path: Path, wide: Host) -> None:
    half = opened(tmp_path / "half", wide, dtype=torch.float16)
    whole = opened(tmp_path / "whole", wide, dtype=torch.float32)
    assert (half.compute_dtype, whole.compute_dtype) == (torch.float32, torch.float32)
    assert half.model(IDS).logits.dtype == torch.float32
    assert types_of(half.model) == {torch.float16}


def test_a_model_computed_as_stored_is_untouched(tmp_path: Path, narrow: Host) -> None:
    found = opened(tmp_path / "model", narrow)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(found.model(IDS).logits, plain(IDS).logits)
    assert found.compute_dtype == torch.bfloat16
    assert not any(module._forward_pre_hooks for module in found.model.modules())


def test_only_the_block_that_runs_is_wide(tmp_path: Path, wide: Host) -> None:
    found = opened(tmp_path / "model", wide)
    blocks = blocks_of(found.model, found.family)
    seen: list[list[set[torch.dtype]]] = []
    for block in blocks:
        block.mlp.register_forward_pre_hook(lambda *_: seen.append([types_of(each) for each in blocks]))
    with torch.inference_mode():
        found.model(IDS)
    assert seen == [[{torch.float32}, {torch.bfloat16}], [{torch.bfloat16}, {torch.float32}]]


def test_a_block_that_is_left_early_gives_its_memory_back(tmp_path: Path, wide: Host) -> None:
    found = opened(tmp_path / "model", wide)
    feed = Feed(found, IDS, silent)
    groups = found.family.group_names(0)[:1]
    with torch.inference_mode(), Gatherer(found.model, groups, {groups[0][0]: "gram"}) as gatherer:
        feed.observe(0, gatherer)
    statistics = gatherer.of(groups[0])
    assert statistics.gram is not None
    assert statistics.tokens == IDS.numel()
    assert types_of(found.model) == {torch.bfloat16}


def test_weights_stay_wide_for_an_answer_only_where_memory_allows(
    tmp_path: Path, wide: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(tmp_path / "model", wide)
    with all_widened(found.model, found.family):
        assert torch.float32 in types_of(found.model)
        assert types_of(found.model.lm_head) == {torch.float32}
    assert types_of(found.model) == {torch.bfloat16}
    monkeypatch.setattr(precision, "_FREE_SHARE", 0.0)
    with all_widened(found.model, found.family):
        assert types_of(found.model) == {torch.bfloat16}


def test_auto_takes_the_type_that_this_processor_multiplies_faster(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.bfloat16: 4.3, torch.float16: 30.0, torch.float32: 23.5}
    asked = []

    def measured(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return speeds[dtype]

    monkeypatch.setattr(precision, "_measured", measured)
    assert compute_dtype(torch.bfloat16, CPU, host) == torch.float32
    assert compute_dtype(torch.float16, CPU, host) == torch.float16
    assert compute_dtype(torch.float32, CPU, host) == torch.float32
    # Kept by processor: nothing is measured twice, in another process neither.
    assert compute_dtype(torch.bfloat16, CPU, host) == torch.float32
    assert asked == [torch.bfloat16, torch.float32, torch.float16]
    assert known_products(host) == {"bfloat16": 4.3, "float32": 23.5, "float16": 30.0}
    monkeypatch.setattr(precision, "_processor", lambda: "another")
    assert known_products(host) == {}
    speeds[torch.bfloat16] = 400.0
    assert compute_dtype(torch.bfloat16, CPU, host) == torch.bfloat16


def test_a_gpu_computes_what_is_stored_unless_float32_is_asked_for(host: Host) -> None:
    gpu = torch.device("cuda")
    assert compute_dtype(torch.bfloat16, gpu, host) == torch.bfloat16
    assert compute_dtype(torch.bfloat16, gpu, replace(host, compute="float32")) == torch.float32
    assert compute_dtype(torch.float16, gpu, replace(host, compute="bfloat16")) == torch.float16


def test_products_are_really_measured_and_a_spoiled_file_is_measured_again(host: Host) -> None:
    first = products(host, torch.float32)
    assert 0.01 < first < 1e6
    assert products(host, torch.float32) == first
    file = host.home / "products.json"
    (key,) = json.loads(file.read_text())
    for spoiled in ("{half", "[1]", json.dumps({key: "fast"}), json.dumps({key: -3.0})):
        file.write_text(spoiled)
        assert 0.01 < products(host, torch.float32) < 1e6
        assert json.loads(file.read_text())[key] > 0


def test_first_estimates_follow_the_measured_products() -> None:
    """Products three times slower make a pass twice as slow: half of it was products."""
    known, slow = first_rates(390.0, 130.0), first_rates(130.0, 65.0)
    assert first_rates(None, None) == known
    assert slow["pass"] == pytest.approx(2 * known["pass"])
    assert slow["score"] == pytest.approx(2 * known["score"])
    assert slow["gram"] == pytest.approx(2 * known["gram"])
    assert {unit for unit in known if slow[unit] != known[unit]} == {"pass", "score", "gram"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_stored_type_is_known_before_the_weights_are_loaded(
    dtype: torch.dtype, tmp_path: Path, host: Host
) -> None:
    layout = facts(str(make_model(tmp_path / "model", dtype=dtype)), host)
    assert layout.stored_dtype == str(dtype).removeprefix("torch.")
    assert load_model(layout, host).model.dtype == dtype


def test_a_type_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="PARETOSCOPE_COMPUTE is 'int8'; it takes one of auto, bfloat16"):
        Host.from_environment({"PARETOSCOPE_HOME": str(tmp_path), "PARETOSCOPE_COMPUTE": "int8"})


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Recipe]:
    make_model(tmp_path / "model", dtype=torch.bfloat16)
    make_text(tmp_path / "text.txt")

    def recipe(*stages: dict[str, Any], order: str = "sequential") -> Recipe:
        text = f"file:{tmp_path / 'text.txt'}"
        return parse_recipe(
            {
                "model": str(tmp_path / "model"), "stages": list(stages),
                "calibration": {"text": text, "samples": 4, "length": 32, "order": order},
                "evaluation": {
                    "text": text, "length": 64, "windows": 3, "metrics": ["divergence", "perplexity"],
                },
            }
        )  # fmt: skip

    return recipe


GPTQ = {"method": "quantize.gptq", "params": {"bits": 3, "group_size": 16}}


def test_a_run_in_float32_measures_what_a_plain_float32_loop_measures_and_says_so(
    ask: Callable[..., Recipe], tmp_path: Path, wide: Host
) -> None:
    recipe, artifact = ask(GPTQ), tmp_path / "artifact.safetensors"
    report = compress(recipe, wide, artifact, tmp_path / "scratch", silent)
    assert report.calibration["compute_dtype"] == "float32"
    subject = Subject(recipe, wide, artifact, tmp_path / "scores", silent)
    (found,) = evaluate("perplexity", subject).measurements
    assert (found.protocol["model_dtype"], found.protocol["compute_dtype"]) == ("bfloat16", "float32")
    kl = evaluate("divergence", subject).measurements[0]
    assert kl.protocol["compute_dtype"] == "float32"
    decoded: Any = open_artifact(artifact, replace(wide, compute="bfloat16")).model.float()
    dense: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model").float()
    for module in decoded.modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            module.weight = module.weight.float()
    losses, kls = [], []
    with torch.inference_mode():
        for ids in subject.tokens.ids:
            ours, theirs = (model(ids[None]).logits[0, :-1].log_softmax(-1) for model in (decoded, dense))
            losses.append(-ours.gather(1, ids[1:, None]).mean())
            kls.append((theirs.exp() * (theirs - ours)).sum(dim=1).mean())
    assert found.value == pytest.approx(math.exp(float(torch.stack(losses).mean())), rel=1e-5)
    assert kl.value == pytest.approx(float(torch.stack(kls).mean()), rel=1e-4)


def test_what_one_type_computed_is_not_taken_for_the_other(
    ask: Callable[..., Recipe], tmp_path: Path, wide: Host, narrow: Host
) -> None:
    """Statistics in the dense order and hidden states are kept between runs, for each type its own."""
    recipe = ask(GPTQ, order="dense")
    kept = {}
    for host in (wide, narrow):
        scratch = tmp_path / host.compute
        compress(recipe, host, scratch / "artifact.safetensors", scratch / "blocks", silent)
        subject = Subject(recipe, host, scratch / "artifact.safetensors", scratch / "scores", silent)
        kept[host.compute] = {
            found.metric: found.value for found in evaluate("divergence", subject).measurements
        }
    assert kept["float32"]["divergence.kl"] != kept["bfloat16"]["divergence.kl"]
    assert len(list((wide.cache / "statistics").iterdir())) == 2
    folders = list((wide.cache / "hidden").iterdir())
    states = {load_file(folder / "window-0000.safetensors")["states"].dtype for folder in folders}
    assert states == {torch.float32, torch.bfloat16}
    again = tmp_path / "again"
    compress(recipe, wide, again / "artifact.safetensors", again / "blocks", silent)
    first, second = (load_file(folder / "artifact.safetensors") for folder in (tmp_path / "float32", again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


RTN = {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}}
WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
# What changes the whole model, runs it, or takes its gradients, in the smallest form.
WHOLE: dict[str, dict[str, Any]] = {
    "allocate.dp": {}, "allocate.fisher": {}, "allocate.owl": {}, "allocate.rank": {"rank": 4},
    "allocate.evopress": {"generations": 1, "offspring": 2, "windows": 1},
    "compensate.completion": {"rank": 4}, "compensate.eora": {"rank": 4}, "compensate.lqer": {"rank": 4},
    "head.untie": {}, "head.vq_logits": {"codes": 40, "samples": 2, "epochs": 1},
    "prune.blocks": {"blocks": 1, "score": "greedy"}, "prune.width": {"ratio": 0.25, "samples": 2},
    "prune.maskllm": {"samples": 3, "epochs": 1}, "quantize.activations": {"search": 2},
    "quantize.affinequant": {"group_size": 16, "samples": 3, "epochs": 1},
    "quantize.omniquant": {"group_size": 16, "samples": 3, "epochs": 1},
    "quantize.awq": {"group_size": 16}, "recover.blocks": {"samples": 3, "epochs": 1},
    "transform.hadamard": {}, "transform.smoothquant": {},
}  # fmt: skip
BEFORE = {"allocate.rank": [WANDA], "compensate": [WANDA], "recover": [RTN]}
AFTER = {
    "allocate": [GPTQ], "allocate.owl": [{"method": "prune.wanda", "params": {}}],
    "allocate.rank": [{"method": "compensate.eora", "params": {"rank": 4}}],
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_handles_the_whole_model_works_on_one_that_is_computed_wider(
    name: str, ask: Callable[..., Recipe], tmp_path: Path, wide: Host
) -> None:
    kind = name.split(".", 1)[0]
    before, after = (each.get(name, each.get(kind, [])) for each in (BEFORE, AFTER))
    chain = [*before, {"method": name, "params": WHOLE[name]}, *after]
    recipe, artifact = ask(*chain), tmp_path / "artifact.safetensors"
    compress(recipe, wide, artifact, tmp_path / "scratch", silent)
    kept = load_file(artifact)
    assert kept["model.norm.weight"].dtype == torch.bfloat16
    subject = Subject(recipe, wide, artifact, tmp_path / "scores", silent)
    found = {one.metric: one for one in evaluate("divergence", subject).measurements}
    assert found["divergence.kl"].protocol["compute_dtype"] == "float32"
    assert 0 <= found["divergence.kl"].value < 5
    types = {tensor.dtype for tensor in subject.opened.model.parameters()}
    assert types == {torch.bfloat16}
