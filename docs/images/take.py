"""Take the README's pictures of a served app that has finished runs: python docs/images/take.py [ADDRESS].

Start the app first, let a few runs finish and leave one running. Needs Chromium and requirements-dev.txt.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

FOLDER = Path(__file__).parent
PATIENCE = 300_000


def explore(page: Page, address: str) -> list[str]:
    """The plot with the card of the best run that is not dense; the ids of two runs to compare."""
    page.goto(f"{address}/?order=perplexity")
    rows = page.locator("#runs tbody tr")
    expect(rows.nth(2)).to_be_visible()
    chains = rows.locator("td.wide").all_inner_texts()
    runs = [row.get_attribute("data-run") or "" for row in rows.all()]
    compressed = [
        run for run, chain in zip(runs, chains, strict=True) if chain != "dense" and "broken" not in chain
    ]
    page.locator(f"#runs tr[data-run='{compressed[0]}']").click()
    expect(page.locator("#run-card")).to_be_visible()
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / "explore.png")
    return compressed[:1] + compressed[-1:]


def compress(page: Page, address: str) -> None:
    """A chain of three stages and its estimate."""
    page.goto(f"{address}/compress")
    page.get_by_role("button", name="Pruned, quantized, repaired").click()
    expect(page.locator("#stage-3")).to_be_visible()
    expect(page.locator("#estimate-card")).to_contain_text("of dense")
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / "compress.png", full_page=True)


def queue(page: Page, address: str) -> None:
    """Whatever runs and waits now."""
    page.goto(f"{address}/queue")
    expect(page.locator("#queue .panel").first).to_be_visible()
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / "queue.png")


def compare(page: Page, address: str, runs: list[str]) -> None:
    """Two runs and the dense model answer one prompt."""
    page.goto(f"{address}/compare?runs={','.join(runs)}")
    expect(page.locator("#numbers")).to_be_visible()
    page.locator("#generate").click()
    done = page.locator("#lanes .lane[data-status=done]")
    expect(done).to_have_count(len(runs) + 1, timeout=PATIENCE)
    page.mouse.move(5, 5)
    page.wait_for_timeout(1000)
    page.screenshot(path=FOLDER / "compare.png")


def reader(page: Page, address: str, runs: list[str]) -> None:
    """The same two runs read a text, one token with both models' guesses."""
    page.goto(f"{address}/compare?runs={','.join(runs)}")
    expect(page.locator("#numbers")).to_be_visible()
    page.get_by_role("tab", name="Read", exact=True).click()
    page.locator("#read-text").click()
    lanes = page.locator("#reader .lane")
    expect(lanes).to_have_count(len(runs) + 1, timeout=PATIENCE)
    lanes.nth(1).locator(".tok").nth(12).hover()
    page.wait_for_timeout(1000)
    page.screenshot(path=FOLDER / "reader.png")


def tasting(page: Page, address: str, runs: list[str]) -> None:
    """A pair of unlabeled answers of the same runs, with the way to join by phone."""
    page.goto(f"{address}/tasting?runs={','.join(runs)}")
    page.locator("#taste-prompts textarea").fill(
        "What is the capital of France, and what is it known for?\n"
        "Explain in one sentence what a bridge is for.\nWrite two sentences about the sea."
    )
    page.get_by_label("Title").fill("Where do you start to notice?")
    page.locator("#make-tasting").click()
    expect(page.locator("#ballot [data-ticket]")).to_have_count(4, timeout=PATIENCE)
    page.mouse.move(5, 5)
    page.wait_for_timeout(1000)
    page.screenshot(path=FOLDER / "tasting.png")


def layers(page: Page, address: str) -> None:
    """The map of a compensated run, which went through several stages, with a cell chosen."""
    page.goto(f"{address}/?find=eora&order=perplexity")
    page.locator("#runs tbody tr").filter(has_text="eora").first.click()
    page.locator("#run-card").get_by_role("link", name="Layers").click()
    page.locator("#layer tr[data-run]").first.click()
    expect(page.locator("#layer-card td").first).to_be_visible()
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / "layers.png")


def papers(page: Page, address: str) -> None:
    """The claims, those with a verdict wherever there are runs."""
    page.goto(f"{address}/papers")
    expect(page.locator("#claims .claim").first).to_be_visible()
    page.set_viewport_size({"width": 1440, "height": 1240})
    page.wait_for_timeout(1000)
    page.screenshot(path=FOLDER / "papers.png")
    page.set_viewport_size({"width": 1440, "height": 900})


def main() -> None:
    """Take all of them."""
    address = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860").rstrip("/")
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(30_000)
        queue(page, address)
        runs = explore(page, address)
        compress(page, address)
        layers(page, address)
        papers(page, address)
        compare(page, address, runs)
        reader(page, address, runs)
        tasting(page, address, runs)
        browser.close()


if __name__ == "__main__":
    main()
