"""Stories: walks through views of the app, written with captions, presented full screen, exported as one."""

import json
from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from backend.errors import UserError
from backend.jobs import Jobs
from backend.story import Story, StoryView, parse_story, view_of_address
from store import results
from ui import story as stories
from ui.panel import address, banner, button, card, download, link, panel, table, top
from ui.plot import library
from ui.quantities import age
from ui.story import Frozen
from ui.story_sheet import SCRIPT, markdown, page, slides
from ui.texts import many, say
from ui.visitor import user_of

_ADDRESSES = {"plot": "./", "compare": "compare", "layers": "layers"}
_SHIPPED = "shipped-"
# Over the page as a dialog, which keeps the keyboard inside; a dialog itself cannot be full screen.
_PRESENTER = (
    SCRIPT
    + """
const stage = element.querySelector('dialog');
let end = null;
function leave() {
  if (!end) return;
  end(); end = null;
  stage.close();
  if (document.fullscreenElement) document.exitFullscreen();
}
stage.addEventListener('cancel', event => { event.preventDefault(); leave(); });
document.addEventListener('fullscreenchange', () => { if (!document.fullscreenElement) leave(); });
watch('value', async () => {
  if (!props.value) return;
  const story = JSON.parse(props.value);
  leave();
  stage.setAttribute('aria-label', story.title);
  stage.showModal();
  try { await document.documentElement.requestFullscreen(); } catch (refused) { /* in the window */ }
  end = presentation(stage, story, leave);
});
"""
)


def told(jobs: Jobs, story_id: str) -> Frozen | None:
    """A story as it can be shown now; None when there is no such story."""
    if story_id.startswith(_SHIPPED):
        return stories.shipped().get(story_id.removeprefix(_SHIPPED))
    row = results.story(jobs.database, story_id)
    return stories.freeze(jobs.database, story_of(row)) if row else None


def story_of(row: dict[str, Any]) -> Story:
    """A row of the store as a story."""
    return parse_story({key: row[key] for key in ("title", "summary", "views")})


def listing(jobs: Jobs, chosen: str) -> str:
    """All stories: those that come with the app first."""
    cards = [
        _entry(_SHIPPED + name, frozen["title"], frozen["summary"], len(frozen["views"]), "", chosen)
        for name, frozen in stories.shipped().items()
    ]
    for row in results.stories(jobs.database):
        who = say("stories.by_user", user=row["user"], changed=age(row["changed"]))
        cards.append(_entry(row["id"], row["title"], row["summary"], len(row["views"]), who, chosen))
    new = button(say("stories.new_story"), "new")
    if not cards:
        why = say("stories.what_a_story_is")
        return card(f"<h3>{say('stories.no_stories_yet')}</h3><p>{why}</p><p>{new}</p>", look="empty")
    return f'<div class="acts top"><span></span><span class="acts">{new}</span></div>{"".join(cards)}'


def _entry(story_id: str, title: str, summary: str, count: int, who: str, chosen: str) -> str:
    here = " aria-current=true" if story_id == chosen else ""
    views = many("stories.views", count, who=who or say("stories.shipped"))
    acts = button(say("stories.open"), "open", story_id) + button(say("stories.present"), "present", story_id)
    return card(
        f'<h3{here}>{escape(title)}</h3><div class="told">{markdown(summary)}</div>'
        f'<p class="note">{escape(views)}</p>'
        f'<div class="acts">{acts}</div>'
    )


def views_table(jobs: Jobs, story_id: str, chosen: int, may_edit: bool) -> str:
    """The views of a story in order, with what can be done to each."""
    frozen = told(jobs, story_id)
    if frozen is None:
        gone = card(f"<h3>{say('stories.no_such_story')}</h3><p>{say('stories.removed')}</p>")
        return gone if story_id else ""
    row = results.story(jobs.database, story_id)
    links = [_link(view) for view in row["views"]] if row else [""] * len(frozen["views"])
    lines = []
    for number, (view, way) in enumerate(zip(frozen["views"], links, strict=True)):
        named = escape(view.get("heading", say("stories.text")))
        problem = f'<br><span class="bad-ink">{escape(view["problem"])}</span>' if "problem" in view else ""
        caption = f'<div class="caption told">{markdown(view["caption"])}</div>' if view["caption"] else ""
        acts = way
        if may_edit:
            at, place = str(number), number + 1
            write = say("stories.caption_hint", number=place)
            acts += button(say("stories.caption"), "caption", at, hint=write)
            acts += button("\N{UPWARDS ARROW}", "up", at, hint=say("stories.up_hint", number=place))
            acts += button("\N{DOWNWARDS ARROW}", "down", at, hint=say("stories.down_hint", number=place))
            remove = say("stories.remove_hint", number=place)
            acts += button(say("stories.remove"), "remove", at, danger=True, hint=remove)
        mark = f'<span class="subtle">{number + 1}</span>'
        name = f"<b>{named}</b>" if number == chosen and may_edit else named
        lines.append((mark, f'{name}{problem}{caption}<div class="acts">{acts}</div>'))
    acts = button(say("stories.present"), "present", story_id) + button(
        say("stories.export_as_html"), "export", story_id
    )
    if not may_edit or story_id.startswith(_SHIPPED):
        acts += button(say("stories.use_as_a_start"), "copy", story_id)
    if may_edit:
        acts += button(say("stories.remove_the_story"), "delete", story_id, danger=True)
    body = table((), lines, numeric_from=2) if lines else f'<p class="note">{say("stories.no_views")}</p>'
    summary = "" if may_edit else markdown(frozen["summary"])
    name = f"<h3 data-page>{escape(frozen['title'])}</h3>"
    return card(f"{top(name, acts)}{summary}{body}", "story-card")


def _link(view: dict[str, Any]) -> str:
    if view["kind"] == "text":
        return ""
    query = f"?{view['query']}" if view["query"] else ""
    return link(say("stories.open_the_view"), _ADDRESSES[view["kind"]] + query)


def adding(jobs: Jobs, given: str, user: str) -> str:
    """Asks to which story the view at this address is to be added."""
    try:
        view = view_of_address(given)
    except UserError as error:
        return banner(escape(str(error)), "bad")
    name = stories.frozen_view(jobs.database, view)["heading"]
    mine = [row for row in results.stories(jobs.database) if may_edit(jobs, row["id"], user)]
    acts = "".join(button(row["title"][:60] or say("stories.untitled"), "add-to", row["id"]) for row in mine)
    acts += button(say("stories.a_new_story"), "add-to", "")
    return card(f'<h3>{say("stories.add_to")}</h3><p>{escape(name)}</p><div class="acts">{acts}</div>')


def may_edit(jobs: Jobs, story_id: str, user: str) -> bool:
    """Whether this user wrote the story; without a log-in everybody did."""
    row = results.story(jobs.database, story_id)
    return row is not None and (not jobs.host.auth or row["user"] == user)


def edited(jobs: Jobs, story_id: str, user: str, change: Callable[[Story], Story]) -> None:
    """Rewrite a story as it stands in the store now; UserError when it is not this user's."""
    row = results.story(jobs.database, story_id)
    if row is None:
        raise UserError(say("stories.gone"))
    jobs.save_story(parse_story(change(story_of(row)).model_dump()), user, story_id)


def with_view(story: Story, view: StoryView) -> Story:
    """The story with one more view at its end."""
    return story.model_copy(update={"views": (*story.views, view)})


def moved(story: Story, number: int, by: int) -> Story:
    """The story with one view a place earlier or later; at the end it stays."""
    views = list(story.views)
    if 0 <= number < len(views) and 0 <= number + by < len(views):
        views.insert(number + by, views.pop(number))
    return story.model_copy(update={"views": tuple(views)})


def without(story: Story, number: int) -> Story:
    """The story without one of its views."""
    return story.model_copy(update={"views": story.views[:number] + story.views[number + 1 :]})


def captioned(story: Story, number: int, caption: str) -> Story:
    """The story with another caption of one view."""
    views = list(story.views)
    if 0 <= number < len(views):
        views[number] = views[number].model_copy(update={"caption": caption})
    return story.model_copy(update={"views": tuple(views)})


def build(page_: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    problem, ask = panel("story-problem"), panel("story-add")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            listed = panel("stories")
        with gr.Column(scale=5, min_width=320, visible=False) as side:
            with gr.Column(visible=False) as editor:
                title = gr.Textbox(label=say("stories.title"), max_length=200, elem_id="story-title")
                summary = gr.Textbox(
                    label=say("stories.summary"), info=say("stories.summary_hint"), lines=2, max_lines=6,
                    max_length=2000, elem_id="story-summary",
                )  # fmt: skip
                caption = gr.Textbox(
                    label=say("stories.caption"), info=say("stories.caption_field_hint"), lines=4,
                    max_lines=14, max_length=8000, elem_id="story-caption", visible=False,
                )  # fmt: skip
            shown = panel("story-views")
            with gr.Row(equal_height=False, visible=False, elem_id="story-more") as more:
                given = gr.Textbox(
                    label=say("stories.add_address"), placeholder="compare?runs=...",
                    elem_id="story-address", scale=4, min_width=220,
                )  # fmt: skip
                add = gr.Button(say("stories.add_the_view"), elem_id="story-add-view", scale=0, min_width=120)
                text = gr.Button(say("stories.add_a_text"), elem_id="story-add-text", scale=0, min_width=110)
    here, saved = address("address"), download("download")
    stage = gr.HTML(
        None, elem_id="stage", html_template='<dialog class="story"></dialog>', js_on_load=_PRESENTER,
        head=library(), apply_default_css=False, elem_classes="plain",
    )  # fmt: skip
    current, view, offered, shows = gr.State(""), gr.State(-1), gr.State(""), gr.State(0)

    def drawn(story_id: str, number: int, user: str, complaint: str = "") -> list[Any]:
        row = results.story(jobs.database, story_id) if story_id else None
        mine = row is not None and may_edit(jobs, story_id, user)
        count = len(row["views"]) if row else 0
        number = number if 0 <= number < count else -1
        label = say("stories.caption_of_view", number=number + 1)
        return [
            banner(escape(complaint), "bad") if complaint else "",
            listing(jobs, story_id), gr.update(visible=bool(story_id)), gr.update(visible=mine),
            views_table(jobs, story_id, number, mine), gr.update(visible=mine),
            gr.update(
                visible=number >= 0, label=label, value=row["views"][number]["caption"] if number >= 0 else ""
            ),
            story_id, number, f"?{urlencode({'story': story_id})}" if story_id else "?",
        ]  # fmt: skip

    def named(story_id: str) -> list[Any]:
        row = results.story(jobs.database, story_id) if story_id else None
        return [row["title"], row["summary"]] if row else ["", ""]

    def opened(request: gr.Request) -> list[Any]:
        asked = dict(request.query_params)
        user, wanted = _user(request), asked.get("story", "")[:80]
        offer = asked.get("add", "")[:5000]
        question = adding(jobs, offer, user) if offer else ""
        *parts_, _ = drawn(wanted, -1, user)
        return [*parts_, *named(wanted), question, offer]

    def pressed(
        event: gr.EventData, request: gr.Request, story_id: str, number: int, count: int
    ) -> list[Any]:
        action, about = str(event.action), str(event.run)[:80]
        stage_, file, complaint = gr.skip(), gr.skip(), ""
        user = _user(request)
        try:
            if action in ("present", "export"):
                frozen = told(jobs, about)
                if frozen is None:
                    raise UserError(say("stories.gone"))
                if action == "export":
                    file = {"name": _file_name(frozen), "type": "text/html", "text": page(frozen)}
                else:
                    # A number makes it another value each time, so that it is presented each time.
                    stage_ = json.dumps(slides(frozen) | {"number": count})
                return [*(gr.skip() for _ in range(12)), stage_, file, count + 1]
            user = user_of(request, jobs.host)
            if action == "open":
                story_id, number = about, -1
            elif action == "new":
                story_id, number = jobs.save_story(Story(), user), -1
            elif action == "copy":
                frozen = told(jobs, about)
                if frozen is not None:
                    row = results.story(jobs.database, about)
                    story_id = jobs.save_story(story_of(row) if row else stories.captions(frozen), user)
            elif action == "delete":
                jobs.remove_story(about, user)
                story_id = ""
            elif action == "caption":
                number = int(about)
            elif action in ("up", "down"):
                by = -1 if action == "up" else 1
                edited(jobs, story_id, user, lambda story: moved(story, int(about), by))
                number = -1
            elif action == "remove":
                edited(jobs, story_id, user, lambda story: without(story, int(about)))
                number = -1
        except UserError as error:
            complaint = str(error)
        return [*drawn(story_id, number, user, complaint), *named(story_id), stage_, file, count]

    def chosen_target(event: gr.EventData, request: gr.Request, offer: str) -> list[Any]:
        user = _user(request)
        story_id, complaint = str(event.run)[:80], ""
        try:
            user = user_of(request, jobs.host)
            added = stories.pinned(jobs.database, view_of_address(offer))
            story_id = story_id or jobs.save_story(Story(), user)
            edited(jobs, story_id, user, lambda story: with_view(story, added))
        except UserError as error:
            complaint = str(error)
        return [*drawn(story_id, _last(story_id), user, complaint), *named(story_id), ""]

    def _last(story_id: str) -> int:
        row = results.story(jobs.database, story_id)
        return len(row["views"]) - 1 if row else -1

    def appended(request: gr.Request, story_id: str, address_: str | None) -> list[Any]:
        user, complaint = _user(request), ""
        try:
            user = user_of(request, jobs.host)
            added = (
                StoryView(kind="text") if address_ is None
                else stories.pinned(jobs.database, view_of_address(address_))
            )  # fmt: skip
            edited(jobs, story_id, user, lambda story: with_view(story, added))
        except UserError as error:
            complaint = str(error)
        number = -1 if complaint else _last(story_id)
        return [*drawn(story_id, number, user, complaint), address_ if complaint else ""]

    def texted(request: gr.Request, story_id: str) -> list[Any]:
        return appended(request, story_id, None)

    def written(part: str, request: gr.Request, story_id: str, number: int, words: str | None) -> list[Any]:
        # Each box writes its own part: on opening a story they change one after the other.
        row = results.story(jobs.database, story_id) if story_id else None
        if row is None:
            return [gr.skip(), gr.skip(), gr.skip()]
        before, words = story_of(row), words or ""
        if part == "caption":
            after = captioned(before, number, words)
        else:
            after = before.model_copy(update={part: words})
        if after == before:
            return [gr.skip(), gr.skip(), gr.skip()]
        try:
            edited(jobs, story_id, user_of(request, jobs.host), lambda _: after)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), gr.skip(), gr.skip()]
        return ["", listing(jobs, story_id), views_table(jobs, story_id, number, True)]

    def title_written(request: gr.Request, *values: Any) -> list[Any]:
        return written("title", request, *values)

    def summary_written(request: gr.Request, *values: Any) -> list[Any]:
        return written("summary", request, *values)

    def caption_written(request: gr.Request, *values: Any) -> list[Any]:
        return written("caption", request, *values)

    def _user(request: gr.Request) -> str:
        return getattr(request, "username", None) or "anonymous"

    parts = [problem, listed, side, editor, shown, more, caption, current, view, here]
    page_.load(opened, None, [*parts[:-1], title, summary, ask, offered], **quiet)
    for source in (listed, shown):
        source.select(pressed, [current, view, shows], [*parts, title, summary, stage, saved, shows], **quiet)
    ask.select(chosen_target, offered, [*parts, title, summary, ask], **quiet)
    add.click(appended, [current, given], [*parts, given], **quiet)
    given.submit(appended, [current, given], [*parts, given], **quiet)
    text.click(texted, current, [*parts, given], **quiet)
    for box, write in ((title, title_written), (summary, summary_written), (caption, caption_written)):
        box.change(
            write, [current, view, box], [problem, listed, shown], trigger_mode="always_last", **quiet
        )  # fmt: skip


def _file_name(frozen: Frozen) -> str:
    words = "".join(
        letter if letter.isascii() and letter.isalnum() else " " for letter in frozen["title"].lower()
    )
    return f"{'-'.join(words.split())[:60] or 'story'}.html"
