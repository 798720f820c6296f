"""Sets of prompts: the table, its address, and what a cell says."""

import pytest

from backend.errors import UserError
from backend.jobs import group_ids
from store import generations
from tests.ui import made_up
from ui import answers
from ui.matrix import SETS, lines_of, matrix, text_of
from ui.pages import compare, prompt_set


def row(text, tokens, run_id=None, status="done", group="s.0"):
    return {
        "group_id": group, "run_id": run_id, "prompt": "<p>", "text": text, "status": status,
        "tokens": [[token, "x"] for token in tokens],
    }  # fmt: skip


def test_prompts_stand_one_a_line():
    assert lines_of(" one \n\n two\none\na\\nb") == ["one", "two", "a\nb"]
    for prompts in SETS.values():
        assert lines_of(text_of(prompts)) == [prompt.strip(" ") for prompt in prompts]


def test_a_cell_says_whether_and_where_it_leaves_dense():
    group = [row("<b>", [1, 2]), row("x", [1, 2], "a"), row("y" * 200, [1, 3], "b")]
    shown = matrix([group], {"a": "<i>rtn</i>"})
    assert "same as dense" in shown
    assert "from token 2" in shown
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "y" * 90 + "…" in shown
    assert "<i>" not in shown
    assert "1 of the 2 of compressed models" in shown


def test_unfinished_cells_are_not_judged():
    shown = matrix([[row("", [], status="running"), row("a", [1], "a", "failed")]], {"a": "rtn"})
    assert "writing" in shown
    assert "failed" in shown
    assert "1 of 2 answers." in shown
    assert "dense's" not in shown
    assert matrix([], {}) == ""


def test_a_set_is_shown_by_its_address_until_its_runs_are_removed(jobs, filled):
    for group in group_ids("abc123", 2):
        generations.create(
            jobs.database, group_id=group, model=made_up.MODEL, run_ids=[None, filled[2]], prompt="one",
            settings={},
        )  # fmt: skip
    shown, over = prompt_set.shown(jobs, "abc123.2")
    assert not over
    assert shown.count('class="cell"') == 4
    assert "gptq 3-bit g64" in shown
    for unknown in ("", "abc123", "abc123.0", "abc123.9999", "zzz.3", "'; drop.2", "abc123.²"):
        assert prompt_set.shown(jobs, unknown)[0] == ""


def test_what_is_asked_is_the_dense_model_first(jobs, filled):
    asked = compare.asked_of(
        jobs.database, [filled[2], filled[2], filled[7]], True, 0.5, 1, 24.0, None, False
    )
    assert asked == (
        made_up.MODEL,
        [None, filled[2], filled[7]],
        {"temperature": 0.5, "top_p": 1, "max_tokens": 24, "seed": 0, "chat": False},
    )
    with pytest.raises(UserError, match="at least one run"):
        compare.asked_of(jobs.database, None, True, 0, 1, 24, 0, False)


def test_words_put_in_and_left_out_are_marked():
    shown = answers.word_differences("the <big> cat sat", "the cat sat down")
    assert shown == "the<ins> &lt;big&gt;</ins> cat sat<del> down</del>"
    assert answers.word_differences("same words\n", "same words\n") == "same words\n"
    assert answers.word_differences("", "gone") == "<del>gone</del>"


def test_a_lane_marks_words_when_asked():
    one = {"text": "a b", "tokens": [[1, "a"], [2, " b"]], "status": "done", "error": None}
    other = {"text": "a c", "tokens": [[1, "a"], [3, " c"]], "status": "done", "error": None}
    shown = answers.lane("run", other, one, words=True)
    assert "<ins> c</ins>" in shown
    assert "<mark" not in shown
    assert "parts from dense at token 2" in shown
