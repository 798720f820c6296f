"""Verdicts on the embedded model that come with this version, as `python app.py claims` printed them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ui.standings import Standing

_FILE = Path(__file__).with_name("claims.jsonl")


def shipped(standing: Standing) -> dict[str, Any] | None:
    """The printed row of a claim, if it is about this model, this text and the same two chains."""
    row = rows().get(standing.method.id)
    recipe = standing.better.recipe
    if row is None or (row["model"], row["calibration"]["text"]) != (recipe.model, recipe.calibration.text):
        return None
    chains = tuple(side.recipe.chain() for side in standing.sides)
    return row if chains == (row["better"]["chain"], row["worse"]["chain"]) else None


@cache
def rows() -> dict[str, dict[str, Any]]:
    """Every row of the file, by method."""
    found = map(json.loads, _FILE.read_text().splitlines())
    return {row["method"]: row for row in found}
