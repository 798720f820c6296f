"""Tastings and votes."""

import pytest
from sqlalchemy.exc import IntegrityError

from store import results, tastings


@pytest.fixture
def tasting(database):
    tastings.create(database, "t" * 16, "Which is better?", "ann", {"runs": [None, "a"]})
    return "t" * 16


def test_a_tasting_comes_back_as_it_was_made(database, tasting):
    found = tastings.one(database, tasting)
    assert found["settings"] == {"runs": [None, "a"]}
    assert (found["title"], found["user"]) == ("Which is better?", "ann")
    assert tastings.one(database, "another") is None


def test_a_person_votes_once_on_a_pair(database, tasting):
    before = results.data_version(database)
    assert tastings.vote(database, tasting, "bob", 0, "l", "r", "left")
    assert not tastings.vote(database, tasting, "bob", 0, "l", "r", "right")
    assert tastings.vote(database, tasting, "eve", 0, "r", "l", "tie")
    assert [vote["choice"] for vote in tastings.votes(database, tasting)] == ["left", "tie"]
    assert [vote["choice"] for vote in tastings.votes(database, tasting, "bob")] == ["left"]
    assert results.data_version(database) == before + 2


def test_a_vote_needs_its_tasting(database):
    with pytest.raises(IntegrityError):
        tastings.vote(database, "nothing", "bob", 0, "l", "r", "left")


def test_the_newest_stand_first_with_their_votes(database, tasting):
    tastings.create(database, "u" * 16, "Later", "bob", {})
    for pair in range(3):
        tastings.vote(database, tasting, "eve" if pair else "bob", pair, "l", "r", "bad")
    found = tastings.newest(database)
    assert [row["title"] for row in found] == ["Later", "Which is better?"]
    assert [(row["voters"], row["votes"]) for row in found] == [(0, 0), (2, 3)]
