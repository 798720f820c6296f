"""What Explore shows of the store."""

import csv
import io
import json
import re
from dataclasses import replace
from html import unescape

import pandas as pd
import pytest

from backend.recipe import parse_recipe
from store import measurements, results, runs
from tests.ui import made_up
from ui import run_card, run_table
from ui.pages import explore
from ui.story import shipped_front
from ui.view import View, filtered, scope_choices, scopes, visible

KINDS = explore.method_kinds()


@pytest.fixture
def points(jobs, filled):
    return results.points(jobs.database)


def test_an_address_and_its_view_say_the_same():
    view = View(
        scope="model|0123", x="memory.peak", y="divergence.kl", log_x=True, log_y=False, broken=False,
        words="gptq 3-bit", run="0123456789ab", order="-perplexity", colour="bits", symbol="kind",
        dominated="hide", basket="aaaaaaaaaaaa,bbbbbbbbbbbb",
    )  # fmt: skip
    query = dict(
        pair.split("=") for pair in view.query()[1:].replace("+", " ").replace("%7C", "|").split("&")
    )
    assert View.of_query(query) == view


def test_a_default_view_has_an_empty_address():
    assert View.of_query({}) == View()
    assert View().query() == "?"


def test_an_address_with_nonsense_falls_back_to_the_default():
    assert View.of_query({"x": "drop table", "y": "", "run": "z" * 999}).x == "size.packed"
    assert len(View.of_query({"run": "z" * 999}).run) == 12


def test_runs_of_another_protocol_or_model_never_share_a_plot(jobs, points, filled):
    other = made_up.STAMP | {"digest": "1" * 16}
    run_id = made_up.add_run(jobs.database, made_up.RUNS[1], recipe={"seed": 5}, stamp=other)
    points = results.points(jobs.database)
    first, second = scopes(points)
    assert run_id not in set(visible(points, View(scope=first))["id"])
    assert set(visible(points, View(scope=second))["id"]) == {run_id}
    labels = [label for label, _ in scope_choices(jobs.database, points)]
    assert len(set(labels)) == 3
    assert "wikipedia-en, 8 x 1024 tokens, 10 runs" in labels[0]


def test_runs_of_another_device_never_share_a_plot_and_the_choice_names_both(jobs):
    for seed, device in enumerate(("cpu", "cuda")):
        stamp = made_up.STAMP | {"device": device}
        made_up.add_run(jobs.database, made_up.RUNS[1], recipe={"seed": seed}, stamp=stamp)
    points = results.points(jobs.database)
    shown = [visible(points, View(scope=scope)) for scope in scopes(points)]
    assert [len(runs) for runs in shown] == [1, 1]
    labels = [label for label, _ in scope_choices(jobs.database, points)]
    assert sorted(label.rsplit(", ", 2)[1] for label in labels[:2]) == ["cpu", "cuda"]


def test_what_was_computed_in_another_type_never_shares_a_plot_and_all_places_name_it(jobs):
    for seed, told in enumerate(({}, {"compute_dtype": "bfloat16"}, {"compute_dtype": "float32"})):
        stamp = made_up.STAMP | {"model_dtype": "bfloat16", "device": "cpu"} | told
        made_up.add_run(jobs.database, made_up.RUNS[1], recipe={"seed": seed}, stamp=stamp)
    points = results.points(jobs.database)
    # Before the stamp told it, a model was computed as it was stored.
    assert [len(visible(points, View(scope=scope))) for scope in scopes(points)] == [2, 1]
    labels = [label for label, _ in scope_choices(jobs.database, points)]
    assert [label.rsplit(", ", 2)[1] for label in labels[:2]] == ["bfloat16", "float32"]
    drawn = json.loads(explore.drawing(jobs.database, points, View(scope="*")))
    names = [trace["name"] for trace in drawn["data"] if trace.get("x") == [None]]
    assert [name.rsplit(", ", 1)[1].split(" ")[0] for name in names] == ["float32", "bfloat16"]


def test_the_shipped_front_stands_beside_the_first_runs_under_a_symbol_of_its_own(jobs):
    def beside(**asked: str) -> list[dict]:
        view = View(**asked)
        drawn = json.loads(explore.drawing(jobs.database, visible(results.points(jobs.database), view), view))
        return [trace for trace in drawn["data"] if trace["name"].startswith("Shipped")]

    for row in made_up.RUNS[:5]:
        made_up.add_run(jobs.database, row)
    (trace,) = beside()
    assert trace["name"].endswith("in bfloat16")
    assert len(trace["x"]) == len(trace["y"]) == len(trace["customdata"]) > 100
    assert {facts[0] for facts in trace["customdata"]} == {None}
    drawn = json.loads(explore.drawing(jobs.database, results.points(jobs.database), View()))
    others = [one.get("marker", {}).get("symbol") for one in drawn["data"] if one["name"] != trace["name"]]
    assert trace["marker"]["symbol"] not in {symbol for each in others for symbol in (each or [])} | {
        *map(str, others)
    }
    assert beside(words="gptq") == []
    assert beside(x="memory.peak") == []
    assert beside(x="size.linears", y="divergence.kl")
    made_up.add_run(jobs.database, made_up.RUNS[5])
    assert beside() == []


def test_the_shipped_front_does_not_stand_beside_another_model_or_text(jobs):
    made_up.add_run(jobs.database, made_up.RUNS[1], stamp=made_up.STAMP | {"text": "wikipedia-fr"})
    points = results.points(jobs.database)
    assert not explore.few_beside_shipped(visible(points, View()), View())
    assert not explore.few_beside_shipped(points.assign(text="wikipedia-en", model="other"), View())
    assert explore.few_beside_shipped(points.assign(text="wikipedia-en"), View())


def test_a_scope_that_is_gone_falls_back_to_the_fullest(points, filled):
    assert len(visible(points, View(scope="gone|away"))) == len(filled)


def test_a_filter_keeps_runs_with_all_words_and_the_dense_reference(points):
    chains = set(visible(points, View(words="GPTQ 3-bit"))["chain"])
    assert chains == {"dense", "gptq 3-bit g64"}


CONDITIONS = {
    "bits=3": {"gptq 3-bit g64", "rtn 3-bit g64"},
    "bits>=3 bits<=3 -gptq": {"rtn 3-bit g64"},
    "method:prune is:sound kl<0.5": {
        "wanda 2:4 → eora r64", "sparsegpt 2:4 → gptq 4-bit g64 → eora r32",
    },
    "mb<100": {"gptq 2-bit g64", "rtn 2-bit g64"},
    "pattern=2:4 rank!=64 -gptq": {"wanda 2:4", "sparsegpt 2:4"},
    "is:broken": {"rtn 2-bit g64"},
    "agreement>80": {"rtn 4-bit g64"},
    "user:anonymous gptq 2-bit": {"gptq 2-bit g64"},
}  # fmt: skip


@pytest.mark.parametrize("words", CONDITIONS)
def test_a_filter_takes_conditions_on_parameters_and_numbers(points, words):
    assert set(visible(points, View(words=words))["chain"]) - {"dense"} == CONDITIONS[words]


@pytest.mark.parametrize(
    ("words", "told"),
    [("colour<3", "no run here has 'colour'"), ("is:blue", "is:broken"), ("bits<few", "not a number")],
)
def test_a_filter_that_means_nothing_says_so(points, words, told):
    shown, problem = filtered(points, View(words=words))
    assert shown.empty
    assert told in problem


def test_everything_shares_a_picture_only_when_it_is_asked_for(jobs, filled):
    other = made_up.STAMP | {"digest": "1" * 16}
    made_up.add_run(jobs.database, made_up.RUNS[1], recipe={"seed": 5}, stamp=other)
    points = results.points(jobs.database)
    assert len(visible(points, View(scope="*"))) == len(filled) + 1
    assert [key for _, key in scope_choices(jobs.database, points)][-1] == "*"


def test_the_runs_held_for_a_comparison_are_named_and_linked(jobs, filled):
    strip = explore.basket_strip(jobs.database, View(basket=f"{filled[1]},{filled[2]}"))
    assert f"compare?runs={filled[1]},{filled[2]}" in strip
    assert "gptq 3-bit g64" in strip
    assert explore.basket_strip(jobs.database, View()) == ""


def test_only_finished_runs_are_points(jobs, points, filled):
    made_up.add_run(jobs.database, made_up.RUNS[1], status="running", recipe={"seed": 9})
    assert len(visible(results.points(jobs.database), View())) == len(filled)


def test_the_table_sorts_by_any_number_and_keeps_the_missing_last(points):
    chains = run_table.ordered(points, "perplexity")["chain"].tolist()
    assert chains[0] == "dense"
    assert run_table.ordered(points, "-perplexity")["chain"].iloc[0] == "rtn 2-bit g64"
    assert run_table.ordered(points, "nonsense").equals(points)
    points.loc[points["chain"] == "dense", "perplexity"] = None
    assert run_table.ordered(points, "-perplexity")["chain"].iloc[-1] == "dense"


def test_the_table_carries_run_ids_marks_broken_runs_and_the_open_one(points, filled):
    markup = run_table.rows(points, View(run=filled[2]))
    assert all(f'data-run="{run_id}"' in markup for run_id in filled)
    assert markup.count(">broken<") == 1
    assert markup.count('aria-selected="true"') == 1


def test_a_long_table_is_cut_and_says_so(points, monkeypatch):
    monkeypatch.setattr(run_table, "MOST_ROWS", 4)
    markup = run_table.rows(points, View())
    assert markup.count("<tr tabindex") == 4
    assert "6 more" in markup


def test_the_card_tells_everything_about_a_run(jobs, points, filled):
    card = run_card.card(jobs, filled[7], points)
    for told in (
        "sparsegpt 2:4 → gptq 4-bit g64 → eora r32", "34.10 ± 0.57", "+52.2 %", "121.9 MB", "of it linears",
        "model.layers.5.self_attn.q_proj", "python app.py run recipe.json", f"compare?runs={filled[7]}",
        f"compress?from={filled[7]}", "53 s",
    ):  # fmt: skip
        assert told in card


def test_a_simulated_speed_says_so(jobs, points, filled):
    own = [made_up.number("speed.decode", 11.3, {"device": "cpu", "simulated": True})]
    measurements.save_measurements(jobs.database, filled[3], measurements=own)
    assert "Decode, simulated" in run_card.card(jobs, filled[3], points)
    assert "simulated" not in run_card.card(jobs, filled[0], points)


def test_the_recipe_on_the_card_can_be_run_again(jobs, points, filled):
    card = run_card.card(jobs, filled[2], points)
    text = card.split('<pre id="reproduce-recipe">')[1].split("</pre>")[0].replace("&quot;", '"')
    assert parse_recipe(text).chain() == "gptq 3-bit g64"


def test_the_card_of_a_broken_run_says_why(jobs, points, filled):
    assert "worse than guessing" in run_card.card(jobs, filled[-1], points)


def test_a_run_without_numbers_and_a_run_that_is_gone_have_cards_too(jobs, points):
    waiting = made_up.add_run(jobs.database, made_up.RUNS[1], status="queued", recipe={"seed": 3})
    card = run_card.card(jobs, waiting, results.points(jobs.database))
    assert "Nothing has been measured yet" in card
    assert f"queue?run={waiting}" in card
    assert "No run &lt;b&gt;" in run_card.card(jobs, "<b>", points)
    assert "Reading the plot" in run_card.card(jobs, "", points)


def test_nothing_from_the_store_is_shown_unescaped(jobs, points):
    hostile = "<script>alert(1)</script>"
    digest = "f" * 64
    recipe = json.dumps({"model": hostile, "evaluation": {"text": hostile}})
    runs.create_run(
        jobs.database, digest=digest, name=hostile, recipe=recipe, model=hostile, chain=hostile, user=hostile,
    )  # fmt: skip
    assert "<script" not in run_card.card(jobs, digest[:12], results.points(jobs.database))
    points.loc[0, ["chain", "broken"]] = hostile
    assert "<script" not in run_table.rows(points, View())
    assert "<script" not in explore.activity(jobs)


def test_downloads_hold_what_is_shown(points, filled):
    shown = visible(points, View(words="eora"))
    table = list(csv.DictReader(io.StringIO(run_table.as_csv(shown))))
    listed = json.loads(run_table.as_json(shown))
    assert [row["id"] for row in table] == [entry["id"] for entry in listed] == shown["id"].tolist()
    assert float(table[0]["perplexity"]) == listed[0]["perplexity"]
    assert parse_recipe(listed[0]["recipe"]).stages


def test_a_cell_that_a_spreadsheet_would_run_is_defused(points):
    points.loc[0, "user"] = "=HYPERLINK(1)"
    assert "'=HYPERLINK(1)" in run_table.as_csv(points)


def test_an_empty_store_says_what_to_do_and_a_first_start_what_happens(jobs):
    assert "Nothing has been run yet" in explore.nothing_yet(jobs)
    assert explore.activity(jobs) == ""
    made_up.add_run(jobs.database, made_up.RUNS[1], status="queued", source="starter")
    assert "1 run is to come" in explore.nothing_yet(jobs)
    assert "no worker is alive" in explore.activity(jobs)


def test_the_figure_follows_the_view(jobs, points):
    linear = explore.figure(jobs.database, points, View(log_y=False), KINDS)
    log = explore.figure(jobs.database, points, View(), KINDS)
    assert (linear["layout"]["yaxis"]["type"], log["layout"]["yaxis"]["type"]) == ("linear", "log")
    again = explore.figure(jobs.database, points, replace(View(), words="x"), KINDS)
    assert again["layout"]["uirevision"] == log["layout"]["uirevision"], "a filter must not undo a zoom"


def test_what_a_method_tells_of_its_work_stands_on_the_card(jobs):
    run = made_up.add_run(jobs.database, made_up.RUNS[0], status="queued")
    ticket = results.run(jobs.database, run)["ticket"]
    runs.start_run(jobs.database, run, ticket, "local")
    notes = {"stage 1, prune.blocks": {"blocks left out": [3, 9], "loss <each>": [3.5, 3.25, 3.75, 3.0]}}
    measurements.save_compression(
        jobs.database, run, artifact="a.safetensors", layers=[], seconds={}, report={"notes": notes}
    )
    markup = run_card.card(jobs, run, results.points(jobs.database))
    assert "plan-of" not in markup
    assert "stage 1, prune.blocks" in markup
    assert "3, 9" in markup
    assert 'aria-label="loss &lt;each&gt;: from 3.500 to 3.000, least 3.000, most 3.750"' in markup
    (points,) = re.findall(r'<polyline points="([^"]*)"', markup)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights == pytest.approx([36 - 32 * (one - 3.0) / 0.75 for one in (3.5, 3.25, 3.75, 3.0)], abs=0.1)


def test_a_run_that_searched_a_plan_offers_it_as_a_recipe(jobs):
    run = made_up.add_run(jobs.database, made_up.RUNS[0], status="queued")
    runs.start_run(jobs.database, run, results.run(jobs.database, run)["ticket"], "local")
    plan = {"model.layers.0.mlp.up_proj": {"bits": 3}}
    measurements.save_compression(
        jobs.database, run, artifact="a.safetensors", layers=[], seconds={}, report={"plan": plan}
    )
    assert f"compress?plan-of={run}" in run_card.card(jobs, run, results.points(jobs.database))


def test_until_there_is_a_point_the_front_of_this_version_stands_there(jobs):
    figure, note = shipped_front()
    assert explore.picture(jobs, {}) == figure
    assert note in unescape(explore.nothing_yet(jobs))
    facts = [point for trace in json.loads(figure)["data"] for point in trace.get("customdata", [])]
    # None of them is a run of this store.
    assert len(facts) >= 150
    assert {point[0] for point in facts} == {None}
    run = made_up.add_run(jobs.database, made_up.RUNS[1])
    assert run in explore.picture(jobs, {})


@pytest.fixture
def simulated(jobs, filled):
    """The runs of two 2:4 models have real speeds as dense has, all others simulated ones: their ids."""
    ids = [run for number, run in enumerate(filled) if number not in (0, 4, 5)]
    for number, run in enumerate(ids):
        own = [made_up.number("speed.decode", 20.0 + number, {"device": "cpu", "simulated": True})]
        measurements.save_measurements(jobs.database, run, measurements=own)
    return ids


def test_a_filter_and_every_file_tell_simulated_speeds_from_real_ones(jobs, filled, simulated):
    points = results.points(jobs.database)
    found = visible(points, View(words="is:simulated"))
    assert set(found["id"]) == set(simulated)
    assert set(visible(points, View(words="speed.decode>1 -is:simulated"))["id"]) == set(filled) - set(
        simulated
    )
    told = pd.read_csv(io.StringIO(run_table.as_csv(points))).set_index("id")["speeds"]
    assert {run: told[run] == "simulated" for run in filled} == {run: run in simulated for run in filled}
    assert {row["id"]: row["speeds"] for row in json.loads(run_table.as_json(points))} == told.to_dict()


def test_a_simulated_speed_is_not_set_against_the_real_one_of_dense(jobs, filled, simulated):
    points = results.points(jobs.database)
    decode = run_card.card(jobs, simulated[0], points).split("Decode, simulated")[1].split("</tr>")[0]
    assert "%" not in decode
    real = run_card.card(jobs, filled[4], points).split("Decode")[1].split("</tr>")[0]
    assert "same" in real
