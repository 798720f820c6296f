"""What methods and metrics exist: the place of a file is its registration, its signature is its form."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, create_model

import backend.methods
import backend.metrics
from backend.costs import Cost
from backend.parameters import aim_of
from backend.sizes import Matrix
from backend.views import Need

Kind = Literal[
    "transform", "prune", "quantize", "factorize", "compensate", "allocate",
    "cache", "attention", "head", "recover", "decode",
]  # fmt: skip
Shape = Literal["layer", "work"]
Whose = Literal["paper", "ours"]
Stored = Callable[[Matrix, Mapping[str, Any]], int]
Keeps = Callable[[int, int, Mapping[str, Any]], int]
Tries = Callable[[Mapping[str, Any]], Sequence[Any]]
Scores = Callable[[Mapping[str, Any]], int]
Asks = Callable[[Mapping[str, Any]], Need]
# Names that two methods have whose parameters do not tell them apart, or that say nothing alone.
_SHARED = ("blocks", "linears")
# (layout of a model, parameters) -> the layout that is left
Shrinks = Callable[[Any, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Claim:
    """A claim as a comparison: `better` stages beat `worse` ones on `metric` at equal or fewer bytes.

    `metric` is one that keeps a value a window, less of it being better. With `more_bytes` the claim is about
    quality alone: what is added has its price in bytes, and the verdict states both sizes.
    `whose`: `paper` where the paper makes this comparison in this setting, on models of its own; `ours` where
    the baseline, the setting or a part of the method is another, and `paper_says` what the paper claims.
    """

    text: str
    better: tuple[dict[str, Any], ...]
    worse: tuple[dict[str, Any], ...]
    metric: str = "perplexity"
    more_bytes: bool = False
    whose: Whose = field(kw_only=True)
    paper_says: str = ""


@dataclass(frozen=True)
class Method:
    """One compression method; `shape` says whether it is handed a Layer or the whole Work.

    `needs` is what it must know of the inputs with its defaults; `asks` tells it for any parameters.
    `plans` names the parameter of later stages that it decides for each linear, unless its own `over` does.
    `passes` counts the passes of a sample through every block, a gradient counting as two more.
    `cost` says how long a linear takes where nothing else tells; unsaid it is that of rounding.
    `tries` lists the values of it that a linear may get, `scores` how many windows the search runs.
    `keeps` counts the weights that pruning a linear [rows, inputs] by its sparsity leaves.
    `shrinks` says what layout is left by a method that makes the model itself smaller.
    `empties` says that it leaves nothing of a linear.
    `follows` is the one kind of stage that may have worked on a linear before it.
    `unties` gives the head weights of its own; `inputs` says that it leaves the weights alone.
    `pads` says that a group may be cut short by the end of a row: its parts are codes and outliers alone.
    `stored` counts the bytes of what replaces a linear's values, from its shape and the parameters alone.
    """

    id: str
    kind: str
    name: str
    shape: Shape
    fn: Callable[..., Any]
    needs: Need
    paper: str
    params: type[BaseModel]
    claim: Claim | None
    doc: str
    stored: Stored | None = None
    plans: str | None = None
    keeps: Keeps | None = None
    unties: bool = False
    inputs: bool = False
    tries: Tries | None = None
    scores: Scores | None = None
    passes: Scores | None = None
    shrinks: Shrinks | None = None
    pads: bool = False
    follows: str | None = None
    empties: bool = False
    cost: Cost | None = None
    asked: Asks | None = None

    def asks(self, params: Mapping[str, Any]) -> Need:
        """What a stage with these parameters, not all of them given, must know of the inputs."""
        return self.asked(self.params.model_validate(params).model_dump()) if self.asked else self.needs

    def planned(self, params: Mapping[str, Any]) -> str | None:
        """The parameter of later stages that a stage with these parameters decides, or None."""
        return aim_of(str(params.get("over", self.plans))) if self.plans else None

    @property
    def spoken(self) -> str:
        """As chains call it: by its whole id where the name alone would not tell which it is."""
        return self.id if self.name in _SHARED else self.name

    @property
    def summary(self) -> str:
        """First sentence of the docstring of the method's file."""
        return self.doc.strip().split("\n\n")[0].replace("\n", " ")


@dataclass(frozen=True)
class Metric:
    """One way to measure an artifact: `fn(subject)` yields measurements."""

    id: str
    fn: Callable[..., Any]
    doc: str


@dataclass(frozen=True)
class Registry:
    """All methods and metrics by id."""

    methods: dict[str, Method]
    metrics: dict[str, Metric]


def method(
    *,
    paper: str,
    needs: Need | Asks = "nothing",
    claim: Claim | None = None,
    stored: Stored | None = None,
    plans: str | None = None,
    keeps: Keeps | None = None,
    unties: bool = False,
    inputs: bool = False,
    tries: Tries | None = None,
    scores: Scores | None = None,
    passes: Scores | None = None,
    shrinks: Shrinks | None = None,
    pads: bool = False,
    follows: str | None = None,
    empties: bool = False,
    cost: Cost | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark the one public function of a file in backend/methods/<kind>/ as the method of that name."""

    def mark(fn: Callable[..., Any]) -> Callable[..., Any]:
        fn.__dict__["method"] = {
            "paper": paper, "needs": needs, "claim": claim, "stored": stored, "plans": plans,
            "keeps": keeps, "unties": unties, "inputs": inputs, "tries": tries, "scores": scores,
            "passes": passes, "shrinks": shrinks, "pads": pads, "follows": follows,
            "empties": empties, "cost": cost,
        }  # fmt: skip
        return fn

    return mark


def metric(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the one public function of a file in backend/metrics/ as the metric of that name."""
    fn.__dict__["metric"] = True
    return fn


@cache
def discover() -> Registry:
    """Import every file below backend/methods and backend/metrics; raise on anything odd."""
    methods: dict[str, Method] = {}
    root = Path(backend.methods.__path__[0])
    for folder in sorted({file.parent for file in root.glob("*/*.py")}):
        if not (folder / "__init__.py").exists():
            raise RuntimeError(f"{folder} has no __init__.py, so its methods would not be found")
    for kind in _modules(backend.methods):
        kind_name = kind.__name__.rsplit(".", 1)[1]
        if kind_name not in get_args(Kind):
            raise RuntimeError(f"{kind.__name__}: unknown kind of method; known: {', '.join(get_args(Kind))}")
        for module in _modules(kind):
            entry = build_method(kind_name, module)
            methods[entry.id] = entry
    metrics: dict[str, Metric] = {}
    for module in _modules(backend.metrics):
        name = module.__name__.rsplit(".", 1)[1]
        metrics[name] = Metric(name, _marked(module, name, "metric"), module.__doc__ or "")
    return Registry(methods, metrics)


def build_method(kind: str, module: ModuleType) -> Method:
    """The Method that a module defines; RuntimeError when the module breaks a rule of the house."""
    name = module.__name__.rsplit(".", 1)[1]
    fn = _marked(module, name, "method")
    if not (module.__doc__ or "").strip():
        raise RuntimeError(f"{module.__name__}: a method file opens with a docstring")
    arguments = list(inspect.signature(fn, eval_str=True).parameters.values())
    if not arguments or arguments[0].name not in ("layer", "work"):
        raise RuntimeError(f"{module.__name__}: the first argument is named layer or work")
    fields: dict[str, Any] = {}
    for argument in arguments[1:]:
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY or argument.default is inspect.Parameter.empty:
            raise RuntimeError(f"{module.__name__}: {argument.name} must be keyword-only with a default")
        if argument.annotation is inspect.Parameter.empty:
            raise RuntimeError(f"{module.__name__}: {argument.name} has no type")
        fields[argument.name] = (argument.annotation, argument.default)
    params = create_model(
        name, __config__=ConfigDict(extra="forbid", frozen=True, validate_default=True), **fields
    )
    defaults = params().model_dump()
    facts = fn.__dict__["method"]
    asked = facts["needs"] if callable(facts["needs"]) else None
    return Method(
        f"{kind}.{name}", kind, name, "layer" if arguments[0].name == "layer" else "work", fn,
        asked(defaults) if asked else facts["needs"], facts["paper"], params, facts["claim"],
        module.__doc__ or "", facts["stored"],
        facts["plans"], facts["keeps"], facts["unties"], facts["inputs"], facts["tries"], facts["scores"],
        facts["passes"], facts["shrinks"], facts["pads"], facts["follows"], facts["empties"],
        facts["cost"], asked,
    )  # fmt: skip


def _modules(package: ModuleType) -> list[ModuleType]:
    names = sorted(entry.name for entry in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def _marked(module: ModuleType, name: str, mark: str) -> Callable[..., Any]:
    fn = getattr(module, name, None)
    if fn is None or mark not in getattr(fn, "__dict__", {}):
        raise RuntimeError(f"{module.__name__}: expected a function {name} marked @{mark}")
    return fn
