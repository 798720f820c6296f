"""What open pages fetch: made once for all, new when the store is, for nobody who may not see it."""

import gzip
import json
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from backend.jobs import Jobs
from store import generations, results, runs
from tests.ui import made_up
from tests.ui.test_app import free_port
from ui import app, live
from ui.pages import explore
from ui.run_card import card
from ui.view import View, scopes, visible


@pytest.fixture
def rendered():
    return []


@pytest.fixture
def feed(jobs, rendered):
    def told(jobs, query):
        rendered.append(query)
        return f"<b>{len(rendered)}</b>"

    return live.Feed(jobs, {"one": told})


def grown(jobs, before):
    now = results.versions(jobs.database)
    return {name for name in now if now[name] != before[name]}


def test_a_panel_is_made_once_until_the_store_changes(feed, rendered, jobs):
    first = feed.answer("one", {})
    for _ in range(20):
        assert feed.answer("one", {}).body == first.body
    assert len(rendered) == 1
    made_up.add_run(jobs.database, made_up.RUNS[0])
    assert sent(feed.answer("one", {}))["value"] == "<b>2</b>"


def test_a_panel_of_results_is_not_made_again_for_progress(jobs, rendered):
    def told(jobs, query):
        rendered.append(query)
        return f"<b>{len(rendered)}</b>"

    feed = live.Feed(jobs, {"one": told}, minds={"one": "results"})
    run = made_up.add_run(jobs.database, made_up.RUNS[0], status="queued")
    ticket = results.run(jobs.database, run)["ticket"]
    runs.start_run(jobs.database, run, ticket, "local")
    first = feed.answer("one", {})
    runs.report_progress(jobs.database, run, ticket, "local", fraction=0.5)
    assert results.versions(jobs.database)["all"] > sent(first)["versions"]["all"]
    assert sent(feed.answer("one", {}))["value"] == sent(first)["value"] == "<b>1</b>"
    made_up.add_run(jobs.database, made_up.RUNS[1])
    assert sent(feed.answer("one", {}))["value"] == "<b>2</b>"


def test_a_reader_who_has_the_answer_is_sent_nothing(feed, jobs):
    first = feed.answer("one", {})
    again = feed.answer("one", {}, first.headers["ETag"])
    assert (again.status_code, again.body) == (304, b"")
    made_up.add_run(jobs.database, made_up.RUNS[0])
    assert feed.answer("one", {}, first.headers["ETag"]).status_code == 200


def test_an_old_answer_is_made_again_though_nothing_was_written(feed, rendered, monkeypatch):
    feed.answer("one", {})
    passed = time.monotonic() + 11
    monkeypatch.setattr(live.time, "monotonic", lambda: passed)
    feed.answer("one", {})
    assert len(rendered) == 2


def test_addresses_have_answers_of_their_own_and_few_are_kept(feed, rendered):
    for number in range(200):
        feed.answer("one", {"run": f"{number}"})
    assert [query["run"] for query in rendered] == [f"{number}" for number in range(200)]
    assert len(feed._kept) == 64
    assert feed.answer("nonesuch", {}).status_code == 404


def test_each_version_grows_with_what_it_is_about(jobs):
    before = results.versions(jobs.database)
    run = made_up.add_run(jobs.database, made_up.RUNS[0], status="queued")
    assert grown(jobs, before) == {"all", "results"}
    ticket = results.run(jobs.database, run)["ticket"]
    assert runs.start_run(jobs.database, run, ticket, "local")
    before = results.versions(jobs.database)
    runs.report_progress(jobs.database, run, ticket, "local", fraction=0.5)
    assert grown(jobs, before) == {"all"}
    before = results.versions(jobs.database)
    generations.create(
        jobs.database, group_id="group", model=made_up.MODEL, run_ids=[None], prompt="why", settings={}
    )
    assert grown(jobs, before) == {"all", "questions"}


def test_the_served_panels_are_for_those_who_may_see_the_pages(host):
    locked = Jobs(replace(host, auth=(("ada", "secret"),)))
    demo = app.build(locked)
    address = app.launch(demo, locked, server_name="127.0.0.1", server_port=free_port())
    for path in ("live", *(f"live/{panel}" for panel in app.PANELS)):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}{path}", timeout=20)
    demo.close()
    locked.close()


def sent(answer):
    return json.loads(answer.body)


def test_a_long_answer_is_packed_once_for_those_who_can_read_it(jobs, filled):
    feed = live.Feed(jobs, app.PANELS)
    plain = feed.answer("listing", {})
    packed = feed.answer("listing", {}, packs=True)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 3


def test_what_a_run_is_called_cannot_become_markup(jobs):
    run = made_up.add_run(jobs.database, made_up.RUNS[0], status="running", user="<img src=x>")
    feed = live.Feed(jobs, app.PANELS)
    for panel in app.PANELS:
        assert "<img" not in sent(feed.answer(panel, {"run": run, "find": "<img>"}))["value"]


def test_plot_table_and_card_of_an_address_are_what_the_page_itself_shows(jobs, filled):
    feed = live.Feed(jobs, app.PANELS, explore.choices)
    query = {"run": filled[2], "find": "bits<=3"}
    picture, listing, details = (sent(feed.answer(name, query)) for name in ("picture", "listing", "details"))
    points = results.points(jobs.database)
    view = View.of_query({**query, "scope": scopes(points)[0]})
    assert picture["value"] == explore.drawing(jobs.database, visible(points, view), view)
    assert filled[2] in listing["value"]
    assert filled[4] not in listing["value"]
    assert details["value"] == card(jobs, filled[2], points)


def test_what_can_be_chosen_has_a_version_that_a_new_run_of_the_same_kind_leaves_alone(jobs, filled):
    feed = live.Feed(jobs, app.PANELS, explore.choices)
    before = sent(feed.answer("activity", {}))["versions"]
    made_up.add_run(jobs.database, made_up.RUNS[2], recipe={"seed": 5})
    same = sent(feed.answer("activity", {}))["versions"]
    assert same["results"] > before["results"]
    assert same["choices"] == before["choices"]
    other = {**made_up.STAMP, "window": 2}
    made_up.add_run(jobs.database, made_up.RUNS[2], recipe={"seed": 6}, stamp=other)
    assert sent(feed.answer("activity", {}))["versions"]["choices"] != before["choices"]


def test_what_was_looked_at_just_now_is_answered_without_the_store(feed, jobs, monkeypatch):
    assert feed.ready("one", {}) is None
    first = feed.answer("one", {})
    monkeypatch.setattr(results, "versions", lambda database: pytest.fail("read the store"))
    assert feed.ready("one", {}).body == first.body
    assert feed.ready("one", {}, first.headers["ETag"]).status_code == 304
    assert feed.ready("one", {"run": "other"}) is None
    later = time.monotonic() + 1.1
    monkeypatch.setattr(live.time, "monotonic", lambda: later)
    assert feed.ready("one", {}) is None
