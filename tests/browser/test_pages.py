"""Pages in a real browser: a claim from its button to its verdict, and how each page fits its window."""

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE, fits, visit


@pytest.mark.slow
def test_a_claim_goes_from_the_button_to_its_verdict(page, served):
    visit(page, f"{served.address}/papers?{urlencode({'model': served.wide, 'text': served.text})}")
    claim = page.locator("[id='claim-quantize.gptq']")
    expect(claim).to_have_attribute("data-verdict", "not tested")
    claim.get_by_text("Formula and limits").click()
    claim.get_by_role("button", name="Test it on this model (2 runs)").click()
    expect(claim).to_have_attribute("data-verdict", re.compile("queued|running"))
    decided = re.compile("^(holds|does not hold|within noise)$")
    expect(claim).to_have_attribute("data-verdict", decided, timeout=PATIENCE)
    expect(claim).to_contain_text("95 % interval, at the same bytes")
    expect(claim.locator("pre.doc"), "what was unfolded stays so").to_be_visible()
    expect(claim.locator(".strip .dot")).to_have_count(8)
    claim.get_by_role("link", name="gptq 3-bit").click()
    expect(page.locator("#run-card")).to_contain_text("gptq 3-bit g64")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_every_page_fits_its_window_in_light_and_dark(page, served, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    for path, landmark in (
        ("", "#card .panel"), ("compress", "#estimate-card"), ("queue", "#queue .panel"),
        ("compare", "#how-to-compare"), ("tasting", "#maker"), ("layers", "#how-to-layers"),
        ("papers", "#claims .panel, #claims .banner"), ("about", "#methods-table"),
        ("budget", "#levels-card, #budget-problem .banner"), ("stories", ".panel"),
        ("surgery", "#cell-card, #surgery-problem .banner"),
    ):  # fmt: skip
        visit(page, f"{served.address}/{path}")
        expect(page.locator(landmark).first).to_be_visible()
        assert fits(page), f"/{path} scrolls sideways at {width} px"
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert dark == (scheme == "dark")
