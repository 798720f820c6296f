"""Parameters as form fields and back: the only file that knows both.

A number field also takes several values, `2, 3, 4` or `2..4` or `0.3..0.7 step 0.1`: that is a sweep.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import gradio as gr
from pydantic import BaseModel

from backend.errors import UserError
from ui.texts import say

MOST_VALUES = 100
_NUMBER = r"(-?(?:\d+(?:\.\d+)?|\.\d+)(?:e-?\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}\s*\.\.\s*{_NUMBER}(?:\s+step\s+{_NUMBER})?", re.IGNORECASE)
# Names whose words alone do not say what they are.
_LABELS = {"act_order": say("compress.act_order"), "group_size": say("compress.group_size")}


@dataclass(frozen=True)
class Parameter:
    """One field of a form, as the schema of its model tells it."""

    name: str
    kind: Literal["integer", "number", "choice", "switch", "text"]
    default: Any
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    help: str = ""

    @property
    def label(self) -> str:
        """The name as a person would write it."""
        return _LABELS.get(self.name, self.name.replace("_", " ").capitalize())

    @property
    def allowed(self) -> str:
        """The range in words."""
        low, high = self.low, self.high
        if low is not None and high is not None:
            return say("compress.range", low=low, high=high)
        return (
            say("compress.at_least", low=low)
            if low is not None
            else say("compress.at_most", high=high)
            if high is not None
            else ""
        )


def parameters(model: type[BaseModel], without: Sequence[str] = ()) -> list[Parameter]:
    """The fields of a parameter model, in its order; RuntimeError for a type that has no field yet."""
    properties = model.model_json_schema()["properties"]
    return [_parameter(name, properties[name]) for name in model.model_fields if name not in without]


def _parameter(name: str, schema: Mapping[str, Any]) -> Parameter:
    default, told = schema.get("default"), schema.get("description", "")
    if "enum" in schema:
        return Parameter(name, "choice", default, tuple(schema["enum"]), help=told)
    kinds: dict[Any, Literal["integer", "number", "switch", "text"]] = {
        "integer": "integer", "number": "number", "boolean": "switch", "string": "text",
    }  # fmt: skip
    kind = kinds.get(schema.get("type"))
    if kind is None:
        raise RuntimeError(f"parameter {name}: there is no form field for {schema}")
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    return Parameter(name, kind, default, low=low, high=high, help=told)


def shown(parameter: Parameter, value: Any) -> Any:
    """A value as its field shows it: numbers and lists of them as text."""
    if value is None:
        value = parameter.default
    if parameter.kind in ("choice", "switch", "text"):
        return value
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"{one:.12g}" if isinstance(one, float) else str(one) for one in values)


def field(
    parameter: Parameter, value: Any = None, elem_id: str | None = None, **options: Any
) -> gr.Component:
    """The component for a parameter, holding `value` or the default."""
    told: dict[str, Any] = {"label": parameter.label, "elem_id": elem_id, "info": parameter.help or None}
    # Gradio takes a field inside a render for an output unless it is told that people write in it.
    told |= {"min_width": 130, "interactive": True, **options}
    start = shown(parameter, value)
    if parameter.kind == "switch":
        return gr.Checkbox(bool(start), **told)
    if parameter.kind == "choice":
        return gr.Dropdown(list(parameter.choices), value=start, **told)
    if parameter.kind == "text":
        return gr.Textbox(start, **told)
    return gr.Textbox(start, placeholder=parameter.allowed, max_lines=1, **told)


def read(parameter: Parameter, value: Any, where: str = "") -> Any:
    """What a field holds as recipe JSON: one value, or a list for a sweep. UserError names the field."""
    if parameter.kind == "switch":
        return bool(value)
    if parameter.kind in ("choice", "text"):
        return value
    name = f"{where}: {parameter.name}" if where else parameter.name
    text = str(value if value is not None else "").strip()
    if not text:
        raise UserError(
            say("compress.empty_field", name=name, allowed=parameter.allowed or say("compress.a_number"))
        )
    values = [number for piece in text.split(",") for number in _numbers(piece.strip(), parameter, name)]
    if len(values) > MOST_VALUES:
        raise UserError(say("compress.too_many_values", name=name, count=len(values), most=MOST_VALUES))
    return values[0] if len(values) == 1 else values


def read_all(fields: Sequence[Parameter], values: Sequence[Any], where: str = "") -> dict[str, Any]:
    """All fields of a form as recipe JSON."""
    return {field.name: read(field, value, where) for field, value in zip(fields, values, strict=True)}


def _numbers(piece: str, parameter: Parameter, name: str) -> list[float | int]:
    if found := _RANGE.fullmatch(piece):
        try:
            first, last = Decimal(found[1]), Decimal(found[2])
            step = Decimal(found[3]) if found[3] else Decimal(1)
        except ArithmeticError:
            raise UserError(say("compress.not_a_range", name=name, piece=piece[:40])) from None
        if step <= 0 or first > last or (last - first) / step > MOST_VALUES:
            raise UserError(say("compress.too_long_a_range", name=name, piece=piece[:40], most=MOST_VALUES))
        # Decimal steps: 0.3 + 0.1 must stay 0.4.
        count = int((last - first) / step) + 1
        return [_number(str(first + step * index), parameter, name) for index in range(count)]
    return [_number(piece, parameter, name)]


def _number(text: str, parameter: Parameter, name: str) -> float | int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        told = say("compress.several_values", allowed=parameter.allowed or say("compress.a_number"))
        raise UserError(say("compress.not_a_number", name=name, text=text[:40], told=told))
    if parameter.kind == "integer" and value == int(value):
        return int(value)
    return value
