"""The tasting's page: what a voter may see, who counts as whom, and the answer to the question."""

from dataclasses import replace

import pytest

from backend.preferences import Standing
from backend.tastings import Asked, Sitting, Tasting
from ui import taste
from ui.pages import tasting as page


def answer(text, position=0, status="done"):
    return {
        "id": f"s.0-{position}", "position": position, "run_id": "abc" if position else None, "text": text,
        "status": status, "error": None,
    }  # fmt: skip


def made(*answers):
    return Tasting("t", "<b>Cheese</b>", "ann", "tiny", (None, "abc"), ("prompt",), {
        (0, number): found for number, found in enumerate(answers)
    })  # fmt: skip


def standing(low, high):
    return Standing((low + high) / 2, low, high, 1, 2, 3, 4)


def verdict(kl, low, high, name="gptq"):
    return taste.Verdict(1, "abc", name, kl, 0.01, standing(low, high))


def test_a_ballot_tells_nothing_of_whose_the_answers_are():
    left, right = answer("<script>x</script>", 1), answer("two", 0)
    asked = Asked(7, "ticket", "<i>why</i>", left, right)
    shown = taste.ballot(made(answer("two"), answer("<script>x</script>", 1)), Sitting(asked, 2, 9))
    assert "Pair 3 of 9" in shown
    assert "<script" not in shown
    assert "&lt;i&gt;why" in shown
    for secret in ("abc", "s.0-", "dense", "position", ">7<"):
        assert secret not in shown
    assert shown.count("data-ticket") == 4


def test_unwritten_and_equal_and_lost_answers_are_told_apart():
    told = taste.ballot(made(answer("", status="running"), answer("a", 1)), Sitting(None, 0, 0))
    assert "1 of 2" in told
    assert "word for word the same" in taste.ballot(made(answer("a"), answer("a", 1)), Sitting(None, 0, 0))
    assert "removed" in taste.ballot(made(), Sitting(None, 0, 0))
    broken = {**answer("", status="failed"), "error": "chat: <none>"}
    assert "chat: &lt;none&gt;" in taste.ballot(made(broken, answer("a", 1)), Sitting(None, 0, 0))


def test_people_notice_at_the_lowest_divergence_that_stands_below_dense():
    rows = [verdict(0.1, -1, 0.2), verdict(0.4, -2, -0.5, "rtn"), verdict(0.2, -1, 0.1)]
    rows.sort(key=lambda row: row.kl)
    told = taste.answer_to_the_question(rows, 30)
    assert told.startswith(
        "People start to notice at a KL of 0.400 (rtn), while 0.200 still passes: 30 votes"
    )
    assert taste.answer_to_the_question(rows[:2], 1).startswith("Not yet: 1 vote,")
    assert "was not measured" in taste.answer_to_the_question([verdict(None, -2, -1)], 5)


def test_the_link_is_the_address_that_the_browser_knows():
    assert page.join_url("https://lab.example/scope/tasting?runs=a", "t1") == (
        "https://lab.example/scope/tasting?id=t1"
    )
    assert page.join_url("javascript:alert(1)", "t1") == ""
    assert page.join_url("http://[bad", "t1") == ""
    assert "<svg" in taste.invitation("https://lab.example/tasting?id=t1")


def test_a_removed_run_leaves_the_table(jobs, filled):
    tasting = replace(made(answer("a"), answer("b", 1)), runs=(None, filled[2], "gone"))
    rows = taste.verdicts(jobs.database, tasting, [standing(0, 0), standing(-1, 1), standing(-1, 1)])
    assert [row.run_id for row in rows] == [filled[2]]
    assert rows[0].kl == pytest.approx(0.193)
    told = taste.outcome(
        tasting, rows, [{"voter": "ann", "choice": "bad"}, {"voter": "ann", "choice": "same"}]
    )
    assert "1 of the runs that were tasted is removed" in told
    assert "1 person, 1 votes; in 1 of them" in told
    assert "&lt;b&gt;Cheese" in told
    assert taste.figure(rows) is not None


def test_the_nearest_to_dense_stands_first_and_is_drawn_with_both_errors(jobs, filled):
    tasting = replace(made(), runs=(None, filled[8], filled[1]))
    rows = taste.verdicts(jobs.database, tasting, [standing(0, 0), standing(-3, -1), standing(-1, 1)])
    assert [row.number for row in rows] == [2, 1]
    drawn = taste.figure(rows)
    assert '"x":[0.071],"y":[0.0]' in drawn
    assert '"arrayminus":[1.0]' in drawn
    assert "at a KL of 1.14 (gptq 2-bit g64), while 0.0710 still passes" in taste.outcome(tasting, rows, [])


def test_without_measured_divergences_there_is_no_plot(jobs, filled):
    assert taste.figure([verdict(None, -1, 1)]) is None
