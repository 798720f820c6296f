"""The whole app in a real browser: queue runs, watch them, see their points, open one, compare answers.

It begins with an empty store, so it stands in the first file of those that share the served app.
"""

import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE, recipe, visit


@pytest.mark.slow
def test_a_run_goes_from_the_form_to_its_point_and_its_answers(page, browser, served):
    # An empty store says what to do.
    visit(page, served.address)
    expect(page.get_by_text("No points yet")).to_be_visible()

    # A sweep is built on the form: the recipe comes by link, the bits are typed in.
    chain = [{"method": "quantize.rtn", "params": {"bits": 4, "group_size": 16}}]
    visit(page, f"{served.address}/compress?recipe={quote(recipe(served, chain))}")
    expect(page.locator("#estimate-card")).to_contain_text("of dense")
    bits = page.locator("#stage-1").get_by_label("Bits")
    bits.fill("1, 4")
    expect(page.locator("#problem")).to_contain_text("bits is 1; allowed:")
    expect(page.locator("#queue-button")).to_be_disabled()
    bits.fill("3, 4")
    expect(page.locator("#queue-button")).to_have_text("Queue 2 runs")
    page.locator("#queue-button").click()
    expect(page.locator("#queued-card")).to_contain_text("2 runs queued.")

    # Without stages the same form measures the dense model; asked twice it is one run.
    page.locator("#stage-1-remove").click()
    expect(page.get_by_text("No stages")).to_be_visible()
    expect(page.locator("#queue-button")).to_have_text("Queue this run")
    page.locator("#queue-button").click()
    expect(page.locator("#queued-card")).to_contain_text("1 run queued.")
    page.locator("#queue-button").click()
    expect(page.locator("#queued-card")).to_contain_text("1 was asked for before")

    # Two browsers watch the same queue, and one is reloaded midway.
    other = browser.new_context().new_page()
    other.goto(f"{served.address}/queue")
    visit(page, f"{served.address}/queue")
    expect(page.locator("#worker-state")).to_contain_text("Worker", timeout=PATIENCE)
    page.reload()
    for watching in (page, other):
        done = watching.locator("#ended").get_by_text("done", exact=True)
        expect(done).to_have_count(3, timeout=PATIENCE)
    other.context.close()
    page.locator("#ended").get_by_role("button", name="Log").first.click()
    expect(page.locator("#log-card")).to_be_visible()

    # All three are on the plot; a click opens one.
    visit(page, served.address)
    points = page.locator("#pareto .scatterlayer .point")
    expect(points).to_have_count(3)
    points.nth(0).click(force=True)
    card = page.locator("#run-card")
    expect(card).to_contain_text("rtn")
    expect(card).to_contain_text("against dense")
    assert "run=" in page.url
    page.reload()
    expect(card).to_contain_text("rtn")

    # The axes and the filter follow, the address keeps them, a keyboard reaches the table.
    page.get_by_label("Filter").fill("rtn 3-bit")
    expect(page.locator("#runs tbody tr")).to_have_count(2)
    assert "find=rtn" in page.url
    page.get_by_label("Filter").fill("")
    expect(page.locator("#runs tbody tr")).to_have_count(3)
    page.locator("#runs tbody tr").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#runs tbody tr").nth(1)).to_have_attribute("aria-selected", "true")
    with page.expect_download() as caught:
        page.locator("#download-csv").click()
    assert Path(caught.value.path()).read_text().count("\n") == 4

    # A lasso around points holds the best of them for a comparison.
    page.get_by_role("button", name="Close").click()
    frame = page.locator("#pareto .nsewdrag").bounding_box()
    page.locator("#pareto .plot").hover()
    page.locator("#pareto [data-title='Lasso Select']").click()
    corners = [(0.01, 0.02), (0.99, 0.02), (0.99, 0.98), (0.01, 0.98), (0.01, 0.02)]
    for number, (across, down) in enumerate(corners):
        page.mouse.move(
            frame["x"] + across * frame["width"],
            frame["y"] + down * frame["height"],
            steps=8 if number else 1,
        )
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    expect(page.locator("#basket")).to_contain_text("Compare 3")

    # The model of a run comes as a file: packed by the worker, fetched from the card.
    page.locator("#runs tbody tr").filter(has_text="rtn 3-bit").click()
    card.get_by_text("Export the model").click()
    card.get_by_role("button", name="Prepare safetensors").click()
    file = card.get_by_role("link", name="Download safetensors")
    expect(file).to_be_visible(timeout=PATIENCE)
    with page.expect_download() as caught:
        file.click()
    with zipfile.ZipFile(caught.value.path()) as packed:
        names = {Path(name).name for name in packed.namelist()}
    assert {"artifact.safetensors", "recipe.json", "tokenizer.json"} <= names

    # What became of each linear: a cell of the map opens its numbers, two runs their difference.
    visit(page, served.address)
    page.locator("#runs tbody tr").filter(has_text="rtn 3-bit").click()
    card.get_by_role("link", name="Layers").click()
    heat = page.locator("#heat .plot")
    expect(heat.locator(".hm")).to_be_visible()
    heat.locator(".nsewdrag").click(position={"x": 40, "y": 12})
    expect(page.locator("#layer-card")).to_contain_text("model.layers.0.self_attn.q_proj")
    assert "layer=model.layers.0.self_attn.q_proj" in page.url
    page.get_by_label("Run, or two").click()
    page.get_by_role("option", name="rtn 4-bit").click()
    expect(page.locator("#layers-heading")).to_contain_text("minus rtn 3-bit")
    page.reload()
    expect(page.locator("#layer-card")).to_contain_text("difference")

    # Answers stand side by side with the dense model's, and where they part is marked.
    visit(page, served.address)
    page.locator("#runs tbody tr").filter(has_text="rtn 3-bit").click()
    card.get_by_role("link", name="Compare").click()
    expect(page.locator("#numbers")).to_contain_text("to dense")
    page.get_by_label("Prompt").fill("the scale of a group")
    page.locator("#generate").click()
    lanes = page.locator("#lanes .lane")
    expect(lanes).to_have_count(2)
    expect(page.locator("#lanes .lane[data-status=done]")).to_have_count(2, timeout=PATIENCE)
    expect(lanes.nth(1)).to_contain_text("parts from dense at token")
    page.reload()
    expect(page.locator("#lanes .lane[data-status=done]")).to_have_count(2)
