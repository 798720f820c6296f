"""The web application: pages put together, and served."""

import os
import threading
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

import gradio as gr

from backend.errors import UserError
from backend.jobs import Jobs
from store import results
from ui import downloads, live
from ui.lost import not_found
from ui.noise import series_name
from ui.pages import (
    about,
    budget,
    compare,
    compress,
    explore,
    layers,
    papers,
    queue,
    stories,
    surgery,
    tasting,
)
from ui.texts import say
from ui.theme import CSS, ICON, MARK, theme
from ui.view import View

# (name, path, what builds it); the first page is the front door.
PAGES: tuple[tuple[str, str, Callable[[gr.Blocks, Jobs], None]], ...] = (
    (say("app.explore"), "", explore.build),
    (say("app.compress"), "compress", compress.build),
    (say("app.queue"), "queue", queue.build),
    (say("app.compare"), "compare", compare.build),
    (say("app.tasting"), "tasting", tasting.build),
    (say("app.layers"), "layers", layers.build),
    (say("app.surgery"), "surgery", surgery.build),
    (say("app.budget"), "budget", budget.build),
    (say("app.papers"), "papers", papers.build),
    (say("app.stories"), "stories", stories.build),
    (say("app.about"), "about", about.build),
)
_SCRIPT = (Path(__file__).parent / "head.js").read_text(encoding="utf-8")
# Open tabs whose state is kept, half a megabyte each; a tab beyond them starts from its address again.
_SESSIONS = 300
# What open pages fetch instead of asking for it by an event.
PANELS: Mapping[str, live.Panel] = {
    "activity": explore.activity, "picture": explore.picture, "listing": explore.listing,
    "details": explore.details, "queue": queue.overview, "log": queue.log,
}  # fmt: skip
# What shows finished runs alone need not be made again while one computes.
MINDS = {"picture": "results", "listing": "results"}
# How long an event may wait to be noticed.
_LOOK_SECONDS = 0.01
# Pages whose address is a view for a story.
_VIEWS = (say("app.explore"), say("app.compare"), say("app.layers"))
_MARK = (
    '<svg viewBox="0 0 20 20" fill="none" stroke="currentColor" stroke-width="1.7" aria-hidden="true">'
    '<path d="M2.5 1.5v16h16"/><path d="M5 4v5h4v3.5h4v2h4.5"/></svg>'
)


def build(jobs: Jobs) -> gr.Blocks:
    """All pages; they share nothing but the store."""
    # Reading thousands of runs for the first time takes a second: not the first visitor's.
    threading.Thread(target=_read_all, args=[jobs], daemon=True).start()
    demo = gr.Blocks(title="Paretoscope", analytics_enabled=False)
    for name, path, build_page in PAGES:
        with demo if not path else demo.route(name, f"/{path}"):
            gr.HTML(_head(name), js_on_load=_SCRIPT, apply_default_css=False, elem_classes="plain")
            build_page(demo, jobs)
    demo.queue(default_concurrency_limit=8, max_size=256)
    # Gradio looks for waiting events a thousand times a second, which takes 7 % of a core from the runs.
    demo._queue.sleep_when_free = _LOOK_SECONDS
    demo._queue.progress_update_sleep_when_free = 5 * _LOOK_SECONDS
    return demo


def _read_all(jobs: Jobs) -> None:
    results.points(jobs.database)
    results.windows(jobs.database, series_name(View.y))


def launch(
    demo: gr.Blocks, jobs: Jobs, *, server_name: str | None = None, server_port: int | None = None
) -> str:
    """Serve until closed, without blocking; the address. Host and port fall back to Gradio's variables."""
    name = server_name or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = server_port or int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    try:
        _, address, _ = demo.launch(
            server_name=name,
            server_port=port,
            auth=list(jobs.host.auth) or None,
            theme=theme(),
            css=CSS,
            favicon_path=str(ICON),
            app_kwargs={"exception_handlers": not_found(_head(""))},
            head=f'<link rel="icon" href="{MARK}">',
            prevent_thread_lock=True,
            show_error=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size="1mb",
            state_session_capacity=_SESSIONS,
        )
        downloads.serve(demo, jobs.host)
        live.serve(demo, live.Feed(jobs, PANELS, explore.choices, MINDS))
    except OSError as problem:
        raise UserError(say("app.port_taken", port=port, host=name, problem=problem)) from problem
    return address


def _head(here: str) -> str:
    # Relative links keep working when a proxy serves the app below a path.
    links = "".join(
        f'<a href="./{path}"{" aria-current=page" if name == here else ""}>{name}</a>'
        for name, path, _ in PAGES
    )
    add = f'<a class="add" href="./stories" data-add>{say("app.add_to_a_story")}</a>'
    return (
        f'<header class="head"><a class="brand" href="./">{_MARK}Paretoscope</a>'
        f'<nav aria-label="{escape(say("app.pages"))}">{links}</nav>{add if here in _VIEWS else ""}</header>'
    )
