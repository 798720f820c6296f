"""A text token by token: what the page shows of a reading, and what it asks the worker."""

import json
import re
from itertools import product

import pytest

from backend.errors import UserError
from store import generations
from tests.ui import made_up
from ui import reader
from ui.pages import reading
from ui.theme import CSS

RESULT = {
    "ids": [1, 2, 3],
    "pieces": {"1": "The", "2": " <b>", "3": "\n", "4": " cat"},
    "dense": {"loss": [0.5, 2.0], "top": [[[2, 0.6], [4, 0.2]], [[4, 0.9]]]},
    "runs": {"abc": {"loss": [0.7, None], "kl": [0.1, 0.4], "rank": [1, 3], "top": [[[4, 0.5]], [[3, 0.4]]]}},
    "answer": 0,
    "cut": False,
}  # fmt: skip


def task(status, **more):
    return {"status": status, "result": {}, "error": None, "done": None, "total": None, **more}


def test_a_token_shows_both_models_guesses_and_escapes_them():
    shown = reader.token_card(RESULT, "abc", "<i>rtn</i>", 0)
    assert "Token 2" in shown
    assert "·&lt;b&gt;</span> 60.0 %" in shown
    assert "·cat</span> 50.0 %" in shown
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert 'data-action="force" data-run="abc"' in shown


def test_the_dense_models_own_tokens_are_not_forced_upon_it():
    shown = reader.token_card(RESULT, "", "", 1)
    assert "↵" in shown
    assert "force" not in shown


def test_forcing_begins_with_the_exact_tokens_before():
    assert reader.begin_of(RESULT, 1) == ([1, 2], 4)
    assert reader.begin_of(RESULT, 0) == ([1], 2)


@pytest.mark.parametrize(
    ("run", "at", "place"),
    [("abc", "1", 1), ("", "0", 0), ("abc", "2", None), ("nobody", "0", None), ("abc", "-1", None),
     ("abc", "9" * 30, None), ("abc", "x", None)],
)  # fmt: skip
def test_only_tokens_that_are_there_can_be_chosen(run, at, place):
    assert reader.at_of(RESULT, run, at) == place


def test_every_state_of_a_reading_is_told():
    assert "waits" in reader.state_of(task("queued"))
    assert "model 2 of 3" in reader.state_of(task("running", done=1, total=3))
    assert "&lt;oops&gt;" in reader.state_of(task("failed", error="Traceback\n<oops>"))
    assert "stopped" in reader.state_of(task("cancelled"))
    assert reader.state_of(task("done", result=RESULT)) == ""
    assert "Cut after 3" in reader.state_of(task("done", result=RESULT | {"cut": True}))


def test_what_goes_to_the_browser_is_plain_json():
    value = json.loads(reader.payload(RESULT, {"abc": "rtn"}, ["abc"]))
    assert value["order"] == ["abc"]
    assert value["text"] == RESULT


def test_what_was_forced_stands_beside_what_was_not():
    def answer(text, begin, tokens):
        return {
            "text": text, "settings": {"begin": begin}, "tokens": [[token, "x"] for token in tokens],
            "status": "done", "error": None,
        }  # fmt: skip

    shown = reader.forced(
        [answer("ab", [1, 2], [1, 2, 3]), answer("ac", [1, 2, 4], [1, 2, 4])], RESULT, "rtn"
    )
    assert "parts from the other at token 3" in shown
    assert "·cat" in shown
    assert reader.forced([], RESULT, "rtn") == ""


def test_texts_of_no_and_of_too_many_characters_are_refused():
    for text in ("", "  \n", "\x00\x01", "a" * 100_000):
        with pytest.raises(UserError, match="the text has"):
            reading.question(text, [])
    assert reading.question("a\x00b", [{"id": "r", "artifact": "f"}]) == {
        "text": "ab",
        "artifacts": [["r", "f"]],
    }


def test_the_dense_answer_is_taken_with_its_exact_tokens(jobs, filled):
    with pytest.raises(UserError, match="no answer of the dense model"):
        reading.dense_answer(jobs, "g")
    ids = generations.create(
        jobs.database, group_id="g", model=made_up.MODEL, run_ids=[None, filled[2]], prompt="why",
        settings={"chat": True},
    )  # fmt: skip
    generations.start(jobs.database, ids[0], "local")
    generations.finish(jobs.database, ids[0], "done", text="a b", tokens=[[7, "a"], [9, " b"]])
    assert reading.dense_answer(jobs, "g") == ("why", [7, 9], True)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def colours(theme):
    block = CSS[CSS.index(":root {") : CSS.index("html {")]
    light, dark = block.split(".dark {")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if theme == "light" else dark))


@pytest.mark.parametrize(
    ("theme", "scale", "step"), list(product(("light", "dark"), ("heat", "apart"), range(5)))
)
def test_tokens_can_be_read_on_every_tint(theme, scale, step):
    known = colours(theme)
    one, other = luminance(known[f"{scale}-{step}"]), luminance(known[f"on-{scale}-{step}"])
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_tints_are_ordered_by_lightness(theme):
    known = colours(theme)
    found = [luminance(known[f"heat-{step}"]) for step in range(5)]
    assert found == sorted(found, reverse=theme == "light")
