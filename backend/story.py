"""A story: an ordered list of views of the app, each with a caption in Markdown."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import UserError
from backend.recipe import sentence_of

MOST_VIEWS = 60
# The last part of a page's address, and what a view of it is.
_PAGES: dict[str, Literal["plot", "compare", "layers"]] = {
    "": "plot",
    "compare": "compare",
    "layers": "layers",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoryView(_Strict):
    """One view: `query` is the query of the page's address without the question mark; a text has none."""

    kind: Literal["plot", "compare", "layers", "text"]
    query: Annotated[str, Field(max_length=4000)] = ""
    caption: Annotated[str, Field(max_length=8000)] = ""


class Story(_Strict):
    """A walk through views."""

    title: Annotated[str, Field(max_length=200)] = "Untitled"
    summary: Annotated[str, Field(max_length=2000)] = ""
    views: Annotated[tuple[StoryView, ...], Field(max_length=MOST_VIEWS)] = ()


def parse_story(data: str | Mapping[str, Any]) -> Story:
    """A checked story; UserError names what is wrong with it."""
    try:
        raw = json.loads(data) if isinstance(data, str) else data
    except (ValueError, RecursionError) as error:
        raise UserError(f"story: not valid JSON ({error})") from None
    if not isinstance(raw, Mapping):
        raise UserError(f"story: expected a JSON object with title and views, found {type(raw).__name__}")
    try:
        return Story.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise UserError(sentence_of(error, "story", Story)) from None


def view_of_address(address: str) -> StoryView:
    """The view that a pasted address names; only its path and query are read."""
    try:
        split = urlsplit(address.strip())
    except ValueError:
        split = urlsplit("/none")
    page = split.path.rsplit("/", 1)[-1]
    if not address.strip() or page not in _PAGES:
        raise UserError(
            f"{address.strip()[:80]!r} is no view of a story; paste the address of Explore, Compare or Layers"
        )
    if len(split.query) > 4000:
        raise UserError(
            f"the address has {len(split.query)} characters after its question mark; at most 4000"
        )
    return StoryView(kind=_PAGES[page], query=split.query)
