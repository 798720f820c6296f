"""Turning leaves the function alone, spreads outliers, and its bytes are counted."""

import pytest
import torch

from backend import inputs
from backend.artifacts import open_artifact, read_parts, tensor_sizes
from backend.errors import UserError
from backend.estimate import estimate
from backend.export import export
from backend.families import FAMILIES
from backend.inputs import Rotated
from backend.solvers.hadamard import exists, hadamard
from backend.views import Statistics
from tests.layers import correlated_inputs, statistics_of
from tests.methods.models import IDS, apart, asked, logits, made, normed, outlying
from tests.tiny import CONFIGS, make_model

TURN = {"method": "transform.hadamard"}
FOUR = {"method": "quantize.activations", "params": {"input_bits": 4}}


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 24, 28, 36, 64, 108, 140, 576, 768, 1536, 5632])
def test_the_matrices_are_orthogonal_with_entries_of_one_size(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))
    if size <= 1536:
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 9, 18, 11008 // 64])
def test_a_size_without_a_known_matrix_says_so(size):
    assert not exists(size)
    with pytest.raises(ValueError, match=f"no Hadamard matrix of size {size}"):
        hadamard(size)


@pytest.mark.parametrize("family", [name for name in CONFIGS if FAMILIES[name].rotates])
def test_turning_alone_leaves_every_logit_where_it_was(host, tmp_path, family):
    model = normed(make_model(tmp_path / "model", family))
    artifact, _ = made(model, host, tmp_path, TURN)
    before, after = logits(model, host), logits(artifact, host)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())


def test_a_residual_stream_without_a_hadamard_matrix_is_turned_at_random(host, tmp_path):
    model = normed(make_model(tmp_path / "model", hidden_size=92, head_dim=6, intermediate_size=44))
    artifact, _ = made(model, host, tmp_path, TURN)
    before, after = logits(model, host), logits(artifact, host)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())


def test_with_outliers_four_bit_activations_lose_several_times_less(host, tmp_path):
    model = outlying(tmp_path / "model")
    plain, _ = made(model, host, tmp_path, FOUR)
    turned, _ = made(model, host, tmp_path, TURN, FOUR)
    assert apart(model, turned, host) < apart(model, plain, host) / 8


def test_the_head_that_was_tied_is_counted_as_stored(host, tmp_path):
    model = normed(make_model(tmp_path / "model"))
    recipe = asked(model, tmp_path, TURN, {"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}})
    artifact, _ = made(model, host, tmp_path, *[stage.model_dump() for stage in recipe.stages])
    sizes = tensor_sizes(artifact)
    assert sizes["lm_head.weight"] == sizes["model.embed_tokens.weight"] == 260 * 32 * 4
    assert estimate(recipe, host).packed_bytes == sum(sizes.values())
    opened = open_artifact(artifact, host).model
    assert not torch.equal(opened.lm_head.weight, opened.model.embed_tokens.weight)


def test_later_stages_work_on_the_inputs_as_they_come_turned(host, tmp_path):
    model = make_model(tmp_path / "model")
    gptq = {"method": "quantize.gptq", "params": {"bits": 3, "group_size": 16}}
    wanda = {"method": "prune.wanda", "params": {"sparsity": 0.3}}
    errors = {}
    for name, stages in {
        "gptq": (TURN, gptq), "rtn": (TURN, gptq | {"method": "quantize.rtn"}),
        "eora": (TURN, gptq, {"method": "compensate.eora", "params": {"rank": 8}}),
        "wanda": (TURN, wanda),
    }.items():  # fmt: skip
        artifact, report = made(model, host, tmp_path, *stages)
        last = [row for row in report.layers if row["stage"] == len(stages) and "down" in row["layer"]]
        errors[name] = sum(row["error"] for row in last)
        assert any(isinstance(part, Rotated) for part in read_parts(artifact)["model.layers.0.mlp.down_proj"])
        assert torch.isfinite(logits(artifact, host)).all()
    assert errors["eora"] < errors["gptq"] < errors["rtn"]
    # Wanda prunes by the norms of the turned inputs, which only the Gram matrix tells.
    assert 0 < errors["wanda"] < 1


def test_statistics_behind_a_rotation_are_those_of_the_turned_inputs():
    x = correlated_inputs(200, 24)
    rotation = Rotated((8, 24))
    expected = statistics_of(rotation(x))
    found = statistics_of(x).through((rotation,))
    torch.testing.assert_close(found.gram, expected.gram)
    torch.testing.assert_close(found.squares, expected.squares)
    assert found.largest is None
    assert Statistics().through((rotation,)).gram is None
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    turned = rotation(x) @ rotation.of_weight(weight).double().T
    torch.testing.assert_close(turned, x @ weight.double().T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(rotation.undo(rotation.of_weight(weight)), weight)


@pytest.mark.parametrize("family", [name for name in CONFIGS if not FAMILIES[name].rotates])
def test_other_families_are_refused_by_name(host, tmp_path, family):
    model = make_model(tmp_path / "model", family)
    says = rf"{FAMILIES[family].name} has other norms .* allowed: Llama and what is built like it"
    with pytest.raises(UserError, match=says):
        made(model, host, tmp_path, TURN)


def test_a_turned_model_still_writes(host, tmp_path):
    artifact, _ = made(make_model(tmp_path / "model"), host, tmp_path, TURN, FOUR)
    opened = open_artifact(artifact, host).model
    assert opened.generate(IDS, max_new_tokens=4, do_sample=False).shape == (1, IDS.shape[1] + 4)


def test_a_turned_model_exported_as_a_plain_folder_computes_the_same(host, tmp_path):
    model = normed(make_model(tmp_path / "model"))
    artifact, _ = made(model, host, tmp_path, TURN)
    export(artifact, "transformers", tmp_path / "out", host)
    before, after = logits(model, host), logits(tmp_path / "out", host)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())


def test_one_matrix_serves_all_that_turn_inputs_of_a_size_and_goes_with_them(monkeypatch):
    made = []
    monkeypatch.setattr(inputs, "hadamard", lambda size: made.append(size) or hadamard(size))
    parts = [inputs.Rotated((8, 28)) for _ in range(2)]
    x = torch.randn(3, 28)
    for part in parts * 2:
        assert torch.equal(part(x), x @ hadamard(28).float())
    assert made == [28]
    parts.clear()
    del part
    assert not [key for key in inputs._MATRICES if key[0] == 28]


def test_a_matrix_that_was_first_used_without_gradients_serves_with_them():
    part = inputs.Rotated((8, 20))
    with torch.inference_mode():
        part(torch.randn(3, 20))
    x = torch.randn(3, 20, requires_grad=True)
    part(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
