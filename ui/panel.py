"""Panels of our own HTML: markup that escapes what it shows, clicks that reach Python, the page's address.

An element with `data-send` sends its data attributes to `panel.select(handler)`; one with `data-copy` copies
the text of the element with that id; one with `data-key` is also pressed by that key.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ui.texts import say, script

# The store's words for the state of a run or answer, as people read them.
STATES = {
    "queued": say("common.queued"),
    "running": say("common.running"),
    "done": say("common.done"),
    "failed": say("common.failed"),
    "cancelled": say("common.cancelled"),
    "broken": say("common.broken"),
}
_WORDS = script(
    copied=say("common.copied"), selected=say("common.selected"), no_copy=say("common.see_the_address_bar")
)
SCRIPT = _WORDS + Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
# With the path written out, for the document's base is not this page.
_ADDRESS = """
watch('value', () => {
  let query = props.value === '?' ? '' : props.value;
  if (query.startsWith('&')) {
    const parts = new URLSearchParams(location.search);
    for (const [key, value] of new URLSearchParams(query)) value ? parts.set(key, value) : parts.delete(key);
    query = parts.size ? '?' + String(parts).replaceAll('%2C', ',') : '';
  }
  if (props.value) history.replaceState(history.state, '', location.pathname + query);
});
"""
_DOWNLOAD = """
watch('value', () => {
  if (!props.value || !props.value.name) return;
  const anchor = document.createElement('a');
  anchor.href = URL.createObjectURL(new Blob([props.value.text], {type: props.value.type}));
  anchor.download = props.value.name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
});
"""


def panel(elem_id: str, value: str = "", script: str = "", **options: Any) -> gr.HTML:
    """A place for markup of this file; all of it must have gone through `escape`. `script` is run with it."""
    return gr.HTML(
        value, elem_id=elem_id, js_on_load=SCRIPT + script, elem_classes="plain",
        apply_default_css=False, **options,
    )  # fmt: skip


def address(elem_id: str) -> gr.HTML:
    """Writes its value (`?run=...`) into the address bar, so that the view can be passed on as a link.

    A value such as `&run=...` sets that part alone, and takes it out when it is empty.
    """
    return gr.HTML("", elem_id=elem_id, html_template="", js_on_load=_ADDRESS, visible="hidden")


def download(elem_id: str) -> gr.HTML:
    """Saves its value {name, type, text} as a file on the reader's side; the server keeps no copy."""
    return gr.HTML(None, elem_id=elem_id, html_template="", js_on_load=_DOWNLOAD, visible="hidden")


def badge(text: str, tone: str = "") -> str:
    """A small label; tones: good, bad, warn, info."""
    return f'<span class="badge {tone}">{escape(text)}</span>'


def button(label: str, action: str, run: str = "", danger: bool = False, hint: str = "") -> str:
    """A small button that sends `action` and `run`."""
    sent = f'data-send data-action="{escape(action)}" data-run="{escape(run)}"'
    look = "act danger" if danger else "act"
    title = escape(hint or label)
    return f'<button type="button" class="{look}" {sent} title="{title}">{escape(label)}</button>'


def link(label: str, address_: str) -> str:
    """A link that looks like a small button."""
    return f'<a class="act" href="{escape(address_)}">{escape(label)}</a>'


def outside(label: str, url: str) -> str:
    """A link that leaves the app."""
    return f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(label)}</a>'


def paper(reference: str) -> str:
    """A paper such as `arXiv:2210.17323`, or the address of one that is not there, as a link."""
    archive, _, number = reference.partition(":")
    if archive == "https":
        return outside(reference.removeprefix("https://").strip("/"), reference)
    if archive.lower() != "arxiv":
        return escape(reference)
    return outside(f"arXiv {number}", f"https://arxiv.org/abs/{number}")


def card(body: str, elem_id: str = "", look: str = "") -> str:
    """A framed part of a page."""
    named = f' id="{escape(elem_id)}"' if elem_id else ""
    return f'<div class="panel {look}"{named}>{body}</div>'


def top(left: str, right: str) -> str:
    """The first line of a card: what it is about, and what can be done."""
    return f'<div class="acts top"><span class="acts">{left}</span><span class="acts">{right}</span></div>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A two-column table of (label, markup)."""
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="num">{value}</td></tr>' for label, value in rows
    )
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric_from: int = 1) -> str:
    """A table of markup cells; columns from `numeric_from` on stand right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=num' if column >= numeric_from else ''}>{cell}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    header = f"<thead><tr>{cells('th', [escape(name) for name in head])}</tr></thead>" if head else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="facts">{header}<tbody>{body}</tbody></table></div>'
    )


def figures(values: Mapping[str, str]) -> str:
    """A line of large numbers with small labels."""
    body = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in values.items()
    )
    return f'<div class="figures">{body}</div>'


def code(text: str, name: str) -> str:
    """Text to copy, with the button that does it."""
    return (
        f'<div class="code"><pre id="{escape(name)}">{escape(text)}</pre>'
        f'<button type="button" class="act" data-copy="{escape(name)}">{say("common.copy")}</button></div>'
    )


def banner(markup: str, tone: str = "") -> str:
    """A notice across the page."""
    return f'<div class="banner {tone}" role="status">{markup}</div>'
