"""Answers side by side, and what differs."""

import pytest

from backend.errors import UserError
from store import generations, measurements, results
from tests.ui import made_up
from ui import answers, side_by_side
from ui.pages import compare


def spelled(text):
    return [[hash(word) % 100_000, word] for word in text.replace(" ", "| ").split("|")]


def answer(text, status="done", **more):
    return {
        "text": text,
        "tokens": spelled(text) if status == "done" else [],
        "status": status,
        "error": None,
        **more,
    }


def test_answers_part_at_the_first_token_that_differs():
    one, other = "the cat sat down", "the dog sat down"
    assert answers.divergence(other, spelled(other), one, spelled(one)) == (3, 4)
    assert answers.divergence(one, spelled(one), one, spelled(one)) is None


def test_an_answer_that_goes_on_longer_parts_at_its_end():
    one, other = "the cat", "the cat sat"
    assert answers.divergence(other, spelled(other), one, spelled(one)) == (7, 4)
    assert answers.divergence(one, spelled(one), other, spelled(other)) == (7, 0)


def test_pieces_that_do_not_spell_the_text_fall_back_to_characters():
    broken = [[1, "\ufffd"], [2, "\ufffd"]]
    assert answers.divergence("caé", broken, "caù", broken) == (2, 1)
    assert answers.divergence("ca", broken, "caù", [[1, "c"]]) == (2, 1)


def test_what_a_model_writes_cannot_become_markup():
    reference = answer("the <b>cat</b> sat")
    shown = answers.lane("<i>run</i>", answer("the <script>x</script> sat"), reference)
    assert "<script" not in shown
    assert "<i>" not in shown
    assert '<mark class="first"> &lt;script&gt;x&lt;/script&gt;</mark>' in shown
    assert '<span class="after"> sat</span>' in shown
    assert "parts from dense at token 2" in shown


def test_equal_answers_say_so_and_unfinished_ones_are_not_judged():
    assert "word for word the same" in answers.lane("run", answer("a b"), answer("a b"))
    writing = answers.lane("run", answer("a c", status="running"), answer("a b"))
    assert "writing" in writing
    assert "mark" not in writing
    assert "out of memory" in answers.lane(
        "run", answer("", status="failed", error="...\nout of memory"), None
    )


@pytest.fixture
def chosen(jobs, filled):
    return compare.chosen_runs(jobs.database, [filled[2], filled[7]])


def test_the_table_compares_with_dense_and_with_the_first(jobs, chosen):
    table = side_by_side.numbers(jobs.database, chosen)
    assert "+22.0 % to dense" in table
    assert "+52.2 % to dense, +24.7 % to first" in table
    assert '<span class="best">27.35</span>' in table
    assert '<span class="best">78.20 %</span>' in table, "more agreement is better"
    assert '<span class="best">103.7 MB</span>' in table


def test_only_differences_of_recipes_are_listed(chosen):
    table = side_by_side.recipe_differences(chosen)
    assert "stages 1.method" in table
    assert "calibration" not in table
    assert side_by_side.recipe_differences(chosen[:1]) == ""


def test_runs_that_do_not_belong_together_are_refused(jobs, filled):
    with pytest.raises(UserError, match="no run"):
        compare.chosen_runs(jobs.database, ["nothing"])
    with pytest.raises(UserError, match="at most 4"):
        compare.chosen_runs(jobs.database, filled[:5])


def test_the_picker_offers_finished_runs_but_not_the_dense_one(jobs, filled):
    offered = [run for _, run in compare.choices(jobs.database, [])]
    assert set(offered) == set(filled[1:])


def test_a_group_is_shown_in_its_order_until_all_are_finished(jobs, filled):
    ids = generations.create(
        jobs.database, group_id="g", model=made_up.MODEL, run_ids=[None, filled[2]], prompt="<p>", settings={}
    )
    shown, over = answers.lanes(jobs, "g")
    assert not over
    assert "No worker is alive" in shown
    assert shown.index("dense") < shown.index("gptq 3-bit g64")
    assert "&lt;p&gt;" in shown
    for generation in ids:
        generations.start(jobs.database, generation, "local")
        generations.finish(jobs.database, generation, "done", text=" a b", tokens=[[1, " a"], [2, " b"]])
    shown, over = answers.lanes(jobs, "g")
    assert over
    assert "word for word the same" in shown
    assert answers.lanes(jobs, "unknown") == ("", True)


def test_speeds_of_different_devices_are_not_set_against_each_other(jobs):
    ids = []
    for seed, (device, speed) in enumerate((("cpu", 17.0), ("cuda", 1234.0), ("cpu", 19.0))):
        stamp = made_up.STAMP | {"device": device}
        ids.append(made_up.add_run(jobs.database, made_up.RUNS[1], recipe={"seed": seed}, stamp=stamp))
        decode = made_up.number("speed.decode", speed, {"device": device})
        measurements.save_measurements(jobs.database, ids[-1], measurements=[decode])
    runs = [results.run(jobs.database, run_id) for run_id in ids]
    page = side_by_side.numbers(jobs.database, runs)
    assert "1234" not in page.replace(",", "").replace("\u202f", "")
    assert "19" in page
    assert "or device than" in page
    assert "or device than" not in side_by_side.numbers(jobs.database, [runs[0], runs[2]])


def test_simulated_and_real_speeds_are_not_set_against_each_other(jobs):
    ids = []
    for seed, (simulated, speed) in enumerate(((True, 10.0), (False, 20.0), (True, 12.0))):
        decode = (speed, {"simulated": simulated})
        run = made_up.add_run(jobs.database, made_up.RUNS[1], recipe={"seed": seed}, decode=decode)
        ids.append(run)

    def line(*chosen):
        page = side_by_side.numbers(
            jobs.database, [results.run(jobs.database, ids[number]) for number in chosen]
        )
        return page.split("Decode")[1].split("</tr>")[0]

    mixed, alike = line(0, 1), line(0, 2)
    assert mixed.count("tok/s, simulated") == 1
    assert "%" not in mixed
    assert "best" not in mixed
    assert alike.count("tok/s, simulated") == 2
    assert "+20.0 %" in alike
