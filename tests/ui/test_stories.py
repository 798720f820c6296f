"""Stories: what a view freezes, what a file on its own holds, and what the page does."""

import json
import re
from types import SimpleNamespace

import pytest

import app
from backend.errors import UserError
from backend.host import Host
from backend.story import Story, StoryView
from store import generations, results, runs
from tests.ui import made_up
from ui import story as stories
from ui.pages import stories as page
from ui.story_sheet import markdown, slides
from ui.story_sheet import page as sheet

SECRETS = ("eve-the-user", "secret-folder", "the-worker", "the-host")


def view(kind, query="", caption=""):
    return StoryView(kind=kind, query=query, caption=caption)


def frozen(jobs, kind, query=""):
    return stories.frozen_view(jobs.database, view(kind, query, "why"))


@pytest.fixture
def answered(jobs, filled):
    """A group of answers, the dense one and one of gptq with a dangerous text."""
    made = generations.create(
        jobs.database, group_id="group", model=made_up.MODEL, run_ids=[None, filled[2]], prompt="<i>why</i>",
        settings={},
    )  # fmt: skip
    for number, text in zip(made, ("because", "be<script>"), strict=True):
        generations.start(jobs.database, number, "local")
        generations.finish(jobs.database, number, "done", text=text, tokens=[[len(text), text]])
    return "group"


def test_a_plot_is_frozen_with_its_points_and_its_ring(jobs, filled):
    told = frozen(jobs, "plot", f"run={filled[2]}&x=size.file&find=gptq")
    assert told["heading"] == "Perplexity by file size (MB)"
    assert told["note"] == "smollm2-135m-instruct, wikipedia-en, 4 runs; ringed: gptq 3-bit g64"
    assert told["selected"] == filled[2]
    shown = {fact[0] for trace in told["figure"]["data"] for fact in trace.get("customdata", [])}
    assert shown == {filled[0], filled[2], filled[7], filled[8]}
    assert json.loads(json.dumps(told)) == told


def test_a_comparison_is_frozen_with_answers_and_numbers_escaped(jobs, filled, answered):
    told = frozen(jobs, "compare", f"runs={filled[2]},{filled[4]}&group={answered}")
    assert told["heading"] == "gptq 3-bit g64, wanda 2:4"
    assert "&lt;i&gt;why&lt;/i&gt;" in told["body"]
    assert "be&lt;script&gt;" in told["body"]
    assert "Perplexity" in told["body"]
    assert "<script" not in told["body"]
    assert frozen(jobs, "compare", f"group={answered}")["heading"] == "dense, gptq 3-bit g64"


def test_a_map_of_layers_is_frozen_with_the_chosen_linear(jobs, filled):
    name = "model.layers.1.self_attn.q_proj"
    told = frozen(jobs, "layers", f"run={filled[2]}&layer={name}")
    assert (told["heading"], told["note"]) == ("Relative error: gptq 3-bit g64", name)
    assert told["figure"]["data"][0]["type"] == "heatmap"
    assert "Bits per weight" in told["body"]
    both = frozen(jobs, "layers", f"runs={filled[2]},{filled[3]}&quantity=bits")
    assert both["heading"] == "Bits per weight: rtn 3-bit g64 minus gptq 3-bit g64"


@pytest.mark.parametrize(
    ("kind", "query", "says"),
    [
        ("plot", "scope=gone|0123", "The runs of this view were removed."),
        ("compare", "runs={run}", "Run {run} was removed, and this view with it."),
        ("compare", "group=gone", "The answers of this view were removed."),
        ("compare", "", "This view names no run."),
        ("layers", "run={run}", "Run {run} was removed, and this view with it."),
        ("layers", "", "This view names no run."),
        ("layers", "run={dense}", "The map of this view cannot be drawn any more."),
    ],
)
def test_a_view_whose_runs_were_removed_says_so_and_the_others_still_show(jobs, filled, kind, query, says):
    runs.remove_run(jobs.database, filled[2])
    query, says = (text.format(run=filled[2], dense=filled[0]) for text in (query, says))
    told = stories.freeze(jobs.database, Story(views=(view(kind, query), view("layers", f"run={filled[3]}"))))
    assert told["views"][0]["problem"] == says
    assert told["views"][1]["figure"]
    assert says in slides(told)["slides"][1]["markup"]


def test_a_plot_keeps_its_scope_when_another_has_more_runs_later(jobs, filled):
    pinned = stories.pinned(jobs.database, view("plot", "x=size.file"))
    scope = results.points(jobs.database)["protocol"].iloc[0]
    assert scope in pinned.query
    stamp = made_up.STAMP | {"window": 512}
    for seed in range(12):
        made_up.add_run(jobs.database, made_up.RUNS[1], recipe={"seed": seed}, stamp=stamp)
    assert "10 runs" in stories.frozen_view(jobs.database, pinned)["note"]
    assert "12 runs" in frozen(jobs, "plot", "x=size.file")["note"]


def test_nothing_of_the_machine_or_its_people_is_in_what_is_passed_on(jobs, monkeypatch):
    monkeypatch.setattr(made_up, "MODEL", "/home/secret-folder/tiny")
    stamp = made_up.STAMP | {"text": "file:/home/secret-folder/text.txt"}
    ids = [made_up.add_run(jobs.database, row, user="eve-the-user", stamp=stamp) for row in made_up.RUNS[:4]]
    made_up.add_run(
        jobs.database, made_up.RUNS[4], status="failed", user="eve-the-user", error="the-host: no space",
        error_kind="user",
    )  # fmt: skip
    (answer,) = generations.create(
        jobs.database, group_id="g", model=made_up.MODEL, run_ids=[ids[2]], prompt="why", settings={},
        user="eve-the-user",
    )  # fmt: skip
    generations.start(jobs.database, answer, "the-worker")
    generations.finish(jobs.database, answer, "failed", error="/home/secret-folder/tiny: the-host is full")
    told = stories.freeze(
        jobs.database,
        Story(
            views=(
                view("plot", "find=eve-the-user"), view("compare", f"runs={ids[1]},{ids[2]}&group=g"),
                view("layers", f"run={ids[2]}"), view("plot", "scope=/home/secret-folder/tiny|0"),
                view("compare", "runs=000000000000"),
            )
        ),
    )  # fmt: skip
    for passed_on in (json.dumps(told), sheet(told)):
        assert [secret for secret in SECRETS if secret in passed_on] == []
    assert "file:text.txt" in json.dumps(told)
    assert ids[3] not in json.dumps(told["views"][1])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file:/home/eve/text.txt", "file:text.txt"), ("/home/eve/tiny/", "tiny"), ("C:\\eve\\tiny", "tiny"),
        ("~/tiny", "tiny"), ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("wikitext2", "wikitext2"),
    ],
)  # fmt: skip
def test_of_a_path_strangers_read_the_last_part(name, told):
    assert stories.public(name) == told


def test_captions_are_markdown_without_markup_pictures_or_odd_links():
    told = markdown(
        "**a** <img src=x onerror=y> ![p](http://e/p.png) [j](javascript:x) [h](https://e.org?a&b)"
    )
    assert "<strong>a</strong>" in told
    assert "<img" not in told
    assert 'href="javascript' not in told
    assert '<a href="https://e.org?a&amp;b" target="_blank" rel="noopener noreferrer">h</a>' in told


def test_a_file_on_its_own_loads_nothing_and_carries_the_plot_library_once(jobs, filled):
    several = (view("plot"), view("layers", f"run={filled[2]}"), view("text", caption="</script><b>"))
    told = sheet(stories.freeze(jobs.database, Story(title="A <b>", views=several)))
    assert "default-src 'none'" in told
    assert "<title>A &lt;b&gt;</title>" in told
    assert told.count("plotly.js v") == 1
    assert told.lower().count("</script>") == 3
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="(?!data:)', told)
    plain = sheet(stories.freeze(jobs.database, Story(views=(view("text"),))))
    assert "plotly.js v" not in plain
    assert len(plain) < 100_000


def test_stories_that_come_with_the_app_are_listed_first_and_only_lend_their_words(
    jobs, filled, tmp_path, monkeypatch
):
    told = stories.freeze(jobs.database, Story(title="Shipped", views=(view("plot", caption="*why*"),)))
    (tmp_path / "one.json").write_text(json.dumps(told))
    monkeypatch.setattr(stories, "SHIPPED", tmp_path)
    own = jobs.save_story(Story(title="Own"), "ada")
    listed = page.listing(jobs, own)
    assert listed.index("Shipped") < listed.index("Own")
    shown = page.views_table(jobs, "shipped-one", -1, False)
    assert "Use as a start" in shown
    assert "Remove" not in shown
    assert stories.captions(told).views == (view("text", caption="*why*"),)
    (tmp_path / "two.json").write_text("{}")
    with pytest.raises(UserError, match=r"two\.json: no frozen story"):
        stories.shipped()


def test_every_story_that_comes_with_the_app_can_be_shown():
    for name, told in stories.shipped().items():
        assert len(slides(told)["slides"]) == len(told["views"]) + 1, name
        assert not any("problem" in each for each in told["views"]), name


def test_views_are_moved_captioned_and_removed(jobs):
    story_id = jobs.save_story(Story(views=(view("plot"), view("text"), view("layers"))), "ada")

    def kinds():
        return [each["kind"] for each in results.story(jobs.database, story_id)["views"]]

    page.edited(jobs, story_id, "ada", lambda story: page.moved(story, 2, -1))
    assert kinds() == ["plot", "layers", "text"]
    page.edited(jobs, story_id, "ada", lambda story: page.moved(story, 0, -1))
    page.edited(jobs, story_id, "ada", lambda story: page.moved(story, 9, 1))
    assert kinds() == ["plot", "layers", "text"]
    page.edited(jobs, story_id, "ada", lambda story: page.captioned(story, 1, "*so*"))
    assert results.story(jobs.database, story_id)["views"][1]["caption"] == "*so*"
    page.edited(jobs, story_id, "ada", lambda story: page.without(story, 0))
    assert kinds() == ["layers", "text"]
    with pytest.raises(UserError, match="views"):
        page.edited(jobs, story_id, "ada", lambda story: story.model_copy(update={"views": story.views * 40}))
    with pytest.raises(UserError, match="no such story"):
        page.edited(jobs, "gone", "ada", lambda story: story)


def test_where_a_log_in_is_required_only_the_author_is_offered_to_edit(jobs, filled):
    story_id = jobs.save_story(Story(title="Ada's", views=(view("plot"),)), "ada")
    locked = SimpleNamespace(database=jobs.database, host=SimpleNamespace(auth=(("ada", "x"),)))
    assert page.may_edit(jobs, story_id, "anonymous")
    assert page.may_edit(locked, story_id, "ada")
    assert not page.may_edit(locked, story_id, "bob")
    assert "Ada&#x27;s" in page.adding(locked, "/?x=size.file", "ada")
    assert "Ada&#x27;s" not in page.adding(locked, "/?x=size.file", "bob")
    assert "is no view" in page.adding(jobs, "queue", "ada")
    assert "Remove the story" not in page.views_table(locked, story_id, -1, False)


def test_the_command_freezes_a_story_to_json_and_html(jobs, filled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Host, "from_environment", classmethod(lambda cls: jobs.host))
    given, kept, out = (tmp_path / name for name in ("story.json", "frozen.json", "story.html"))
    views = [{"kind": "plot", "query": "x=size.file"}, {"kind": "compare", "query": "runs=000000000000"}]
    given.write_text(json.dumps({"title": "Bits", "views": views}))
    assert app.main(["story", str(given), "--to", str(kept)]) == 0
    assert "view 2: Run 000000000000 was removed" in capsys.readouterr().err
    assert json.loads(kept.read_text())["views"][0]["figure"]["data"]
    assert app.main(["story", str(kept), "--to", str(out)]) == 0
    assert "<title>Bits</title>" in out.read_text()
    assert app.main(["story", str(given), "--to", str(tmp_path / "story.pdf")]) == 1
    assert "ends in .json or .html" in capsys.readouterr().err
