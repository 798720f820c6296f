"""What the reader of Explore looks at: its address, and the runs that belong to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from backend.errors import UserError
from store import results
from store.database import Database
from ui import charts, filters
from ui.charts import Axis
from ui.noise import series_name
from ui.scatter import DOMINATED_RUNS, SYMBOLS, Look, scatter
from ui.texts import many, say

# The scope that holds every model and protocol.
EVERYTHING = "*"
MOST_BASKET = 4


@dataclass(frozen=True)
class View(Look):
    """What the reader looks at and how it is drawn: the page's address says all of it."""

    log_y: bool = True
    scope: str = ""
    x: str = "size.packed"
    y: str = "perplexity"
    words: str = ""
    basket: str = ""
    run: str = ""
    order: str = ""

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> "View":
        """The view that an address names; what it does not know falls back to the default."""
        x, y = charts.axis_of(query.get("x", cls.x), cls.x), charts.axis_of(query.get("y", cls.y), cls.y)
        return cls._checked(
            scope=query.get("scope", ""),
            x=x.metric,
            y=y.metric,
            log_x=query.get("logx", "1" if x.log else "0") == "1",
            log_y=query.get("logy", "1" if y.log else "0") == "1",
            broken=query.get("broken", "1") == "1",
            colour=query.get("colour", cls.colour),
            symbol=query.get("symbol", cls.symbol),
            dominated=query.get("dominated", cls.dominated),
            words=query.get("find", ""),
            basket=query.get("with", ""),
            run=query.get("run", ""),
            order=query.get("order", ""),
        )

    @classmethod
    def of_controls(cls, values: Sequence[Any]) -> "View":
        """The view that the page's controls hold, in the order of the fields; nonsense falls back."""
        told = dict(zip((field.name for field in fields(cls)), values, strict=True))
        x, y = charts.axis_of(told["x"] or "", cls.x), charts.axis_of(told["y"] or "", cls.y)
        switches = ("log_x", "log_y", "broken")
        texts = {name: value or "" for name, value in told.items() if name not in switches}
        return cls._checked(
            **{**texts, "x": x.metric, "y": y.metric}, **{name: bool(told[name]) for name in switches}
        )

    @classmethod
    def _checked(cls, **told: Any) -> "View":
        runs = [run[:12] for run in told["basket"].split(",") if run]
        told |= {
            "colour": told["colour"][:60] or cls.colour,
            "symbol": told["symbol"] if told["symbol"] in SYMBOLS else cls.symbol,
            "dominated": told["dominated"] if told["dominated"] in DOMINATED_RUNS else cls.dominated,
            "words": told["words"][:300],
            "basket": ",".join(list(dict.fromkeys(runs))[:MOST_BASKET]),
            "run": told["run"][:12],
            "order": told["order"][:40],
        }
        return cls(**told)

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """What stands across and upwards."""
        return charts.axis_of(self.x, View.x), charts.axis_of(self.y, View.y)

    def query(self, default_scope: str = "") -> str:
        """The address of this view, without what is the default anyway."""
        x, y = self.axes
        told = {
            "run": self.run,
            "x": self.x if self.x != View.x else "",
            "y": self.y if self.y != View.y else "",
            "logx": str(int(self.log_x)) if self.log_x != x.log else "",
            "logy": str(int(self.log_y)) if self.log_y != y.log else "",
            "broken": "" if self.broken else "0",
            "colour": self.colour if self.colour != View.colour else "",
            "symbol": self.symbol if self.symbol != View.symbol else "",
            "dominated": self.dominated if self.dominated != View.dominated else "",
            "find": self.words,
            "with": self.basket,
            "scope": self.scope if self.scope != default_scope else "",
            "order": self.order,
        }
        return "?" + urlencode({key: value for key, value in told.items() if value}, safe=",")


def figure(database: Database, shown: pd.DataFrame, view: View, kinds: Mapping[str, str]) -> charts.Figure:
    """The plot of what is shown."""
    x, y = view.axes
    windows = results.windows(database, series_name(y.metric))
    return scatter(shown, x, y, kinds, view, windows, view.scope)


def scopes(points: pd.DataFrame) -> list[str]:
    """Keys `MODEL|PROTOCOL` of what may share a plot, the one with most finished runs first."""
    done = points[(points["status"] == "done") & (points["protocol"] != "")]
    if done.empty:
        return []
    counted = (
        done.groupby(["model", "protocol"], sort=True).size().sort_values(ascending=False, kind="stable")
    )
    return [f"{model}|{protocol}" for model, protocol in counted.index]


def scope_choices(database: Database, points: pd.DataFrame) -> list[tuple[str, str]]:
    """(what the reader sees, key): model, text, windows and device of each scope."""
    keys = scopes(points)
    if not keys:
        return []
    firsts = points.drop_duplicates(["model", "protocol"]).set_index(["model", "protocol"])
    runs = {key: str(firsts.loc[tuple(key.rsplit("|", 1)), "id"]) for key in keys}
    stamps = results.measurements(database, sorted(set(runs.values())))
    choices = []
    for key in keys:
        model, protocol = key.rsplit("|", 1)
        own = stamps[(stamps["run_id"] == runs[key]) & (stamps["comparable"] == protocol)]
        stamp = json.loads(own["stamp"].iloc[0]) if len(own) else {}
        windows = say(
            "explore.windows_of_tokens", windows=stamp.get("windows", "?"), length=stamp.get("window", "?")
        )
        text = str(stamp.get("text", "")) or say("explore.no_text")
        computed = str(firsts.loc[(model, protocol), "computed"])
        place = "".join(f", {told}" for told in (stamp.get("device"), computed) if told)
        in_scope = (points["model"] == model) & (points["protocol"] == protocol)
        count = int((in_scope & (points["status"] == "done")).sum())
        label = many("explore.scope", count, model=model, text=text, windows=windows, place=place)
        choices.append((label, key))
    if len(keys) > 1:
        choices.append((say("explore.everything", count=len(keys)), EVERYTHING))
    labels = [label for label, _ in choices]
    # Two protocols can look alike and still differ, in the tokenizer or the digest of the text.
    return [(f"{label} ({key[-6:]})" if labels.count(label) > 1 else label, key) for label, key in choices]


def visible(points: pd.DataFrame, view: View) -> pd.DataFrame:
    """The finished runs of the view's scope that its filter keeps; none when the filter is wrong."""
    return filtered(points, view)[0]


def filtered(points: pd.DataFrame, view: View) -> tuple[pd.DataFrame, str]:
    """(the finished runs of the view's scope that its filter keeps, what is wrong with the filter)."""
    shown = points[(points["status"] == "done") & (points["protocol"] != "")]
    if view.scope != EVERYTHING:
        known = scopes(points)
        scope = view.scope if view.scope in known else (known[0] if known else "|")
        model, protocol = scope.rsplit("|", 1)
        shown = shown[(shown["model"] == model) & (shown["protocol"] == protocol)]
    if not view.words.strip() or shown.empty:
        return shown, ""
    try:
        kept = filters.kept(shown, view.words)
    except UserError as error:
        return shown.head(0), str(error)
    # The dense model stays as the reference, unless that is what is asked about.
    return shown[kept | ((shown["chain"] == charts.DENSE) & ("is:" not in view.words))], ""
