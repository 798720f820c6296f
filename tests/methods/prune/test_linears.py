"""Linears are left out: by name, or by a search that takes whole attentions and MLPs beside bits."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import read_parts
from backend.errors import UserError
from backend.estimate import estimate
from backend.methods.prune.linears import linears
from backend.parts import combined, gone
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.solvers.evolution import Selection, evolve
from tests.layers import random_layer
from tests.methods.models import IDS, apart, asked, logits, made
from tests.tiny import make_model

RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}
HALF = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
EORA = {"method": "compensate.eora", "params": {"rank": 4}}
OUT = {"method": "prune.linears"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# A tiny search: (linears of 20 bytes, two of them an attention; the last way stores nothing).
SIZES = [(10, 20, 30, 0)] * 6
HALVES = ((0, 1), (2, 3), (4, 5))


def search(**params):
    given = {"over": "mixture", "bits": 3.0, "generations": 12, "offspring": 6, "windows": 2, **params}
    return {"method": "allocate.evopress", "params": given}


def mixture(method):
    return {"method": f"allocate.{method}", "params": {"over": "mixture", "bits": 3.0}}


@pytest.fixture
def idle(tmp_path):
    """A model of four blocks, in one of which the attention hardly does anything, and the MLP in another."""
    folder = make_model(tmp_path / "model", num_hidden_layers=4)
    opened = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        opened.model.layers[1].self_attn.o_proj.weight *= 1e-4
        opened.model.layers[2].mlp.down_proj.weight *= 1e-4
    opened.save_pretrained(folder)
    return folder


def size(parts):
    return sum(part.bits for pieces in parts.values() for part in pieces) // 8


def test_nothing_of_a_linear_is_stored():
    layer, _ = random_layer(rows=48, inputs=128)
    parts = linears(layer)
    assert gone(parts)
    assert sum(part.bits for part in parts) == 0
    assert torch.equal(combined(parts), torch.zeros(48, 128))


def test_an_attention_that_is_left_out_adds_nothing_and_has_no_byte(host, tmp_path):
    model = make_model(tmp_path / "model", num_hidden_layers=4)
    stages = [{**OUT, "only": "*layers.3.self_attn.*"}, RTN]
    artifact, _ = made(model, host, tmp_path, *stages)
    parts = read_parts(artifact)
    assert {name for name in parts if gone(parts[name])} == {
        f"model.layers.3.self_attn.{name}" for name in ATTENTION
    }
    packed = sum(part.bits for pieces in parts.values() for part in pieces) // 8
    assert estimate(asked(model, tmp_path, *stages), host).linears_bytes == packed
    plain = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for name, pieces in parts.items():
            plain.get_submodule(name).weight.copy_(combined(pieces))
        plain.model.layers[3].self_attn.forward = lambda hidden_states, **named: (
            torch.zeros_like(hidden_states), None
        )  # fmt: skip
    with torch.inference_mode():
        assert torch.allclose(logits(artifact, host), plain.eval()(IDS).logits.double(), atol=1e-4)


def test_a_search_leaves_out_what_does_nothing_and_spends_its_bytes(host, tmp_path, idle):
    plain, _ = made(idle, host, tmp_path, RTN)
    artifact, report = made(idle, host, tmp_path, search(generations=30, offspring=12), OUT, RTN)
    parts, base = read_parts(artifact), read_parts(plain)
    assert size(parts) <= size(base)
    left_out = {name for name in parts if gone(parts[name])}
    assert {f"model.layers.2.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")} <= left_out
    assert apart(idle, artifact, host) < 0.5 * apart(idle, plain, host)
    # What it found is an ordinary recipe, and stores the same.
    again = asked(idle, tmp_path, search(), OUT, RTN).with_plan(report.plan)
    second = tmp_path / "again.safetensors"
    compress(again, host, second, tmp_path / "scratch-again", silent)
    assert torch.equal(logits(second, host), logits(artifact, host))
    assert size(parts) == size(read_parts(second))


def test_every_method_of_allocation_bears_a_way_that_stores_nothing(host, tmp_path, idle):
    plain, _ = made(idle, host, tmp_path, RTN)
    for method in ("fisher", "dp"):
        stage = {"method": f"allocate.{method}", "params": {"over": "mixture", "bits": 3.0}}
        artifact, _ = made(idle, host, tmp_path, stage, OUT, HALF, RTN, EORA)
        assert size(read_parts(artifact)) <= size(read_parts(plain))


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_in_front_of_a_norm_nothing_goes_for_free(host, tmp_path, family):
    model = make_model(tmp_path / "model", family, num_hidden_layers=3)
    plain, _ = made(model, host, tmp_path, RTN)
    predicted, _ = made(model, host, tmp_path, mixture("fisher"), OUT, RTN)
    searched, _ = made(model, host, tmp_path, search(), OUT, RTN)
    for artifact in (predicted, searched):
        assert 0.9 * size(read_parts(plain)) < size(read_parts(artifact)) <= size(read_parts(plain))
    assert apart(model, predicted, host) < 3 * apart(model, plain, host)
    assert apart(model, searched, host) < 1.5 * apart(model, plain, host)


def test_what_takes_no_bits_is_stored_as_the_search_saw_it(host, tmp_path, idle):
    mlp = {**RTN, "only": "*.mlp.*"}
    artifact, report = made(idle, host, tmp_path, search(), OUT, mlp)
    parts = read_parts(artifact)
    assert not [name for name in parts if "self_attn" in name]
    assert size(parts) <= size(read_parts(made(idle, host, tmp_path, mlp)[0]))
    assert all(
        report.plan[f"model.layers.0.self_attn.{name}"]["skip"] == ["prune.linears"] for name in ATTENTION
    )


@pytest.mark.parametrize(
    "stages",
    [
        [mixture("dp"), HALF, RTN],
        [{"method": "allocate.fisher"}, RTN],
        [search(over="bits"), RTN],
        [{"method": "allocate.owl", "params": {"sparsity": 0.5}}, {"method": "prune.magnitude"}],
        [RTN, {"method": "allocate.rank", "params": {"rank": 4}}, EORA],
    ],
    ids=lambda stages: stages[-2]["method"],
)
def test_nothing_is_planned_for_what_has_gone_before(host, tmp_path, idle, stages):
    first = {**OUT, "only": "*layers.1.self_attn.*"}
    artifact, report = made(idle, host, tmp_path, first, *stages)
    parts = read_parts(artifact)
    assert [name for name in parts if gone(parts[name])] == [
        f"model.layers.1.self_attn.{name}" for name in ATTENTION
    ]
    aimed = {"bits", "sparsity", "rank"}
    assert not [
        name for name in report.plan if "layers.1.self_attn" in name and aimed & set(report.plan[name])
    ]


@pytest.mark.parametrize("method", ["fisher", "evopress"])
def test_bits_are_planned_beside_what_a_later_stage_leaves_out(host, tmp_path, idle, method):
    stage = search(over="bits", generations=1) if method == "evopress" else {"method": "allocate.fisher"}
    later = {**OUT, "only": "*layers.1.self_attn.*"}
    artifact, _ = made(idle, host, tmp_path, stage, later, RTN)
    parts = read_parts(artifact)
    assert len([name for name in parts if gone(parts[name])]) == 4
    assert len({parts[name][0].width for name in parts if not gone(parts[name])}) > 1


def test_ranges_of_inputs_go_with_the_linear(host, tmp_path, idle, monkeypatch):
    ranges = {"method": "quantize.activations", "params": {"per": "tensor"}}
    first = {**OUT, "only": "*layers.1.self_attn.*"}
    artifact, _ = made(idle, host, tmp_path, ranges, first, HALF)
    parts = read_parts(artifact)
    assert sum(part.bits for part in parts["model.layers.1.self_attn.q_proj"]) == 0
    stages = [ranges, first, HALF]
    assert estimate(asked(idle, tmp_path, *stages), host).linears_bytes == size(parts)
    # So a search may leave out halves there too: two of each of four blocks.
    offered = []

    def spied(*given, halves, **named):
        offered.append(halves)
        return evolve(*given, halves=halves, **named)

    monkeypatch.setattr("backend.methods.allocate.evopress.evolve", spied)
    made(idle, host, tmp_path, search(generations=1), ranges, OUT, RTN)
    assert [len(halves) for halves in offered] == [8]


@pytest.mark.parametrize(
    "later",
    [
        {"method": "quantize.awq", "params": {"bits": 4, "group_size": 16}},
        {"method": "prune.maskllm", "params": {"samples": 4, "epochs": 1}},
        {"method": "recover.blocks"},
    ],
    ids=lambda stage: stage["method"],
)
@pytest.mark.parametrize(
    "first",
    [
        {**OUT, "only": "*layers.1.self_attn.*"},
        {"method": "prune.blocks", "params": {"blocks": 1, "piece": "attention"}},
    ],
    ids=lambda stage: stage["method"],
)
def test_what_has_gone_does_not_come_back_with_a_later_stage(host, tmp_path, first, later):
    model = make_model(tmp_path / "model", num_hidden_layers=3)
    stages = [first, RTN, later] if later["method"] == "recover.blocks" else [first, later]
    artifact, _ = made(model, host, tmp_path, *stages)
    parts = read_parts(artifact)
    assert len([name for name in parts if gone(parts[name])]) == 4
    assert size(parts) == estimate(asked(model, tmp_path, *stages), host).linears_bytes


def cost(plan, windows=()):
    """The first half does nothing; all others want bytes."""
    worth = (0.0, 0.0, 5.0, 1.0, 2.0, 0.5)
    given = [SIZES[0][level] for level in plan]
    return sum(value * (40 - size) ** 2 for value, size in zip(worth, given, strict=True))


def test_halves_go_whole_come_back_and_change_places_within_the_bytes():
    seen = []

    def loss(plan, windows):
        seen.append(tuple(plan))
        return cost(plan)

    found = evolve(
        [1] * 6, SIZES, loss, windows=1, generations=80, offspring=8, rounds=(Selection(1, 1),),
        rng=torch.Generator().manual_seed(0), halves=HALVES,
    ).plan  # fmt: skip
    sizes = [[SIZES[0][level] for level in plan] for plan in seen]
    assert max(sum(each) for each in sizes) <= 120
    assert {sum(level == 3 for level in plan) for plan in seen} >= {0, 2, 4}
    whole = [
        plan for plan in itertools.product(range(4), repeat=6) if sum(SIZES[0][at] for at in plan) <= 120
    ]
    assert cost(found) == min(cost(plan) for plan in whole)
    assert found[:2] == [3, 3]


def test_a_half_that_is_out_is_taken_back_where_it_is_wanted():
    found = evolve(
        [1, 1, 2, 2, 3, 3], SIZES, lambda plan, windows: float(plan[4] + plan[5]),
        windows=1, generations=40, offspring=8, rounds=(Selection(1, 1),),
        rng=torch.Generator().manual_seed(1), halves=HALVES,
    ).plan  # fmt: skip
    assert found[4:] == [0, 0]
    assert sum(SIZES[0][level] for level in found) <= 100


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([OUT], "leaves out every linear"),
        ([OUT, RTN], "leaves out every linear"),
        ([OUT, mixture("fisher"), HALF, RTN], "leaves out every linear"),
        ([{**OUT, "only": "*embed_tokens"}], "compressed without calibration"),
        ([RTN, OUT], "prune cannot follow quantize"),
    ],
)
def test_what_would_leave_no_model_is_refused(host, tmp_path, idle, stages, said):
    with pytest.raises(UserError, match=said):
        estimate(asked(idle, tmp_path, *stages), host)


def test_a_plan_may_name_what_is_left_out():
    recipe = parse_recipe(
        {
            "model": "smollm2-135m-instruct",
            "stages": [OUT, RTN],
            "plan": {"model.layers.0.mlp.up_proj": {"skip": ["prune.linears"]}},
        }
    )
    assert [stage.method for _, stage in recipe.stages_of("model.layers.0.mlp.up_proj")] == ["quantize.rtn"]
