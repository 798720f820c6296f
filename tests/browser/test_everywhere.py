"""What holds on every page: contrast, roles, titles; and a story from its first view to a file of its own."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from backend.host import Host
from backend.jobs import Jobs
from store import generations
from tests.browser.conftest import LEAVING
from tests.tiny import make_text
from tests.ui import made_up
from tests.ui.test_app import free_port
from ui import app

_RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}, "resultTypes": ["violations"]}
_PHONE = {"width": 390, "height": 844}
_DESK = {"width": 1440, "height": 900}
_SWIPE = """([across, down]) => {
  const target = document.querySelector('.slide');
  const at = (x, y) => new Touch({identifier: 1, target, clientX: x, clientY: y});
  const touch = (kind, touches, changedTouches) =>
    target.dispatchEvent(new TouchEvent(kind, {touches, changedTouches, bubbles: true}));
  touch('touchstart', [at(300, 300)], []);
  touch('touchend', [], [at(300 + across, 300 + down)]);
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The pages over a store of made-up runs, answers and a story, and over an empty one."""
    folder = tmp_path_factory.mktemp("everywhere")
    make_text(folder / "text.txt")
    full, empty = (replace(Host.at(folder / name), roots=(folder,)) for name in ("full", "empty"))
    jobs = Jobs(full)
    ids = made_up.fill(jobs.database)
    made_up.add_run(jobs.database, made_up.RUNS[2], status="running", recipe={"seed": 1})
    made_up.add_run(jobs.database, made_up.RUNS[3], status="queued", recipe={"seed": 2})
    made_up.add_run(
        jobs.database, made_up.RUNS[3], status="failed", recipe={"seed": 3}, error="no", error_kind="bug"
    )
    answers = generations.create(
        jobs.database, group_id="group", model=made_up.MODEL, run_ids=[None, ids[2]], prompt="why",
        settings={},
    )  # fmt: skip
    for answer, text in zip(answers, ("because", "be that"), strict=True):
        generations.start(jobs.database, answer, "local")
        generations.finish(jobs.database, answer, "done", text=text, tokens=[[len(text), text]])
    nothing = Jobs(empty)
    demos = [app.build(either) for either in (jobs, nothing)]
    addresses = [
        app.launch(demo, either, server_name="127.0.0.1", server_port=free_port()).rstrip("/")
        for demo, either in zip(demos, (jobs, nothing), strict=True)
    ]
    views = {
        "": f"?run={ids[2]}", "compress": "?recipe=%7B%7D", "queue": f"?run={ids[2]}",
        "compare": f"?runs={ids[2]},{ids[4]}&group=group", "layers": f"?run={ids[2]}",
    }  # fmt: skip
    yield SimpleNamespace(address=addresses[0], empty=addresses[1], jobs=jobs, ids=ids, views=views)
    for demo in demos:
        demo.close()
    jobs.close()
    nothing.close()


def settled(page: Page, path: str, filled: bool) -> None:
    """Until the page has drawn what it shows: what comes last there, else its first panel."""
    last = {"compress": "#estimate-card, #problem .banner", "papers": "#claims .panel, #claims .banner"}
    if filled:
        last |= {"": "#pareto .point", "queue": "#log-card", "compare": "#numbers", "layers": "#heat .hm"}
    expect(page.locator(last.get(path, ".panel, .lead, .banner")).first).to_be_visible()
    # A colour on its way from one to the other is neither.
    page.wait_for_function("document.getAnimations().every(one => !(one instanceof CSSTransition))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("filled", "size"), [(True, _DESK), (False, _DESK), (True, _PHONE)], ids=["full", "empty", "phone"]
)
def test_every_page_meets_wcag_aa_and_says_in_its_title_what_it_shows(
    browser: Browser, served, scheme, filled, size
):
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    address = served.address if filled else served.empty
    page.on(
        "request",
        lambda asked: asked.url.startswith((address, "data:", "blob:")) or complaints.append(asked.url),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
    for name, path, _ in app.PAGES:
        page.goto(f"{address}/{path}{served.views.get(path, '') if filled else ''}")
        settled(page, path, filled)
        title = "gptq 3-bit g64" if filled and not path else name
        expect(page).to_have_title(f"{title} · Paretoscope")
        found = Axe().run(page, options=_RULES).response["violations"]
        complaints += [
            f"/{path}: {rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]
        ]
    context.close()
    assert [told for told in complaints if not any(noise in told for noise in LEAVING)] == []


def test_a_story_goes_from_its_first_view_to_a_file_that_opens_offline(page: Page, served, tmp_path: Path):
    page.goto(f"{served.address}/?run={served.ids[2]}&x=size.file")
    expect(page.locator("#run-card")).to_be_visible()
    page.get_by_role("link", name="Add to a story").click()
    page.get_by_role("button", name="A new story").click()
    expect(page.locator("#story-card")).to_contain_text("Perplexity by file size (MB)")
    page.get_by_label("Title").fill("Three bits")
    page.get_by_label("Caption of view 1").fill("The **knee**")
    expect(page.locator("#story-card strong")).to_have_text("knee")
    for number, address in enumerate(
        (f"http://elsewhere/compare?runs={served.ids[2]}&group=group", f"layers?run={served.ids[2]}"), start=2
    ):
        page.get_by_label("Add a view").fill(address)
        page.get_by_role("button", name="Add the view").click()
        expect(page.get_by_label(f"Caption of view {number}")).to_be_visible()
    expect(page.locator("#stories")).to_contain_text("Three bits")
    page.reload()
    expect(page.get_by_label("Title")).to_have_value("Three bits")

    # Full screen, by the keyboard alone.
    page.locator("#story-card").get_by_role("button", name="Present").press("Enter")
    stage = page.get_by_role("dialog", name="Three bits")
    expect(stage).to_contain_text("1 of 4")
    page.keyboard.press("ArrowRight")
    expect(stage.locator(".scatterlayer .point").first).to_be_visible()
    expect(stage.locator(".told strong")).to_have_text("knee")
    page.keyboard.press("End")
    expect(stage.locator(".hm")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(stage.locator(".lane")).to_have_count(2)
    assert Axe().run(page, options=_RULES).response["violations"] == []
    page.keyboard.press("Escape")
    expect(stage).to_be_hidden()
    expect(page.get_by_label("Title")).to_have_value("Three bits")

    with page.expect_download() as caught:
        page.locator("#story-card").get_by_role("button", name="Export as HTML").click()
    assert caught.value.suggested_filename == "three-bits.html"
    file = tmp_path / "three-bits.html"
    caught.value.save_as(file)
    opened_offline(page.context.browser, file)


def opened_offline(browser: Browser, file: Path) -> None:
    for scheme, size in (("light", {"width": 1440, "height": 900}), ("dark", _PHONE)):
        context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        alone = context.new_page()
        told: list[str] = []
        asked: list[str] = []
        alone.on("console", lambda message, told=told: told.append(message.text))
        alone.on("pageerror", lambda error, told=told: told.append(str(error)))
        alone.on("request", lambda request, asked=asked: asked.append(request.url))
        alone.goto(file.as_uri())
        expect(alone).to_have_title("Three bits")
        assert alone.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
        for landmark in (".scatterlayer .point", ".lane", ".hm"):
            alone.keyboard.press("ArrowRight")
            expect(alone.locator(landmark).first).to_be_visible()
            assert alone.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert Axe().run(alone, options=_RULES).response["violations"] == []
        alone.keyboard.press("Home")
        # A finger that goes far to the left turns the page, one that goes down does not.
        for across, down, number in ((0, 200, 1), (-200, 10, 2), (-30, 0, 2), (200, 10, 1)):
            alone.evaluate(_SWIPE, [across, down])
            expect(alone.locator("body")).to_contain_text(f"{number} of 4")
        assert (told, asked) == ([], [file.as_uri()])
        context.close()


def test_on_a_phone_every_number_of_a_run_and_every_refusal_is_in_sight(page: Page, served):
    page.set_viewport_size(_PHONE)
    page.goto(served.address)
    line = page.locator("#runs tbody tr").first
    expect(line).to_be_visible()
    for cell in line.locator("td[data-label]").all():
        box = cell.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= _PHONE["width"]
    page.goto(f"{served.address}/compress")
    bits = page.locator("#stage-1").get_by_label("Bits")
    bits.fill("1")
    expect(page.locator("#problem .banner")).to_be_in_viewport()


def test_an_address_that_is_no_page_leads_home(browser: Browser, served):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{served.address}/no/such/page")
    expect(page.get_by_role("heading", name="No such page")).to_be_visible()
    assert Axe().run(page, options=_RULES).response["violations"] == []
    page.get_by_role("main").get_by_role("link", name="Explore").click()
    expect(page.locator("#run-card, #card .panel").first).to_be_visible()
    context.close()
