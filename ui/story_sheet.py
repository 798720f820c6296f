"""A frozen story as slides: presented in the app, or one HTML file that needs nothing beside it."""

import json
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from ui.panel import banner
from ui.plot import DRAWING, LIBRARY
from ui.story import Frozen
from ui.texts import LANGUAGE, say, script
from ui.theme import CSS, MARK

# What stands in braces here, the script fills in.
_WORDS = script(
    previous=say("stories.previous_view"),
    next=say("stories.next_view"),
    close=say("common.close"),
    leave=say("stories.close_the_presentation"),
    slide=say("stories.slide"),
    place=say("stories.place", number="{number}", count="{count}"),
)
SCRIPT = _WORDS + DRAWING + Path(__file__).with_name("story.js").read_text(encoding="utf-8")


def _reader() -> MarkdownIt:
    # No markup of the author's, no pictures (they would be fetched), and links that can only be followed.
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    reader.validateLink = lambda url: url.lower().startswith(("http://", "https://"))

    def opened(tokens: Any, at: int, options: Any, env: Any) -> str:
        return f'<a href="{escape(tokens[at].attrGet("href"))}" target="_blank" rel="noopener noreferrer">'

    reader.renderer.rules["link_open"] = opened
    return reader


_READER = _reader()


def markdown(text: str) -> str:
    """Markdown as markup; what is no Markdown is escaped."""
    return str(_READER.render(text))


def slides(frozen: Frozen) -> dict[str, Any]:
    """{title, slides: [{markup, figure, selected, name}]}: the title first, then one slide a view."""
    opening = f"<h1>{escape(frozen['title'])}</h1>{markdown(frozen['summary'])}"
    first = {"name": frozen["title"], "markup": f'<div class="told wide">{opening}</div>'}
    return {"title": frozen["title"], "slides": [first, *map(_slide, frozen["views"])]}


def _slide(view: Frozen) -> dict[str, Any]:
    told = markdown(view["caption"])
    if view["kind"] == "text":
        return {"name": say("stories.text"), "markup": f'<div class="told wide">{told}</div>'}
    note = f'<p class="note">{escape(view["note"])}</p>' if view.get("note") else ""
    body = view.get("body", "")
    if view.get("problem"):
        body = banner(escape(view["problem"]))
    figure = ""
    if view.get("figure"):
        name = escape(view["heading"])
        figure = f'<div class="plot" role="figure" aria-label="{name}"></div>'
        figure = f'<div class="plot-frame {view["kind"]}">{figure}</div>'
    side = f'<div class="told">{told}</div>' if told else ""
    look = "beside" if figure and told else "below"
    shown = f'<div class="shown"><h2>{escape(view["heading"])}</h2>{note}{figure}{body}</div>'
    markup = f'<div class="{look}">{shown}{side}</div>'
    return {
        "name": view["heading"],
        "markup": markup,
        **{key: view.get(key) for key in ("figure", "selected")},
    }


def page(frozen: Frozen) -> str:
    """One HTML file that opens from a disk without a network, dark where the reader's system is."""
    told = slides(frozen)
    library = (
        _inline(LIBRARY.read_text(encoding="utf-8")) if any(s.get("figure") for s in told["slides"]) else ""
    )
    return _PAGE.format(
        title=escape(frozen["title"]), css=CSS.replace("</", "<\\/"), library=library, script=_inline(SCRIPT),
        story=json.dumps(told, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        mark=MARK, language=LANGUAGE, noscript=say("stories.no_script"),
    )  # fmt: skip


def _inline(script: str) -> str:
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


# The policy keeps a file that is passed around from fetching anything, whatever a caption says.
_PAGE = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="generator" content="Paretoscope">
<title>{title}</title>
<link rel="icon" href="{mark}">
<style>{css}</style>
</head>
<body class="sheet">
<main class="story"></main>
<noscript>{noscript}</noscript>
<script>{library}</script>
<script type="application/json" id="story">{story}</script>
<script>{script}
const night = matchMedia('(prefers-color-scheme: dark)');
const follow = () => document.body.classList.toggle('dark', night.matches);
follow();
night.addEventListener('change', follow);
presentation(document.querySelector('main'), JSON.parse(document.getElementById('story').textContent));
</script>
</body>
</html>
"""  # noqa: E501 - a policy stands on one line
