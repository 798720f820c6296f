"""The filter of Explore: words, and conditions such as `bits<=3 method:gptq kl<0.5 is:broken -wanda`."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pandas as pd

from backend.errors import UserError
from ui import charts
from ui.texts import say

# Short names of what is asked for most; sizes are asked in megabytes, shares in percent, as axes show them.
_SHORT = {
    "kl": "divergence.kl", "ppl": "perplexity", "mb": "size.packed", "agreement": "divergence.agreement",
    "memory": "memory.peak", "bpw": "size.bits_per_weight",
}  # fmt: skip
_CONDITION = re.compile(r"([a-z_][a-z_.0-9]*)(<=|>=|!=|<|>|=)(.+)")
_NAMED = re.compile(r"(method|user|model|is|status|sweep|text):(.+)")
HELP = say("explore.filter_help")


@lru_cache(maxsize=50_000)
def _read(recipe: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for stage in json.loads(recipe).get("stages", ()):
        found.update({f"{stage['method']}.{key}": value for key, value in stage.get("params", {}).items()})
        found.update(stage.get("params", {}))
    return found


def parameter(points: pd.DataFrame, name: str) -> pd.Series:
    """A parameter in each run's recipe, None where it has none; `quantize.gptq.bits` names the method too."""
    return pd.Series(
        [_read(recipe).get(name) for recipe in points["recipe"]], index=points.index, dtype=object
    )


def parameter_names(points: pd.DataFrame) -> list[str]:
    """Parameters that these runs differ in."""
    seen: dict[str, Any] = {}
    several: set[str] = set()
    for recipe in points["recipe"]:
        for name, value in _read(recipe).items():
            if name not in several and seen.setdefault(name, value) != value:
                several.add(name)
    return sorted(name for name in several if "." not in name)


def kept(points: pd.DataFrame, words: str) -> pd.Series:
    """Which rows a filter keeps; UserError for a condition on something that no run has."""
    mask = pd.Series(True, index=points.index)
    for word in words.split():
        asked = word.removeprefix("-")
        found = _one(points, asked.lower())
        mask &= ~found if word.startswith("-") and asked else found
    return mask


def _one(points: pd.DataFrame, word: str) -> pd.Series:
    if named := _NAMED.fullmatch(word):
        return _named(points, *named.groups())
    if condition := _CONDITION.fullmatch(word):
        return _condition(points, *condition.groups())
    held = pd.Series(False, index=points.index)
    for column in ("chain", "id", "user", "source", "name"):
        held |= points[column].str.lower().str.contains(word, regex=False)
    return held


def _named(points: pd.DataFrame, name: str, value: str) -> pd.Series:
    if name == "is":
        states = {"broken": points["broken"].notna(), "sound": points["broken"].isna()}
        states["dense"] = points["chain"] == charts.DENSE
        states["simulated"] = points["speeds"] == "simulated"
        if value not in states:
            raise UserError(say("explore.unknown_state", value=value[:40], states=", is:".join(states)))
        return states[value]
    if name == "method":
        return points["recipe"].map(lambda recipe: any(value in stage for stage in _methods(recipe)))
    column = {"sweep": "sweep_id"}.get(name, name)
    return points[column].fillna("").astype(str).str.lower().str.contains(value, regex=False)


@lru_cache(maxsize=50_000)
def _methods(recipe: str) -> tuple[str, ...]:
    return tuple(stage["method"].lower() for stage in json.loads(recipe).get("stages", ()))


def _condition(points: pd.DataFrame, name: str, sign: str, value: str) -> pd.Series:
    metric = _SHORT.get(name, name)
    if metric in points.columns and metric not in ("recipe", "created", "started", "finished"):
        column = points[metric].astype(float) / charts.axis_of(metric, "perplexity").scale
    else:
        column = parameter(points, name)
        if column.isna().all():
            raise UserError(say("explore.unknown_condition", name=name[:40]))
    try:
        wanted = float(value)
        numbers = pd.to_numeric(column, errors="coerce")
    except ValueError:
        if sign not in ("=", "!="):
            raise UserError(say("explore.not_a_number", value=value[:40], sign=sign)) from None
        same = column.astype(str).str.lower() == value
        return same if sign == "=" else ~same
    compare = {"<": numbers.lt, "<=": numbers.le, ">": numbers.gt, ">=": numbers.ge, "=": numbers.eq}
    return compare[sign](wanted) if sign != "!=" else numbers.ne(wanted)
