"""What a run made of each linear, as a table of blocks and projections; or how two runs differ in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from backend.families import FAMILIES
from backend.recipe import Stage
from backend.registry import Need, discover
from backend.views import most
from ui.quantities import MISSING, byte_size, is_number, share, significant
from ui.texts import say

# Projections in the order in which a block computes them.
_COMPUTED = list(
    dict.fromkeys(name for family in FAMILIES.values() for group in family.linears for name in group)
)
_SEEN: dict[Need, str] = {"inputs": "outputs", "gram": "outputs", "norms": "norms", "nothing": "weights"}
# What the error of a layer is measured by: the most that its stages gathered of the calibration text.
ERRORS = {
    "outputs": say("layers.error_of_outputs"),
    "norms": say("layers.error_of_weighted_weights"),
    "weights": say("layers.error_of_weights"),
}


@dataclass(frozen=True)
class Quantity:
    """One number that is kept of every linear."""

    column: str
    title: str

    def told(self, value: object, signed: bool = False) -> str:
        """A value as people read it."""
        if not is_number(value):
            return MISSING
        sign = "" if not signed else "+" if value > 0 else "-" if value < 0 else ""
        value = abs(value) if signed else value
        if self.column == "bytes":
            return sign + byte_size(value)
        if self.column == "sparsity":
            return say("layers.points", sign=sign, points=100 * value) if signed else share(value)
        return sign + (f"{value:.0f}" if self.column == "rank" else significant(value, 3))


QUANTITIES = {
    quantity.column: quantity
    for quantity in (
        Quantity("error", say("layers.relative_error")),
        Quantity("bits", say("layers.bits_per_weight")),
        Quantity("sparsity", say("layers.weights_that_are_zero")),
        Quantity("rank", say("layers.rank_of_what_was_added")),
        Quantity("bytes", say("layers.packed_bytes")),
    )
}


def final(layers: pd.DataFrame, recipe: Mapping[str, Any]) -> pd.DataFrame:
    """The last stage's row of every linear, by name, in the model's order; `seen`: of what the error is."""
    placed = layers[layers["block"].notna() & layers["projection"].notna()]
    last = placed.sort_values("stage", kind="stable").drop_duplicates("layer", keep="last")
    last = in_order(last)
    seen = [seen_by(recipe, layer, stage) for layer, stage in zip(last["layer"], last["stage"], strict=True)]
    return last.assign(seen=seen).set_index("layer", drop=False)


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of linears block by block, projections as a block computes them."""
    at = rows["projection"].map(lambda name: _COMPUTED.index(name) if name in _COMPUTED else len(_COMPUTED))
    return rows.assign(_at=at).sort_values(["block", "_at", "projection"], kind="stable").drop(columns="_at")


def seen_by(recipe: Mapping[str, Any], layer: str, number: int) -> str:
    """By what the error after stage `number` was measured: outputs, norms or weights; empty if unknown.

    Consecutive stages on layers and one text share one walk, and each layer the most that one of them asked.
    """
    methods = discover().methods
    asked: set[Need] = set()
    text = ""
    for place, given in enumerate(recipe.get("stages", []), start=1):
        method = methods.get(given["method"])
        if method is None:
            return ""
        stage = Stage.model_validate(given)
        if method.shape == "work" or stage.text != text:
            if place > number:
                break
            asked, text = set(), stage.text
        if method.shape == "layer" and stage.covers(layer):
            asked.add(method.asks(stage.params))
    return _SEEN[most(asked)] if asked else ""


def differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """`second - first` of each quantity for linears of both; errors of different kinds have no difference."""
    both = [layer for layer in first.index if layer in second.index]
    before, after = first.loc[both], second.loc[both]
    columns = list(QUANTITIES)
    apart = before.assign(
        **{name: after[name].astype(float) - before[name].astype(float) for name in columns}
    )
    apart.loc[before["seen"] != after["seen"], "error"] = None
    return apart


def known(table: pd.DataFrame) -> list[Quantity]:
    """The quantities that were kept for at least one linear."""
    return [quantity for name, quantity in QUANTITIES.items() if table[name].notna().any()]


def facts(tables: Sequence[pd.DataFrame]) -> dict[str, list[tuple[str, list[str]]]]:
    """Of every linear (title, value in each run) of what is kept; of two runs the difference comes last."""
    apart = [differences(*tables).to_dict("index")] if len(tables) == 2 else []
    kept = [table.to_dict("index") for table in tables]
    names = dict.fromkeys(name for rows in kept for name in rows)
    return {
        name: [
            (
                quantity.title,
                [quantity.told(rows.get(name, {}).get(column)) for rows in kept]
                + [quantity.told(rows.get(name, {}).get(column), True) for rows in apart],
            )
            for column, quantity in QUANTITIES.items()
        ]
        for name in names
    }
