"""Blind tastings: who is asked what, and what counts."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from backend.errors import UserError
from backend.host import Host
from backend.jobs import Jobs
from backend.tastings import MOST_ASKED, Tastings
from store import generations, runs, tastings
from tests.tiny import make_model


@pytest.fixture
def jobs(tmp_path) -> Iterator[Jobs]:
    opened = Jobs(replace(Host.at(tmp_path / "home"), roots=(tmp_path,), device="cpu"))
    yield opened
    opened.close()


@pytest.fixture
def models(jobs, tmp_path) -> list[str]:
    """Two finished runs of one tiny model."""
    name, found = str(make_model(tmp_path / "model")), []
    for number in range(2):
        run_id, ticket, _ = runs.create_run(
            jobs.database, digest=str(number) * 64, name="rtn", recipe="{}", model=name, chain="rtn"
        )
        runs.start_run(jobs.database, run_id, ticket, "local")
        with jobs.database.write() as connection:
            connection.exec_driver_sql(f"UPDATE runs SET artifact = 'a' WHERE id = '{run_id}'")
        runs.finish_run(jobs.database, run_id, ticket, "local", "done")
        found.append(run_id)
    return found


def answered(jobs, tasting, text=lambda prompt, model: f"answer {prompt} {model}"):
    """Finish all answers as a worker would."""
    for (prompt, model), answer in tasting.answers.items():
        generations.start(jobs.database, answer["id"], "local")
        generations.finish(jobs.database, answer["id"], "done", text=text(prompt, model), tokens=[[1, "x"]])
    return Tastings(jobs).get(tasting.id)


@pytest.fixture
def table(jobs):
    return Tastings(jobs)


@pytest.fixture
def tasting(jobs, table, models):
    return answered(jobs, table.get(table.make(models, ["one", "two", "three"], {}, "Cheese")))


def vote_all(table, tasting, voter, choose):
    seen = []
    while (asked := table.sitting(tasting, voter).asked) is not None:
        assert table.vote(tasting, voter, asked.ticket, choose(asked))
        seen.append(asked)
    return seen


def test_answers_are_asked_of_dense_and_all_runs_for_every_prompt(table, models, jobs):
    tasting = table.get(table.make([*models, models[0]], ["one", "two"], {"max_tokens": 8}))
    assert tasting.runs == (None, *models)
    assert len(tasting.answers) == 6
    assert not tasting.is_written
    assert table.sitting(tasting, "ann").total == 0, "nothing is asked before there are answers"
    assert answered(jobs, tasting).is_written


def test_a_voter_sees_every_pair_once_in_an_order_of_their_own(table, tasting):
    first = vote_all(table, tasting, "ann", lambda asked: "tie")
    assert sorted(asked.number for asked in first) == list(range(9))
    assert table.sitting(tasting, "ann").done == table.sitting(tasting, "ann").total == 9
    other = vote_all(table, tasting, "bob", lambda asked: "tie")
    assert [asked.number for asked in first] != [asked.number for asked in other]
    sides = [asked.left["position"] < asked.right["position"] for asked in [*first, *other]]
    assert {True, False} == set(sides)


def test_a_voter_comes_back_to_the_same_question(table, tasting):
    asked = table.sitting(tasting, "ann").asked
    assert table.sitting(tasting, "ann").asked == asked
    assert table.vote(tasting, "ann", asked.ticket, "left")
    assert table.sitting(tasting, "ann").done == 1


def test_a_second_vote_and_a_foreign_ticket_do_not_count(table, tasting, jobs):
    asked = table.sitting(tasting, "ann").asked
    assert not table.vote(tasting, "ann", "nothing", "left")
    assert not table.vote(tasting, "bob", asked.ticket, "left"), "a ticket is one person's"
    assert table.vote(tasting, "ann", asked.ticket, "left")
    assert not table.vote(tasting, "ann", asked.ticket, "right")
    with pytest.raises(UserError, match="no vote"):
        table.vote(tasting, "ann", asked.ticket, "same")
    assert [vote["choice"] for vote in tastings.votes(jobs.database, tasting.id)] == ["left"]


def test_the_one_that_is_preferred_stands_above(table, tasting):
    def dense_first(asked):
        best = min(asked.left["position"], asked.right["position"])
        return "left" if asked.left["position"] == best else "right"

    for voter in ("ann", "bob", "eve"):
        vote_all(table, tasting, voter, dense_first)
    found, votes = table.standings(tasting)
    assert len(votes) == 27
    assert found[0].strength == 0
    assert found[1].strength > found[2].strength
    assert found[2].high < 0
    assert (found[0].won, found[0].lost) == (18, 0)


def test_equal_answers_are_not_shown_and_count_as_a_tie(table, models, jobs):
    tasting = table.get(table.make(models, ["one", "two"], {}))
    tasting = answered(jobs, tasting, lambda prompt, model: "same" if prompt else f"{model}")
    shown = vote_all(table, tasting, "ann", lambda asked: "left")
    assert len(shown) == 3
    assert all(asked.prompt == "one" for asked in shown)
    choices = [vote["choice"] for vote in tastings.votes(jobs.database, tasting.id)]
    assert sorted(choices) == ["left"] * 3 + ["same"] * 3


def test_a_removed_run_takes_its_pairs_along(table, tasting, models, jobs):
    vote_all(table, tasting, "ann", lambda asked: "left")
    assert runs.remove_run(jobs.database, models[1])
    left = table.get(tasting.id)
    assert table.sitting(left, "bob").total == 3
    found, votes = table.standings(left)
    assert len(votes) == 3
    assert found[2].won == found[2].lost == 0


def test_nobody_is_asked_without_end(table, models, jobs):
    prompts = [f"prompt {number}" for number in range(20)]
    tasting = answered(jobs, table.get(table.make(models, prompts, {})))
    assert table.sitting(tasting, "ann").total == MOST_ASKED


def test_bad_tastings_are_refused(table, models):
    with pytest.raises(UserError, match="0 runs"):
        table.make([], ["one"], {})
    with pytest.raises(UserError, match="no run 'nothing'"):
        table.make(["nothing"], ["one"], {})
    with pytest.raises(UserError, match="0 prompts"):
        table.make(models, [], {})
    with pytest.raises(UserError, match="41 prompts"):
        table.make(models, ["one"] * 41, {})
    assert table.get("nothing") is None
