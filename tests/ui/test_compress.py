"""The chain builder: form to recipe and back, estimates, queueing."""

import json

import pytest

from backend.errors import UserError
from backend.registry import discover
from backend.sweep import parse_sweep
from store import results
from ui import recipe_form
from ui import stages as stage_menus
from ui.estimate_card import plan
from ui.pages import compress

SCORES = ["perplexity"]


def template(stages, model="smollm2-135m-instruct", text="wikipedia-en", length="64", windows="2", plan=None):
    return recipe_form.template_of(
        model, stages, (text, ["4", "64", "0", "sequential"]), (text, [length, windows], SCORES), plan or {}
    )


@pytest.mark.parametrize("name", stage_menus.PRESETS)
def test_every_preset_goes_through_the_form_unchanged(name):
    chain = stage_menus.PRESETS[name]
    recipes = recipe_form.recipes_of(template(recipe_form.staged(chain)))
    expected = parse_sweep(template([]) | {"stages": chain}).expand()
    assert [recipe.to_json() for recipe in recipes] == [recipe.to_json() for recipe in expected]


def test_there_are_presets_to_start_from():
    assert len(stage_menus.PRESETS) >= 6


def test_a_recipe_comes_back_from_the_form_as_it_went_in():
    stages = recipe_form.staged([{"method": "quantize.gptq", "params": {"bits": [2, 3]}, "only": "*.mlp.*"}])
    written = template(stages)
    model, again, calibration, evaluation, plan = recipe_form.form_of(written)
    assert plan == {}
    assert (model, again) == (written["model"], stages)
    assert calibration == ["wikipedia-en", "4", "64", "0", "sequential"]
    assert evaluation == ["wikipedia-en", "64", "2", SCORES]


def test_a_recipe_with_a_plan_keeps_it_through_the_form_until_it_is_left_out():
    stages = recipe_form.staged([{"method": "quantize.gptq", "params": {"bits": 3}}])
    own = {"model.layers.0.mlp.down_proj": {"bits": 4}, "model.layers.1.mlp.up_proj": {"bits": 2}}
    _, again, _, _, plan = recipe_form.form_of(template(stages, plan=own))
    assert plan == own
    (recipe,) = recipe_form.recipes_of(template(again, plan=plan))
    assert recipe.plan == own
    assert "2 linears have values of their own" in compress.plan_note(plan)
    assert compress.plan_note({}) == ""
    (without,) = recipe_form.recipes_of(template(again))
    assert without.plan == {}


def test_several_numbers_in_a_field_are_a_sweep():
    (stage,) = recipe_form.staged([{"method": "quantize.rtn"}])
    stages = recipe_form.edited([stage], stage["key"], "bits", "2..4")
    stages = recipe_form.edited(stages, stage["key"], "group_size", "32, 64")
    assert len(recipe_form.recipes_of(template(stages))) == 6
    assert len(recipe_form.recipes_of(template(stages, windows="2, 3"))) == 12


def test_a_sweep_that_is_too_large_for_the_page_is_refused():
    stages = recipe_form.staged(
        [{"method": "prune.wanda", "params": {"sparsity": [i / 100 for i in range(90)]}}]
    )
    with pytest.raises(UserError, match="540 runs; allowed from the page: at most 500"):
        recipe_form.recipes_of(template(stages, windows="1..6"))


def test_stages_are_added_moved_and_removed():
    stages = []
    for method in ("prune.wanda", "quantize.rtn", "compensate.eora"):
        stages = recipe_form.added(stages, method)
    keys = [stage["key"] for stage in stages]
    assert len(set(keys)) == 3
    assert [stage["key"] for stage in recipe_form.moved(stages, keys[2], -1)] == [keys[0], keys[2], keys[1]]
    assert [stage["key"] for stage in recipe_form.moved(stages, keys[0], -1)] == keys
    assert [stage["key"] for stage in recipe_form.moved(stages, keys[0], 1)] == [keys[1], keys[0], keys[2]]
    assert [stage["key"] for stage in recipe_form.moved(stages, keys[1], 0)] == [keys[0], keys[2]]
    assert recipe_form.moved(stages, 99, 0) == stages


def test_a_chain_has_an_end():
    stages = recipe_form.staged([{"method": "quantize.rtn"}] * recipe_form.MOST_STAGES)
    with pytest.raises(UserError, match="at most 5"):
        recipe_form.added(stages, "quantize.rtn")
    with pytest.raises(UserError, match="no method"):
        recipe_form.added([], "quantize.magic")


def test_a_pattern_does_not_quarrel_with_the_idle_sparsity_field():
    (stage,) = recipe_form.staged([{"method": "prune.wanda", "params": {"pattern": "2:4"}}])
    edited = recipe_form.edited([stage], stage["key"], "sparsity", "0.7")
    (recipe,) = recipe_form.recipes_of(template(edited))
    assert recipe.stages[0].params["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("chain", "sentence"),
    [
        ([{"method": "compensate.eora"}], "nothing to compensate"),
        ([{"method": "quantize.rtn", "params": {"bits": 99}}], "stage 1, quantize.rtn: bits is 99"),
        ([{"method": "quantize.rtn"}, {"method": "prune.wanda"}], "stage 2, prune.wanda"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(chain, sentence):
    with pytest.raises(UserError, match=sentence):
        recipe_form.recipes_of(template(recipe_form.staged(chain)))


def test_a_sweep_of_whole_chains_is_left_to_the_json():
    with pytest.raises(UserError, match="queue this JSON"):
        recipe_form.form_of({"model": "m", "stages": [[], [{"method": "quantize.rtn"}]]})


def test_the_estimate_says_sizes_time_and_memory(host, jobs, tiny):
    recipes = recipe_form.recipes_of(
        template(
            recipe_form.staged([{"method": "quantize.rtn", "params": {"group_size": 16}}]),
            tiny.model,
            tiny.text,
        )
    )
    history = results.recent_seconds(jobs.database)
    card = plan(recipes, host, history)
    for told in ("packed", "of dense", "Embeddings", "peak memory", "first guess", "flatter"):
        assert told in card
    several = plan(recipes * 3, host, history)
    assert "Before the sweep" in several


def test_queueing_twice_says_that_nothing_is_done_twice(jobs, tiny):
    chain = [{"method": "quantize.rtn", "params": {"group_size": 16, "bits": [2, 3]}}]
    recipes = recipe_form.recipes_of(template(recipe_form.staged(chain), tiny.model, tiny.text))
    assert "2 runs queued." in compress.queued(jobs, recipes, "anonymous")
    assert "2 were asked for before" in compress.queued(jobs, recipes, "anonymous")
    assert "1 was asked for before" in compress.queued(jobs, recipes[:1], "anonymous")
    assert len(results.queue(jobs.database)) == 2


def test_menus_offer_every_method_and_preset():
    menu = stage_menus.method_menu()
    assert all(f'data-method="{method}"' in menu for method in discover().methods)
    assert menu.index("prune") < menu.index("quantize") < menu.index("compensate")
    assert stage_menus.preset_menu().count("data-preset") == len(stage_menus.PRESETS)


def test_the_written_json_is_the_recipe(host):
    written = json.dumps(template(recipe_form.staged(stage_menus.PRESETS["2:4 repaired by EoRA"])))
    assert [recipe.chain() for recipe in recipe_form.recipes_of(written)] == [
        f"wanda 2:4 → eora r{rank}" for rank in (32, 64, 128)
    ]
