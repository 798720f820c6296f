"""What a story may hold, and who may change one."""

from dataclasses import replace

import pytest

from backend.errors import UserError
from backend.host import Host
from backend.jobs import Jobs
from backend.story import Story, StoryView, parse_story, view_of_address
from store import results


@pytest.mark.parametrize(
    ("address", "kind", "query"),
    [
        ("http://lab:7860/compare?runs=a,b&group=g#part", "compare", "runs=a,b&group=g"),
        ("https://host/below/a/path/layers?run=a", "layers", "run=a"),
        (" /?run=a&x=size.file ", "plot", "run=a&x=size.file"),
        ("http://lab:7860", "plot", ""),
    ],
)
def test_of_a_pasted_address_only_page_and_query_are_read(address: str, kind: str, query: str) -> None:
    assert view_of_address(address) == StoryView(kind=kind, query=query)


@pytest.mark.parametrize("address", ["", "  ", "queue?run=a", "http://[", "javascript:alert(1)"])
def test_an_address_that_is_no_view_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="paste the address of Explore, Compare or Layers"):
        view_of_address(address)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object with title and views, found list"),
        ('{"views": [{"kind": "song"}]}', "views.0.kind is .song.; allowed"),
        ('{"tilte": "x"}', "unknown field tilte"),
    ],
)
def test_a_story_that_makes_no_sense_is_refused_in_one_sentence(written: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_story(written)


def test_a_story_is_kept_rewritten_and_removed(host: Host) -> None:
    jobs = Jobs(host)
    told = Story(title="Bits", views=(StoryView(kind="text", caption="*why*"),))
    story_id = jobs.save_story(told, "ada")
    row = results.story(jobs.database, story_id) or {}
    assert (row["title"], row["user"]) == ("Bits", "ada")
    assert row["views"] == [{"kind": "text", "query": "", "caption": "*why*"}]
    jobs.save_story(told.model_copy(update={"title": " "}), "bob", story_id)
    assert [story["title"] for story in results.stories(jobs.database)] == ["Untitled"]
    jobs.remove_story(story_id, "bob")
    assert results.stories(jobs.database) == []
    with pytest.raises(UserError, match="there is no story"):
        jobs.save_story(told, "ada", story_id)
    jobs.close()


def test_with_a_log_in_only_the_author_changes_a_story(host: Host) -> None:
    jobs = Jobs(replace(host, auth=(("ada", "secret"), ("bob", "secret"))))
    story_id = jobs.save_story(Story(title="Bits"), "ada")
    with pytest.raises(UserError, match="'Bits' belongs to ada"):
        jobs.save_story(Story(title="Mine"), "bob", story_id)
    with pytest.raises(UserError, match="'Bits' belongs to ada"):
        jobs.remove_story(story_id, "bob")
    jobs.remove_story(story_id, "ada")
    jobs.close()
