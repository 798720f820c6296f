"""What a run is: a model, a chain of stages, calibration, evaluation and a seed; as JSON and as a digest."""

import fnmatch
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend import plans
from backend.errors import UserError
from backend.parameters import GROUPED_ROW, MIXTURE, aim_of
from backend.registry import discover
from backend.rules import check_order


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Calibration(Frozen):
    """The text that statistics are gathered on, and how the walk feeds it through the model."""

    text: Annotated[str, Field(min_length=1)] = "wikipedia-en"
    samples: Annotated[int, Field(ge=1, le=4096)] = 64
    length: Annotated[int, Field(ge=8, le=32768)] = 512
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    order: Literal["sequential", "true_sequential", "dense"] = "sequential"


class Evaluation(Frozen):
    """The text and windows that metrics are measured on."""

    text: Annotated[str, Field(min_length=1)] = "wikipedia-en"
    length: Annotated[int, Field(ge=8, le=32768)] = 2048
    windows: Annotated[int, Field(ge=1, le=4096)] = 24
    metrics: tuple[str, ...] = ("perplexity", "divergence")


class Stage(Frozen):
    """One method with its parameters; `only` is a glob over the names of the linears it is applied to."""

    method: str
    params: dict[str, Any] = {}
    only: str | None = None

    def covers(self, layer: str) -> bool:
        """Whether this stage works on the linear called `layer`."""
        return self.only is None or fnmatch.fnmatchcase(layer, self.only)

    @property
    def text(self) -> str:
        """The text that the statistics of this stage are gathered on, empty where it is the recipe's."""
        return str(self.params.get("text", ""))


class Recipe(Frozen):
    """One run, complete: the same recipe on the same weights gives the same numbers.

    plan    {linear: {parameter: value}} laid over the stages' own parameters (see backend.plans)
    """

    version: Literal[1] = 1
    model: Annotated[str, Field(min_length=1, max_length=500)]
    stages: tuple[Stage, ...] = ()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    plan: dict[str, dict[str, int | float | bool | str | tuple[str, ...]]] = {}

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces."""
        told = self.model_dump(mode="json")
        # A recipe without a plan reads as it did before there were plans: its digest is its name.
        if not self.plan:
            del told["plan"]
        return json.dumps(told, sort_keys=True, separators=(",", ":"))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that stages are fitted on: that of the calibration, and those of single stages."""
        return tuple(dict.fromkeys((self.calibration.text, *(s.text for s in self.stages if s.text))))

    def digest(self, fingerprint: str) -> str:
        """sha256 (64 hex digits) of the canonical JSON together with the fingerprint of the weights."""
        return hashlib.sha256(f"{fingerprint}\n{self.to_json()}".encode()).hexdigest()

    def chain(self) -> str:
        """The stages in a few words, e.g. `wanda 2:4 → gptq 3-bit g64 → eora r64`; `dense` without stages."""
        planned: set[str] = set()
        words = []
        for stage in self.stages:
            words.append(_words(stage, self.plan, planned))
            # From here on the plan's number counts, not the stage's own.
            if aim := discover().methods[stage.method].planned(stage.params):
                planned.add(aim)
        told = " → ".join(words) or "dense"
        return f"{told}, plan {plans.mark(self.plan)}" if self.plan else told

    def with_plan(self, plan: plans.Plan) -> "Recipe":
        """The same chain with a plan that its allocate stages found, in place of them."""
        stages = [
            stage.model_dump(mode="json")
            for stage in self.stages
            if not discover().methods[stage.method].plans
        ]
        return parse_recipe({**self.model_dump(mode="json"), "stages": stages, "plan": plan})

    def stages_of(self, layer: str) -> list[tuple[int, Stage]]:
        """The numbered stages that work on the linear `layer`, its plan laid over their parameters."""
        return planned_stages(enumerate(self.stages, start=1), self.plan, layer)


def planned_stages(
    stages: Iterable[tuple[int, Stage]], plan: plans.Plan, layer: str
) -> list[tuple[int, Stage]]:
    """Those of the numbered stages that work on the linear `layer`, a plan laid over their parameters."""
    found = []
    for number, stage in stages:
        params = plans.laid_over(stage.method, stage.params, plan.get(layer, {}))
        if params is not None and stage.covers(layer):
            found.append((number, stage.model_copy(update={"params": params})))
    return found


def parse_recipe(data: str | Mapping[str, Any]) -> Recipe:
    """A checked Recipe with every parameter written out; UserError names stage, field, value and range.

    Writing the defaults out makes recipes that say the same thing in other words one run.
    """
    raw = json_object(data, "recipe")
    try:
        # Through JSON, where lists stand for tuples and nothing else is stretched to fit.
        recipe = Recipe.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise UserError(_sentence(error, "recipe", Recipe)) from None
    stages = tuple(
        _complete(stage, f"stage {number}, {stage.method}")
        for number, stage in enumerate(recipe.stages, start=1)
    )
    _check_metrics(recipe.evaluation)
    check_order(stages)
    of_layers = [stage for stage in stages if discover().methods[stage.method].shape == "layer"]
    plans.check_plan(recipe.plan, [(stage.method, stage.params) for stage in of_layers])
    return recipe.model_copy(update={"stages": stages})


def sentence_of(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """The first complaint of pydantic as one plain sentence: where, field, value, what is allowed."""
    return _sentence(error, where, model)


# Parameters that every chain tells, in words of their own.
_ALWAYS = ("table", "ratio", "blocks")
_TOLD = {"pattern", "sparsity", "bits", "group_size", "rank", *_ALWAYS}


_PLANNED = {"bits": "{}-bit", "group_size": "g{}", "rank": "r{}", "sparsity": "{}", "pattern": "{}"}


def _words(stage: Stage, plan: plans.Plan, ruled: Collection[str] = ()) -> str:
    """A stage in a few words; of parameters that are `ruled` by an earlier stage it says nothing."""
    if discover().methods[stage.method].plans:
        ruled = ()
    planned = plans.words(plan, stage.method)
    over = stage.params.get("over", "")
    unused = [key for key in ("bits", "sparsity", "rank") if over and key != aim_of(over)]
    params = {
        key: value
        for key, value in stage.params.items()
        if key not in planned and key not in (*unused, *ruled, "over")
    }
    words = [discover().methods[stage.method].spoken]
    if over == MIXTURE:
        words.append(over)
    words += [
        _PLANNED.get(name, name.replace("_", " ") + " {}").format(told) for name, told in planned.items()
    ]
    if "pattern" in params and params["pattern"] != "free":
        words.append(params["pattern"])
    elif "sparsity" in params:
        words.append(f"{params['sparsity']:.3g}")
    if "bits" in params:
        words.append(f"{params['bits']:g}-bit")
    if "group_size" in params:
        # Where scales may be shared by something else than a row, that is told.
        shared = params.get("scales", "row")
        words.append(str(shared) if params["group_size"] == GROUPED_ROW else f"g{params['group_size']}")
    if "rank" in params:
        words.append(f"r{params['rank']}")
    for name in _ALWAYS:
        if name in params:
            words.append(f"{params[name]}")
    # What is left is told where somebody chose it, so that two different runs never read alike.
    fields = discover().methods[stage.method].params.model_fields
    chosen = {name: value for name, value in params.items() if value != fields[name].default}
    told = _TOLD | ({"scales"} if params.get("group_size") == GROUPED_ROW else set())
    for name in sorted(chosen.keys() - told):
        spoken = name.replace("_", " ")
        words.append(spoken if chosen[name] is True else f"{spoken} {chosen[name]}")
    if discover().methods[stage.method].inputs:
        words.append("(simulated)")
    if stage.only:
        words.append(f"on {stage.only}")
    if skipping := plans.skipping(plan, stage.method):
        words.append(f"not on {skipping} linears")
    return " ".join(words)


def json_object(data: str | Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """A JSON object from text; UserError names `what` it should have been."""
    if isinstance(data, str):
        try:
            data = json.loads(data, object_pairs_hook=_no_doubles)
        except ValueError as error:
            raise UserError(f"{what}: not valid JSON ({error})") from None
        except RecursionError:
            raise UserError(f"{what}: nested too deeply to be one; stages and params are enough") from None
    if not isinstance(data, Mapping):
        found = _JSON.get(type(data), "something else")
        raise UserError(f"{what}: expected a JSON object with model and stages, found {found}")
    return data


# What JSON calls what Python reads from it.
_JSON = {
    list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice")
    return dict(pairs)


def _known(asked: str) -> str:
    """What there is instead of a method that there is not: those of its kind, or that sound like it."""
    known = discover().methods
    kind = asked.split(".")[0]
    near = [name for name in known if name.startswith(f"{kind}.")] or get_close_matches(asked, known, 5, 0.4)
    return f"known of this kind: {', '.join(near)}" if near else "`python app.py methods` lists them"


def _complete(stage: Stage, where: str) -> Stage:
    found = discover().methods.get(stage.method)
    if found is None:
        raise UserError(f"{where}: no such method; {_known(stage.method)}")
    try:
        params = found.params.model_validate(stage.params, strict=True).model_dump(mode="json")
    except ValidationError as error:
        raise UserError(_sentence(error, where, found.params)) from None
    if params.get("pattern", "free") != "free" and params.get("sparsity", 0.5) != 0.5:
        raise UserError(
            f"{where}: sparsity is {params['sparsity']}, but pattern {params['pattern']} zeroes half; "
            "allowed: sparsity 0.5, or pattern free"
        )
    return stage.model_copy(update={"params": params})


def _check_metrics(evaluation: Evaluation) -> None:
    known = discover().metrics
    if not evaluation.metrics:
        raise UserError(f"evaluation: metrics is []; allowed: one or more of {', '.join(known)}")
    for name in evaluation.metrics:
        if name not in known:
            raise UserError(f"evaluation: metrics names '{name}'; allowed: {', '.join(known)}")


def _sentence(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    first = error.errors(include_url=False)[0]
    path = list(first["loc"])
    if path[:1] == ["stages"] and len(path) > 1 and isinstance(path[1], int):
        where, path = f"stage {path[1] + 1}", path[2:]
    field = ".".join(str(step) for step in path) or "value"
    shown = json.dumps(first["input"], default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if first["type"] == "extra_forbidden":
        owner = model if len(first["loc"]) == 1 else _owner(model, first["loc"][:-1])
        known = ", ".join(owner.model_fields) if owner else ""
        return f"{where}: unknown field {field} ({shown}); allowed: {known}"
    if first["type"] == "missing":
        return f"{where}: {field} is missing; it is required"
    return f"{where}: {field} is {shown}; allowed: {_allowed(first, model)}"


def _owner(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    sections: dict[str, type[BaseModel]] = {
        "calibration": Calibration,
        "evaluation": Evaluation,
        "stages": Stage,
    }
    return sections.get(str(path[0]), model) if path else model


def _allowed(first: Mapping[str, Any], model: type[BaseModel]) -> str:
    context = first.get("ctx", {})
    owner = _owner(model, first["loc"][:-1]) if len(first["loc"]) > 1 else model
    if owner and first["loc"][-1] in owner.model_fields:
        schema = owner.model_json_schema()["properties"][first["loc"][-1]]
        limits = [schema.get(name) for name in ("minimum", "maximum", "exclusiveMaximum", "exclusiveMinimum")]
        if schema.get("type") in ("integer", "number") and first["type"] not in (
            "value_error",
            "literal_error",
        ):
            low, high, below, above = limits
            whole = "a whole number" if schema["type"] == "integer" else "a number"
            start = f" above {above}" if above is not None else "" if low is None else f" from {low}"
            end = (
                ""
                if high is None and below is None
                else f" to {high}"
                if below is None
                else f" below {below}"
            )
            return whole + start + end
    words = {
        "greater_than_equal": lambda: f"{context['ge']} or more",
        "less_than_equal": lambda: f"{context['le']} or less",
        "less_than": lambda: f"less than {context['lt']}",
        "greater_than": lambda: f"more than {context['gt']}",
        "literal_error": lambda: str(context["expected"]),
        "value_error": lambda: str(context["error"]),
    }
    kind = str(first["type"])
    message = words[kind]() if kind in words else str(first["msg"])
    return message.removeprefix("Input should be ")
