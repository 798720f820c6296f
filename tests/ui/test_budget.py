"""The Budget page: what it says before, while and after levels are learned; plans and their runs."""

import dataclasses
import json

import pytest

from backend.assets import articles_file, model_folder
from backend.budget import Trust
from backend.errors import UserError
from backend.levels import standard
from backend.recipe import Calibration, parse_recipe
from store import results, tasks
from tests.tiny import make_model
from tests.ui import made_up
from ui import learned
from ui.pages import budget
from ui.plan_view import front_figure, plan_figure, told

MODEL, TEXT = made_up.MODEL, "wikipedia-en"
NAMES = [f"model.layers.{block}.{name}" for block in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")]


def learned_result() -> dict:
    """As a worker would tell it, of a model of four linears; the first block costs most."""
    levels = standard(dict.fromkeys(NAMES, (64, 64)))
    bits = [16, 8.4, 6.4, 5.4, 4.8, 4.4, 3.8, 3.4, 2.8, 2.4, 3.4, 2.9]
    losses = [0, 1e-4, 1e-3, 5e-3, 0.01, 0.02, 0.07, 0.1, 0.4, 0.6, 0.3, 0.35]
    return {
        "model": MODEL,
        "calibration": learned.asked(TEXT)["calibration"],
        "levels": [{"name": level.name, "stages": list(level.stages)} for level in levels],
        "layers": NAMES,
        "places": [[int(name.split(".")[2]), name.split(".", 3)[3]] for name in NAMES],
        "weights": [4096] * 4,
        "bytes": [[int(4096 * bit / 8) for bit in bits]] * 4,
        "errors": [[loss / 10 for loss in losses]] * 4,
        "losses": [[loss * weight for loss in losses] for weight in (4, 2, 1, 0.5)],
        "rest_bytes": 1000,
        "protocol": {},
    }


@pytest.fixture(autouse=True)
def embedded(host):
    """A small model in the place of the embedded one."""
    make_model(model_folder(host), hidden_size=64, intermediate_size=64, head_dim=16)


@pytest.fixture
def known(jobs):
    """A store in which the levels have been learned."""
    arguments = learned.asked(TEXT)
    task_id = jobs.task_id("levels", MODEL, arguments)
    attempt = tasks.ask(
        jobs.database, task_id=task_id, kind="levels", model=MODEL, arguments=arguments, user="ada"
    )
    tasks.start(jobs.database, task_id, attempt, "w")
    tasks.finish(jobs.database, task_id, attempt, "done", result=learned_result())
    return learned.budget_of(jobs, MODEL, TEXT), learned.ladder_of(jobs, MODEL, TEXT)


def test_before_anything_is_known_the_page_offers_to_learn_it(jobs):
    assert learned.budget_of(jobs, MODEL, TEXT) is None
    assert 'data-action="learn"' in learned.building(learned.task_of(jobs, MODEL, TEXT), alive=True)


def test_while_levels_are_learned_the_page_says_how_far(jobs):
    arguments = learned.asked(TEXT)
    task_id = jobs.task_id("levels", MODEL, arguments)
    attempt = tasks.ask(
        jobs.database, task_id=task_id, kind="levels", model=MODEL, arguments=arguments, user="ada"
    )
    assert "waits for a worker" in learned.building(learned.task_of(jobs, MODEL, TEXT), alive=False)
    tasks.start(jobs.database, task_id, attempt, "w")
    tasks.report_progress(
        jobs.database, task_id, attempt, stage="levels", done=50, total=100, detail="block <2>"
    )
    shown = learned.building(learned.task_of(jobs, MODEL, TEXT), alive=True)
    assert "block &lt;2&gt;" in shown
    assert 'aria-valuenow="42"' in shown.replace("'", '"')
    tasks.finish(jobs.database, task_id, attempt, "failed", error="Traceback\nno room")
    shown = learned.building(learned.task_of(jobs, MODEL, TEXT), alive=True)
    assert "no room" in shown
    assert "Try again" in shown


def test_an_unknown_model_is_refused_in_a_sentence(jobs):
    with pytest.raises(UserError, match="no-such-model"):
        learned.task_of(jobs, "no-such-model", TEXT)


def test_a_text_that_is_not_known_is_refused_before_anything_is_queued(jobs):
    with pytest.raises(UserError, match="is not known"):
        learned.learn(jobs, MODEL, "no-such-text", "ada")
    assert learned.task_of(jobs, MODEL, "no-such-text") is None


def test_the_run_of_a_plan_says_which_plan_it_is(known):
    found, walk = known
    plan = walk.plan(0.3 * walk.bytes[-1])
    recipe = budget.recipe_at(found, plan)
    assert parse_recipe(recipe.to_json()) == recipe
    assert learned._choice(recipe.to_json(), found) == dict(zip(NAMES, plan, strict=True))
    assert recipe.calibration.order == "dense"


def test_plans_along_the_line_differ_and_leave_its_ends_out(known):
    found, walk = known
    plans = budget.spread(found, walk, 4)
    losses = [walk.totals(plan)[1] for plan in plans]
    assert len({tuple(plan) for plan in plans}) == len(plans) >= 3
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < walk.losses[0]
    assert losses[-1] >= 0.005


def add_measured(jobs, found, plan, kl, **stamp):
    recipe = budget.recipe_at(found, plan)
    fields = json.loads(recipe.to_json())
    row = (fields["stages"], 20.0, kl, 0.9, 100.0, None)
    rest = {key: fields[key] for key in ("calibration", "evaluation", "plan") if key in fields}
    return made_up.add_run(jobs.database, row, recipe=rest, stamp=made_up.STAMP | stamp)


def test_measured_runs_of_plans_teach_the_prediction(jobs, known):
    found, walk = known
    plans = budget.spread(found, walk, 8)
    for plan in plans:
        add_measured(jobs, found, plan, 1.4 * walk.totals(plan)[1])
    # Neither a run in sequential order nor one of another protocol tells anything about these levels.
    made_up.add_run(jobs.database, made_up.RUNS[2])
    add_measured(jobs, found, walk.plan(walk.bytes[-1] / 2), 5.0, digest="2" * 16)
    points = learned.measured(jobs.database, found)
    assert len(points) == len(plans)
    trust = learned.trusted(points)
    assert trust.scale == pytest.approx(1.4, rel=1e-3)
    assert trust.growth == pytest.approx(0.0, abs=1e-3)
    shown = told(found, plans[0], trust, points)
    assert f"From {len(plans)} measured plans" in shown
    assert f"from the others alone, {len(plans)} of {len(plans)} lay within theirs" in shown
    assert "rank correlation 1.000" in shown
    figure = front_figure(found, walk, trust, points, 3000.0, 0.1)
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert len(traces["measured"]["x"]) == len(plans)
    assert "interval of 90 %" in traces


def test_without_measured_runs_the_prediction_stands_alone_and_says_so(known):
    found, walk = known
    plan = walk.plan(0.3 * walk.bytes[-1])
    trust = Trust(1.0, 0.0, 0.0, 0, None, 0)
    shown = told(found, plan, trust, [])
    assert "No plan of this model has been measured yet" in shown
    assert "times as much" in shown
    names = [trace["name"] for trace in front_figure(found, walk, trust, [], 3000.0, 0.1)["data"]]
    assert names == ["predicted plans", "uniform, predicted", "this plan"]


def test_the_map_of_a_plan_shows_its_bits_linear_by_linear(known):
    found, _ = known
    figure = plan_figure(found, [0, 4, 7, 9])
    (heat,) = figure["data"]
    bits = {tuple(cell): value for cell, value in zip(
        ((row, column) for row in range(2) for column in range(2)),
        (value for row in heat["z"] for value in row), strict=True,
    )}  # fmt: skip
    assert sorted(bits.values()) == pytest.approx([2.4, 3.4, 4.8, 16], abs=0.01)


def test_verifying_queues_the_run_once(jobs, known, monkeypatch):
    found, walk = known
    monkeypatch.setattr(budget, "_EVALUATION", {"length": 64, "windows": 2, "metrics": ["divergence"]})
    fields = {"text": "wikipedia-en", "samples": 2, "length": 64, "order": "dense"}
    short = dataclasses.replace(found, calibration=Calibration(**fields))
    articles = articles_file(jobs.host, "en")
    articles.parent.mkdir(parents=True)
    articles.write_text("")
    recipe = budget.recipe_at(short, walk.plan(0.3 * walk.bytes[-1]))
    assert "1 queued." in budget.queued(jobs, [recipe], "ada")
    assert "1 asked for before." in budget.queued(jobs, [recipe], "ada")
    (run,) = results.queue(jobs.database)
    assert (run.chain, run.user) == (recipe.chain(), "ada")
