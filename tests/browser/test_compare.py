"""Texts read token by token, sets of prompts and blind tastings, in a real browser."""

import re

import pytest
from playwright.sync_api import expect

from backend.host import Host
from backend.jobs import Jobs
from backend.recipe import parse_recipe
from tests.backend.queueing import wait_for
from tests.browser.conftest import PATIENCE, fits, recipe, visit

RTN = [{"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}]


@pytest.fixture(scope="module")
def compared(served):
    """The id of a finished run that no other test asks for."""
    jobs = Jobs(Host.from_environment(served.environment))
    run_id = jobs.submit(parse_recipe(recipe(served, RTN, seed=1))).run_id
    assert wait_for(jobs, run_id, "done", "failed", seconds=PATIENCE / 1000)["status"] == "done"
    jobs.close()
    return run_id


def test_a_text_is_read_token_by_token_and_goes_on_from_a_forced_one(page, served, compared):
    visit(page, f"{served.address}/compare?runs={compared},{compared}")
    expect(page.locator("#numbers")).to_be_visible()
    expect(page).to_have_url(re.compile(f"runs={compared}$"))
    page.get_by_role("tab", name="Read", exact=True).click()
    page.get_by_label("Text").fill("the scale of a <b>group</b> is stored")
    page.locator("#read-text").click()
    lanes = page.locator("#reader .lane")
    expect(lanes).to_have_count(2, timeout=PATIENCE)
    expect(lanes.nth(1)).to_contain_text("mean KL")
    tokens = lanes.nth(1).locator(".tok")
    expect(tokens).to_have_count(37)

    # Hover, focus and the arrow keys show both models' guesses.
    tip = page.locator("#reader-tip")
    tokens.nth(5).hover()
    expect(tip.locator("table")).to_have_count(2)
    expect(tip.locator("tr")).to_have_count(10)
    lanes.nth(1).locator("[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(2)).to_be_focused()
    expect(tip).to_be_visible()
    page.get_by_role("button", name="Loss", exact=True).click()
    expect(lanes.nth(0).locator(".tok[class*=' h']").first).to_be_visible()

    tokens.nth(2).focus()
    page.keyboard.press("Enter")
    card = page.locator("#token-card")
    expect(card).to_contain_text("Token 3")
    card.get_by_role("button", name="Force the dense token").click()
    expect(page.locator("#forced .lane[data-status=done]")).to_have_count(2, timeout=PATIENCE)
    page.reload()
    expect(lanes).to_have_count(2)
    expect(page.get_by_label("Text")).to_have_value("the scale of a <b>group</b> is stored")


def test_a_set_of_prompts_fills_a_table_whose_cells_open(page, served, compared):
    visit(page, f"{served.address}/compare?runs={compared}")
    page.get_by_role("tab", name="Ask many").click()
    page.locator("#questions textarea").fill("the scale\nof a group")
    page.locator("#ask-all").click()
    expect(page.locator("#matrix-told")).to_contain_text("4 answers", timeout=PATIENCE)
    page.locator("#matrix .cell").nth(3).click()
    expect(page.locator("#set-detail .lane")).to_have_count(2)
    page.get_by_label("Mark words").click()
    page.reload()
    expect(page.locator("#matrix .cell")).to_have_count(4)


def test_a_set_of_prompts_that_is_stopped_keeps_what_was_written(page, served, compared):
    visit(page, f"{served.address}/compare?runs={compared}")
    page.locator("#max-tokens input[type=number]").fill("400")
    page.get_by_role("tab", name="Ask many").click()
    page.locator("#questions textarea").fill("\n".join(f"the scale {number}" for number in range(40)))
    page.locator("#ask-all").click()
    expect(page.locator("#matrix-told")).to_contain_text(" of 80 answers", timeout=PATIENCE)
    page.locator("#stop-all").click()
    expect(page.locator("#stop-all")).to_be_disabled(timeout=PATIENCE)
    expect(page.locator("#matrix .cell").filter(has_text="cancelled").last).to_be_visible()
    page.locator("#matrix .cell").filter(has_text="cancelled").last.click()
    expect(page.locator("#set-detail .lane")).to_have_count(2)


def test_a_tasting_is_made_voted_on_a_phone_and_answered(page, browser, served, compared):
    visit(page, f"{served.address}/tasting?runs={compared}")
    page.locator("#taste-prompts textarea").fill("the scale\nof a group\nis stored")
    page.locator("#taste-chat input").uncheck()
    page.get_by_label("Title").fill("<b>Which?</b>")
    page.locator("#make-tasting").click()
    ballot = page.locator("#ballot")
    expect(ballot).to_contain_text("<b>Which?</b>")
    expect(page.locator("#invite svg")).to_be_visible()
    expect(ballot.locator("[data-ticket]")).to_have_count(4, timeout=PATIENCE)

    phone = browser.new_context(viewport={"width": 390, "height": 800})
    voter = phone.new_page()
    voter.goto(page.locator("#invitation").inner_text())
    ballot = voter.locator("#ballot")
    expect(ballot).to_contain_text("Pair 1 of 3")
    assert fits(voter)
    for secret in (compared, "dense", "rtn"):
        assert secret not in ballot.inner_html()
    ballot.get_by_role("button", name="A is better").click()
    expect(ballot).to_contain_text("Pair 2 of 3")
    voter.reload()
    expect(ballot).to_contain_text("Pair 2 of 3")
    voter.keyboard.press("3")
    expect(ballot).to_contain_text("Pair 3 of 3")
    voter.keyboard.press("4")
    expect(ballot).to_contain_text("Thank you")
    ballot.get_by_role("button", name="Show the results").click()
    outcome = voter.locator("#outcome-card")
    expect(outcome).to_contain_text("1 person, 3 votes; in 1 of them both answers were bad")
    expect(outcome).to_contain_text("Not yet: 3 votes")
    expect(voter.locator("#taste-plot .scatterlayer .trace")).to_have_count(2)
    assert fits(voter)
    phone.close()


def test_unknown_addresses_say_so(page, served):
    page.goto(f"{served.address}/tasting?id=nothing")
    expect(page.locator("#tasting-problem")).to_contain_text("There is no tasting")
    page.goto(f"{served.address}/compare?read=nothing")
    expect(page.locator("#read-state")).to_contain_text("no such reading")
    page.goto(f"{served.address}/compare?set=nothing.3")
    expect(page.locator("#set-problem")).to_contain_text("no answers to this set")
