"""A recipe as the fields of a form, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import UserError
from backend.models import CARDS
from backend.recipe import Calibration, Evaluation, Recipe
from backend.registry import discover
from backend.sweep import parse_sweep
from ui import forms
from ui.texts import say

MOST_STAGES = 5
MOST_RUNS = 500

Template = dict[str, Any]

CALIBRATION = forms.parameters(Calibration, without=("text",))
EVALUATION = forms.parameters(Evaluation, without=("text", "metrics"))


def staged(chain: Sequence[Mapping[str, Any]]) -> list[Template]:
    """The stages of a recipe as the page keeps them: what every field shows, and a key of its own."""
    stages = []
    for number, stage in enumerate(chain[:MOST_STAGES]):
        method = discover().methods.get(str(stage.get("method")))
        if method is None:
            raise UserError(
                say("compress.no_such_method", number=number + 1, method=str(stage.get("method"))[:60])
            )
        given = stage.get("params", {})
        values = {
            field.name: forms.shown(field, given.get(field.name)) for field in forms.parameters(method.params)
        }
        stages.append({"key": number, "method": method.id, "values": values, "only": stage.get("only") or ""})
    return stages


def template_of(
    model: str,
    stages: Sequence[Template],
    calibration: tuple[str, Sequence[Any]],
    evaluation: tuple[str, Sequence[Any], Sequence[str]],
    plan: Mapping[str, Any],
) -> Template:
    """The form as a sweep's template: (text, field values) of calibration, and the metrics of evaluation.

    `plan` is a recipe's own; the form has no fields for it and passes it on.
    """
    chain = []
    for number, stage in enumerate(stages, start=1):
        fields = forms.parameters(discover().methods[stage["method"]].params)
        where = say("compress.stage_name", number=number, method=stage["method"])
        params = {field.name: forms.read(field, stage["values"][field.name], where) for field in fields}
        if params.get("pattern", "free") != "free":
            # A pattern zeroes half by itself; what the idle field shows must not contradict it.
            params.pop("sparsity", None)
        entry: Template = {"method": stage["method"], "params": params}
        if stage["only"].strip():
            entry["only"] = stage["only"].strip()
        chain.append(entry)
    text, values = calibration
    scored_text, scored_values, metrics = evaluation
    return {
        "version": 1,
        "model": (model or "").strip(),
        "stages": chain,
        "calibration": {"text": text, **forms.read_all(CALIBRATION, values, "calibration")},
        "evaluation": {
            "text": scored_text,
            **forms.read_all(EVALUATION, scored_values, "evaluation"),
            "metrics": list(metrics),
        },
        **({"plan": dict(plan)} if plan else {}),
    }


def recipes_of(template: Template | str) -> list[Recipe]:
    """All recipes that a template names; UserError on the first that is wrong, or when there are too many."""
    recipes = parse_sweep(template).expand()
    if len(recipes) > MOST_RUNS:
        raise UserError(say("compress.too_many_runs", count=len(recipes), most=MOST_RUNS))
    return recipes


def form_of(
    template: Mapping[str, Any],
) -> tuple[str, list[Template], list[Any], list[Any], dict[str, Any]]:
    """A recipe or sweep as (model, stages, calibration row, evaluation row, plan) of the form."""
    chain = template.get("stages") or []
    if any(not isinstance(stage, Mapping) or not isinstance(stage.get("method"), str) for stage in chain):
        raise UserError(say("compress.not_one_chain"))
    if len(chain) > MOST_STAGES:
        raise UserError(say("compress.too_long_for_the_form", count=len(chain), most=MOST_STAGES))
    first, second = template.get("calibration") or {}, template.get("evaluation") or {}
    calibration = [first.get("text", Calibration().text)]
    calibration += [forms.shown(field, first.get(field.name)) for field in CALIBRATION]
    evaluation = [second.get("text", Evaluation().text)]
    evaluation += [forms.shown(field, second.get(field.name)) for field in EVALUATION]
    evaluation.append(list(second.get("metrics", Evaluation().metrics)))
    model, plan = str(template.get("model") or CARDS[0].id), dict(template.get("plan") or {})
    return model, staged(chain), calibration, evaluation, plan


def added(stages: list[Template], method: str) -> list[Template]:
    """The stages with a new one of this method at the end."""
    if len(stages) >= MOST_STAGES:
        raise UserError(say("compress.too_many_stages", most=MOST_STAGES))
    (stage,) = staged([{"method": method}])
    return [*stages, stage | {"key": 1 + max((other["key"] for other in stages), default=-1)}]


def moved(stages: list[Template], key: int, by: int) -> list[Template]:
    """The stages with one moved up (-1), down (1) or, for 0, taken away."""
    at = next((index for index, stage in enumerate(stages) if stage["key"] == key), None)
    if at is None:
        return stages
    rest = stages[:at] + stages[at + 1 :]
    if by == 0:
        return rest
    to = min(max(0, at + by), len(rest))
    return [*rest[:to], stages[at], *rest[to:]]


def edited(stages: list[Template], key: int, name: str, value: Any) -> list[Template]:
    """The stages with one field changed; the name `only` is the glob over layers."""
    changed = []
    for stage in stages:
        if stage["key"] == key:
            stage = (
                stage | {"only": value or ""}
                if name == "only"
                else stage | {"values": stage["values"] | {name: value}}
            )
        changed.append(stage)
    return changed
