"""Budget, Surgery and Explore as a person uses them: learn levels, verify a plan, operate, filter, hold."""

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE, visit

NAME = "model.layers.0.mlp.up_proj"


def of(served, page_name: str, **more: str) -> str:
    return f"{served.address}/{page_name}?{urlencode({'model': served.wide, 'text': served.long, **more})}"


@pytest.mark.slow
def test_levels_are_learned_a_plan_is_chosen_verified_and_shown_beside_its_prediction(page: Page, served):
    visit(page, of(served, "budget"))
    page.get_by_role("button", name="Learn the levels").click()
    expect(page.locator("#plan-card")).to_contain_text("predicted KL", timeout=PATIENCE)
    expect(page.locator("#plan-card")).to_contain_text("No plan of this model has been measured yet")
    before = page.locator("#plan-card .figures").inner_text()
    slider = page.locator("#budget-size input[type=range]")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    expect(page).to_have_url(re.compile("mb="))
    page.locator("#budget-size input[type=number]").fill("0.2")
    page.locator("#budget-size input[type=number]").press("Enter")
    expect(page.locator("#plan-card .figures")).not_to_have_text(before)
    page.get_by_role("button", name="Verify this plan").click()
    expect(page.locator("#verify-card")).to_contain_text("1 queued.")
    expect(page.locator("#plan-card")).to_contain_text("1 measured so far", timeout=PATIENCE)
    # The plan in the address is the plan on the page, after a reload too.
    shown = page.locator("#plan-card .figures").inner_text()
    page.reload()
    expect(page.locator("#plan-card .figures")).to_have_text(shown, use_inner_text=True)


def test_an_operation_on_one_linear_is_measured_beside_its_prediction(page: Page, served):
    visit(page, of(served, "surgery", layer=NAME))
    expect(page.locator("#cell-card")).to_contain_text(NAME)
    if page.locator("#levels-card").count():
        page.get_by_role("button", name="Learn the levels").click()
    expect(page.locator("#cell-card")).to_contain_text("2-bit g64", timeout=PATIENCE)
    page.get_by_role("button", name="Operate").click()
    expect(page.locator("#operation .figures")).to_contain_text("KL from dense", timeout=PATIENCE)
    expect(page.locator("#operation .figures")).to_contain_text("predicted")
    expect(page.locator("#operation .lane")).to_have_count(3)
    page.locator("#sensitivity .plot").click(position={"x": 200, "y": 150})
    expect(page.locator("#cell-card")).not_to_contain_text(NAME)


def test_a_view_of_explore_filters_holds_and_saves(page: Page, served):
    visit(page, of(served, "budget"))
    page.get_by_role("button", name="Verify 8 along the line").click()
    expect(page.locator("#verify-card")).to_contain_text("queued")
    visit(page, f"{served.address}/?colour=family&find=" + "is:sound")
    row = page.locator("#runs tbody tr").first
    row.click(timeout=PATIENCE)
    expect(page.locator("#run-card")).to_contain_text("Reproduce")
    page.get_by_role("button", name="Hold for comparison").click()
    expect(page.locator("#basket")).to_contain_text("Compare 1")
    assert "with=" in page.url
    page.locator("#filter textarea, #filter input").fill("bits<=")
    page.locator("#filter textarea, #filter input").fill("nothing<3")
    expect(page.locator("#basket")).to_contain_text("no run here has 'nothing'")
    page.locator("#filter textarea, #filter input").fill("is:sound")
    expect(page.locator("#runs tbody tr").first).to_be_visible()
    with page.expect_download() as saved:
        page.locator("#download-svg").click()
    assert saved.value.suggested_filename == "paretoscope.svg"
