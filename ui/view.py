"""What the reader of Explore looks at: its address, and the runs that belong to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from store import results
from store.database import Database
from ui import charts


@dataclass(frozen=True)
class View:
    """What the reader looks at: the page's address says all of it."""

    scope: str = ""
    x: str = "size.packed"
    y: str = "perplexity"
    log_x: bool = False
    log_y: bool = True
    broken: bool = True
    words: str = ""
    run: str = ""
    order: str = ""

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> "View":
        """The view that an address names; what it does not know falls back to the default."""
        x, y = query.get("x", cls.x), query.get("y", cls.y)
        x, y = (x if x in charts.COSTS else cls.x), (y if y in charts.QUALITIES else cls.y)
        return cls(
            scope=query.get("scope", ""),
            x=x,
            y=y,
            log_x=query.get("logx", "1" if charts.COSTS[x].log else "0") == "1",
            log_y=query.get("logy", "1" if charts.QUALITIES[y].log else "0") == "1",
            broken=query.get("broken", "1") == "1",
            words=query.get("find", "")[:200],
            run=query.get("run", "")[:12],
            order=query.get("order", "")[:40],
        )

    @classmethod
    def of_controls(cls, values: Sequence[Any]) -> "View":
        """The view that the page's controls hold; an axis that is none falls back to the default."""
        scope, x, y, *rest, words, run, order = values
        x, y = (x if x in charts.COSTS else cls.x), (y if y in charts.QUALITIES else cls.y)
        return cls(scope or "", x, y, *rest, (words or "")[:200], run or "", order or "")

    def query(self, default_scope: str = "") -> str:
        """The address of this view, without what is the default anyway."""
        told = {
            "run": self.run,
            "x": self.x if self.x != View.x else "",
            "y": self.y if self.y != View.y else "",
            "logx": str(int(self.log_x)) if self.log_x != charts.COSTS[self.x].log else "",
            "logy": str(int(self.log_y)) if self.log_y != charts.QUALITIES[self.y].log else "",
            "broken": "" if self.broken else "0",
            "find": self.words,
            "scope": self.scope if self.scope != default_scope else "",
            "order": self.order,
        }
        return "?" + urlencode({key: value for key, value in told.items() if value})


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
        windows = f"{stamp.get('windows', '?')} x {stamp.get('window', '?')} tokens"
        text = str(stamp.get("text", "")) or "no text"
        place = f", {stamp['device']}" if "device" in stamp else ""
        in_scope = (points["model"] == model) & (points["protocol"] == protocol)
        count = int((in_scope & (points["status"] == "done")).sum())
        label = f"{model}: {text}, {windows}{place}, {count} run{'' if count == 1 else 's'}"
        choices.append((label, key))
    labels = [label for label, _ in choices]
    # Two protocols can look alike and still differ, in the tokenizer or the digest of the text.
    return [(f"{label} ({key[-6:]})" if labels.count(label) > 1 else label, key) for label, key in choices]


def visible(points: pd.DataFrame, view: View) -> pd.DataFrame:
    """The finished runs of the view's scope that hold all of its words."""
    known = scopes(points)
    scope = view.scope if view.scope in known else (known[0] if known else "|")
    model, protocol = scope.rsplit("|", 1)
    shown = points[
        (points["model"] == model) & (points["protocol"] == protocol) & (points["status"] == "done")
    ]
    for word in view.words.lower().split():
        held = shown["chain"].str.lower().str.contains(word, regex=False)
        for column in ("id", "user", "source", "name"):
            held |= shown[column].str.lower().str.contains(word, regex=False)
        shown = shown[held | (shown["chain"] == charts.DENSE)]
    return shown
