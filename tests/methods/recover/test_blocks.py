"""Tuning lowers what is lost without a byte more, and nothing but floats moves."""

import pytest
import torch
from transformers import AutoTokenizer

from backend.artifacts import open_artifact, read_parts, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.parts import combined
from backend.text import evaluation
from tests.methods.models import asked, logits, made
from tests.tiny import DIFFERENT, make_model

TUNE = {"method": "recover.blocks", "params": {"samples": 8, "epochs": 3}}
HLQ = {"method": "quantize.hlq", "params": {"bits": 2, "group_size": 16}}
GPTQ = {"method": "quantize.gptq", "params": {"bits": 2, "group_size": 16}}
STAGES = {
    "gptq": [GPTQ],
    "hlq": [HLQ],
    "fdb": [{"method": "quantize.fdb", "params": {"group_size": 16}}],
    "columns": [{"method": "quantize.adadim", "params": {"bits": 2, "group_size": 16}}],
    "float zeros": [{"method": "quantize.rtn", "params": {"bits": 2, "group_size": 16, "zero": "float"}}],
    "codebook": [{"method": "quantize.codebook", "params": {"table": "nf2", "group_size": 16}}],
    "floats": [{"method": "quantize.llm_fp4", "params": {"bits": 3, "group_size": 16}}],
    "pruned": [{"method": "prune.magnitude", "params": {"sparsity": 0.6}}],
    "factors": [{"method": "factorize.svd", "params": {"ratio": 0.5}}],
    "short factors": [
        {"method": "prune.wanda", "params": {"pattern": "2:4"}},
        {"method": "compensate.eora", "params": {"rank": 16, "factor_bits": 4}},
    ],
    "stack": [
        {"method": "prune.wanda", "params": {"pattern": "2:4"}}, GPTQ,
        {"method": "compensate.eora", "params": {"rank": 4}},
    ],
}  # fmt: skip


def lost(model, artifact, host, tmp_path):
    """Mean KL in nats from the dense model on text that nothing was tuned on."""
    ids = evaluation(f"file:{tmp_path / 'text.txt'}", AutoTokenizer.from_pretrained(model), 64, 8, host).ids
    dense, now = (logits(one, host, ids).log_softmax(dim=-1) for one in (model, artifact))
    return float((dense.exp() * (dense - now)).sum(dim=-1).mean())


@pytest.mark.parametrize("name", STAGES)
def test_what_is_tuned_is_nearer_to_the_dense_model_at_the_same_bytes(host, tmp_path, name):
    model = make_model(tmp_path / "model")
    before, _ = made(model, host, tmp_path, *STAGES[name])
    after, _ = made(model, host, tmp_path, *STAGES[name], TUNE)
    assert lost(model, after, host, tmp_path) < 0.9 * lost(model, before, host, tmp_path)
    assert tensor_sizes(after) == tensor_sizes(before)


@pytest.mark.parametrize("name", STAGES)
def test_codes_masks_and_types_stay_as_they_were(host, tmp_path, name):
    model = make_model(tmp_path / "model")
    before, after = (
        read_parts(made(model, host, tmp_path, *stages)[0])
        for stages in (STAGES[name], [*STAGES[name], TUNE])
    )
    moved = 0
    for linear, pieces in before.items():
        for old, new in zip(pieces, after[linear], strict=True):
            assert (old.kind, old.settings()) == (new.kind, new.settings())
            for key, tensor in old.tensors().items():
                assert new.tensors()[key].dtype == tensor.dtype
                same = torch.equal(new.tensors()[key], tensor)
                assert same or tensor.is_floating_point()
                moved += not same
            if old.kept() is not None:
                assert bool((new.dense()[~old.kept()] == 0).all())
    assert moved >= len(before)


@pytest.mark.parametrize("family", DIFFERENT)
def test_it_works_in_every_family(host, tmp_path, family):
    model = make_model(tmp_path / "model", family)
    before, _ = made(model, host, tmp_path, HLQ)
    after, report = made(model, host, tmp_path, HLQ, TUNE)
    assert lost(model, after, host, tmp_path) < lost(model, before, host, tmp_path)
    rows = [row for row in report.layers if row["method"] == "recover.blocks"]
    assert {row["layer"] for row in rows} == set(read_parts(after))


def test_a_model_in_sixteen_bits_is_tuned_in_float32(host, tmp_path):
    model = make_model(tmp_path / "model", dtype=torch.bfloat16)
    before, _ = made(model, host, tmp_path, HLQ)
    after, _ = made(model, host, tmp_path, HLQ, TUNE)
    assert lost(model, after, host, tmp_path) < 0.9 * lost(model, before, host, tmp_path)


def test_a_rate_that_only_harms_leaves_every_tensor_as_it_was(host, tmp_path):
    model = make_model(tmp_path / "model")
    harm = {"method": "recover.blocks", "params": {"samples": 8, "epochs": 1, "learning_rate": 1.0}}
    before, after = (read_parts(made(model, host, tmp_path, *stages)[0]) for stages in ([HLQ], [HLQ, harm]))
    for linear, pieces in before.items():
        for old, new in zip(pieces, after[linear], strict=True):
            assert all(torch.equal(new.tensors()[key], tensor) for key, tensor in old.tensors().items())


def test_only_the_linears_of_the_stage_are_tuned(host, tmp_path):
    model = make_model(tmp_path / "model")
    some = TUNE | {"only": "*.1.mlp.*"}
    before, after = (read_parts(made(model, host, tmp_path, *stages)[0]) for stages in ([HLQ], [HLQ, some]))
    changed = {
        linear
        for linear, pieces in before.items()
        if not torch.equal(combined(pieces), combined(after[linear]))
    }
    assert changed == {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}


def test_rounded_and_turned_inputs_are_seen_as_they_will_come(host, tmp_path):
    model = make_model(tmp_path / "model")
    stages = [
        {"method": "transform.hadamard"}, HLQ, {"method": "quantize.activations", "params": {"input_bits": 4}}
    ]  # fmt: skip
    before, _ = made(model, host, tmp_path, *stages)
    after, _ = made(model, host, tmp_path, *stages, TUNE)
    assert lost(model, after, host, tmp_path) < 0.9 * lost(model, before, host, tmp_path)
    assert sum(tensor_sizes(after).values()) == sum(tensor_sizes(before).values())
    assert torch.isfinite(logits(after, host)).all()


def test_later_stages_work_on_what_was_tuned(host, tmp_path):
    model = make_model(tmp_path / "model")
    eora = {"method": "compensate.eora", "params": {"rank": 4}}
    tuned = read_parts(made(model, host, tmp_path, HLQ, TUNE)[0])
    added = read_parts(made(model, host, tmp_path, HLQ, TUNE, eora)[0])
    for linear, (part,) in tuned.items():
        assert torch.equal(added[linear][0].dense(), part.dense())
        assert added[linear][1].kind == "lowrank"


def test_the_same_recipe_tunes_the_same(host, tmp_path):
    model = make_model(tmp_path / "model")
    first, _ = made(model, host, tmp_path, HLQ, TUNE)
    again = tmp_path / "again"
    again.mkdir()
    (again / "text.txt").write_bytes((tmp_path / "text.txt").read_bytes())
    second, _ = made(model, host, again, HLQ, TUNE)
    opened = [open_artifact(one, host).model for one in (first, second)]
    for name, linear in opened[0].named_modules():
        if hasattr(linear, "parts"):
            assert torch.equal(linear.weight, opened[1].get_submodule(name).weight)


def test_a_model_that_nothing_was_done_to_has_nothing_to_tune(tmp_path):
    with pytest.raises(UserError, match=r"stage 1, recover\.blocks: there is nothing to tune"):
        asked(tmp_path / "model", tmp_path, TUNE)


def test_the_estimate_grows_with_samples_and_epochs_and_keeps_the_bytes(host, tmp_path):
    model = make_model(tmp_path / "model", hidden_size=256, intermediate_size=512)
    stages = {count: TUNE | {"params": {"samples": 8, "epochs": count}} for count in (10, 100)}
    plain, short, long = (
        estimate(asked(model, tmp_path, HLQ, *more), host) for more in ([], [stages[10]], [stages[100]])
    )
    assert plain.packed_bytes == short.packed_bytes == long.packed_bytes
    assert 9 < (long.seconds - plain.seconds) / (short.seconds - plain.seconds) < 11
