"""How far a compression is, part by part, each by the time that it is likely to take."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from backend.effort import first_rates, rate_of, work_units
from backend.facts import ModelFacts
from backend.parameters import PREDICTED_WINDOWS
from backend.progress import SURVEY, WALK, Progress, Update
from backend.recipe import Recipe, Stage
from backend.registry import discover

# What a search says it does before its own work: the levels, then the prediction from gradients.
LEVELS, PREDICTION = "levels", ("gradients", "sensitivity")
# A part that is measured in moments counts as so many seconds.
_LEAST_SECONDS = 1.0
# Of a prediction the passes back take less than the products with every level.
_BACKWARD = 0.3


def parts_of(stages: Sequence[tuple[int, Stage]]) -> list[list[tuple[int, Stage]]]:
    """The numbered stages that are done together: one that is handed the whole model is a part by itself,
    those in one walk over the blocks, on one text, another."""
    methods = discover().methods
    found: list[list[tuple[int, Stage]]] = []
    for number, stage in stages:
        layered = methods[stage.method].shape == "layer"
        if layered and found:
            _, before = found[-1][-1]
            if methods[before.method].shape == "layer" and before.text == stage.text:
                found[-1].append((number, stage))
                continue
        found.append([(number, stage)])
    return found


def seconds_of(
    recipe: Recipe, layout: ModelFacts, rates: Mapping[str, float] | None = None
) -> list[dict[str, float]]:
    """{what the updates of a part call their work: seconds, about}, in order, for each part of a recipe; the
    rates are those of `rate_of`, without them those before any run."""
    rates = rates or first_rates(None, None)
    methods = discover().methods
    phases: dict[str, dict[str, float]] = {}
    for phase, unit, amount in work_units(recipe, layout):
        spent = phases.setdefault(phase, {})
        spent[unit] = spent.get(unit, 0.0) + rate_of(rates, unit) * amount
    walked = sum(sum(phases.get(phase, {}).values()) for phase in ("outputs", "statistics"))
    found: list[dict[str, float]] = []
    for part in parts_of(list(enumerate(recipe.stages, start=1))):
        spent = {}
        for number, stage in part:
            for unit, seconds in phases[f"stage {number}, {stage.method}"].items():
                spent[unit] = spent.get(unit, 0.0) + seconds
        _, first = part[0]
        method, scored = methods[first.method], spent.get("score", 0.0)
        made = max(sum(spent.values()) - scored, _LEAST_SECONDS)
        if method.shape == "layer":
            found.append({WALK: walked + made})
        elif method.tries is None:
            found.append({SURVEY: walked, method.id: made})
        else:
            predicts = first.params.get("start", "fisher") == "fisher"
            windows = method.scores(first.params) if method.scores and predicts else 0
            predicted = scored * min(1.0, PREDICTED_WINDOWS / windows) if windows else 0.0
            backward, products = PREDICTION
            shares = {backward: _BACKWARD * predicted, products: (1 - _BACKWARD) * predicted}
            found.append({LEVELS: made, **shares, method.id: scored - predicted})
    return found


class Headway:
    """Adds to every update which share of the compression is done."""

    def __init__(self, progress: Progress, parts: Sequence[Mapping[str, float]]) -> None:
        """`parts` as of `seconds_of`."""
        self._progress, self._parts = progress, parts
        self._whole = sum(sum(part.values()) for part in parts) or 1.0
        self._part: Mapping[str, float] = {}
        self._before = self._share = 0.0

    def begin(self, number: int) -> None:
        """Part `number`, from 0, comes next; all before it are done."""
        self._part = self._parts[number]
        self._before = sum(sum(part.values()) for part in self._parts[:number])
        self._share = max(self._share, self._before / self._whole)

    def __call__(self, update: Update) -> None:
        """Hand an update on; one that counts other work than the part's moves nothing."""
        # A search is named before it makes its levels: what has done nothing is not ahead of them.
        if update.stage in self._part and update.done > 0:
            names = list(self._part)
            done = sum(self._part[name] for name in names[: names.index(update.stage)])
            done += self._part[update.stage] * min(update.done / update.total, 1.0)
            self._share = max(self._share, (self._before + done) / self._whole)
        self._progress(replace(update, share=self._share))
