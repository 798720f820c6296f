"""The model and the text that Budget and Surgery are about: two dropdowns and their parts of the address."""

from collections.abc import Mapping

import gradio as gr

from backend.host import Host
from backend.models import catalogue
from backend.text import texts
from ui.texts import say

TEXT = "wikipedia-en"
_LONGEST = 500


def subject(host: Host, page: str, text_label: str) -> tuple[gr.Dropdown, gr.Dropdown]:
    """(model, text) to choose or write, with ids `<page>-model` and `<page>-text`."""
    cards = catalogue(host)
    model = gr.Dropdown(
        [(one.title, one.id) for one in cards], value=cards[0].id, label=say("common.model"),
        elem_id=f"{page}-model", allow_custom_value=True, scale=3, min_width=220,
    )  # fmt: skip
    text = gr.Dropdown(
        [one.name for one in texts(host)], value=TEXT, label=text_label,
        elem_id=f"{page}-text", allow_custom_value=True, scale=2, min_width=180,
    )  # fmt: skip
    return model, text


def subject_of(host: Host, query: Mapping[str, str]) -> tuple[str, str]:
    """(model, text) of an address; what it does not name is as at first."""
    model = query.get("model") or catalogue(host)[0].id
    return model[:_LONGEST], query.get("text", TEXT)[:_LONGEST]
