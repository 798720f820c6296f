"""Plans: what single linears get instead of a stage's own parameters, or which stages leave them alone.

A plan is {linear: {parameter: value}}; its entry `skip` lists the methods that do not touch the linear.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from backend.errors import UserError
from backend.parameters import MIXTURE, aim_of
from backend.registry import discover
from backend.views import SKIP

Plan = Mapping[str, Mapping[str, Any]]
# Kinds of stages that a mixture switches on and off, where they work linear by linear.
_SWITCHED = ("prune", "compensate")


def laid_over(method: str, params: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any] | None:
    """A stage's parameters for one linear, or None when the stage leaves it alone."""
    if method in planned.get(SKIP, ()):
        return None
    fields = discover().methods[method].params.model_fields
    return {**params, **{key: value for key, value in planned.items() if key in fields}}


def switches(method: str) -> bool:
    """Whether a mixture may use a method for some linears and not for others."""
    found = discover().methods[method]
    return found.kind in _SWITCHED and found.shape == "layer"


def switched(methods: Sequence[str], over: str = MIXTURE) -> list[tuple[str, ...]]:
    """What a mixture may skip of the methods of later stages, most first: those that prune, those that
    compensate, both or none; what differs `over` one parameter skips nothing."""
    known = discover().methods
    able = [name for name in methods if over == MIXTURE and switches(name) and not known[name].empties]
    groups = [tuple(name for name in able if known[name].kind == kind) for kind in _SWITCHED]
    found: list[tuple[str, ...]] = [()]
    for group in filter(None, groups):
        found = [*((*group, *skipped) for skipped in found), *found]
    return found


def ways(methods: Sequence[str], over: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """What a plan may give a linear that differs `over` something, in front of stages of these methods.

    In a mixture each value comes with all that it may skip, those that skip most first; nothing of the linear
    is left in the last way, where a method can do that.
    """
    known, parameter = discover().methods, aim_of(over)
    emptying = tuple(name for name in methods if over == MIXTURE and known[name].empties)
    found = [
        {parameter: value, **_skipping((*emptying, *skipped))}
        for skipped in switched(methods, over)
        for value in values
    ]
    if emptying:
        others = tuple(name for name in methods if switches(name) and name not in emptying)
        found.append({parameter: values[0], **_skipping(others)})
    return found


def _skipping(methods: Sequence[str]) -> dict[str, Any]:
    return {SKIP: list(methods)} if methods else {}


def check_plan(plan: Plan, stages: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Hold a plan against the (method, parameters) of its recipe's layer stages.

    Raises UserError for a parameter that no stage takes, a value out of range, a stage that is not there.
    """
    methods = discover().methods
    used = [name for name, _ in stages]
    for linear, planned in plan.items():
        where = f"plan, {linear[:120]}"
        for name in planned.get(SKIP, ()):
            if name not in used:
                raise UserError(
                    f"{where}: skip names {str(name)[:60]!r}; allowed: {', '.join(used) or 'no stage'}"
                )
        taken = {field for name in used for field in methods[name].params.model_fields}
        if unknown := sorted(planned.keys() - taken - {SKIP}):
            raise UserError(
                f"{where}: no stage takes {unknown[0][:60]!r}; allowed: {', '.join(sorted(taken))}, skip"
            )
        for name, params in stages:
            given = laid_over(name, params, planned)
            if given is None:
                continue
            try:
                methods[name].params.model_validate(given, strict=True)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                field = ".".join(str(step) for step in first["loc"])
                raise UserError(
                    f"{where}: {field} is {first['input']!r} for {name}; {first['msg']}"
                ) from None


def words(plan: Plan, method: str) -> dict[str, str]:
    """{parameter: what a plan makes of it, as a range} for one method; empty when it is not planned."""
    seen: dict[str, set[Any]] = {}
    for planned in plan.values():
        given = laid_over(method, {}, planned)
        for key, value in (given or {}).items():
            seen.setdefault(key, set()).add(value)
    return {key: _range(values) for key, values in seen.items()}


def skipping(plan: Plan, method: str) -> int:
    """How many linears a plan lets one method leave alone."""
    return sum(method in planned.get(SKIP, ()) for planned in plan.values())


def mark(plan: Plan) -> str:
    """A few letters that tell two plans apart."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:4]


def _range(values: set[Any]) -> str:
    if len(values) == 1:
        return _told(next(iter(values)))
    if all(isinstance(value, int | float) for value in values):
        return f"{_told(min(values))}\N{EN DASH}{_told(max(values))}"
    return "/".join(sorted(map(str, values)))


def _told(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
