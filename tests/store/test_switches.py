"""States that all processes share."""

from store import results, switches
from store.database import Database


def test_a_switch_says_what_the_first_one_said_until_it_is_turned_off(database: Database) -> None:
    assert results.switch(database, switches.PAUSED) is None
    assert switches.turn_on(database, switches.PAUSED, {"by": "ada", "since": 1.5})
    assert not switches.turn_on(database, switches.PAUSED, {"by": "bob", "since": 2.0})
    assert results.switch(database, switches.PAUSED) == {"by": "ada", "since": 1.5}
    assert switches.turn_off(database, switches.PAUSED)
    assert not switches.turn_off(database, switches.PAUSED)
    assert results.switch(database, switches.PAUSED) is None


def test_a_page_sees_that_a_switch_was_turned(database: Database) -> None:
    before = results.data_version(database)
    switches.turn_on(database, switches.PAUSED, {})
    turned = results.data_version(database)
    switches.turn_off(database, switches.PAUSED)
    assert before < turned < results.data_version(database)
