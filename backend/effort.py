"""How much work the phases of a run are, counted from shapes alone."""

from collections.abc import Iterator

from backend import plans
from backend.models import ModelFacts
from backend.recipe import Recipe
from backend.registry import Tries, discover
from backend.rules import needs_of

# Seconds per unit (see `work_units`) on two cores that multiply bfloat16 at `_FIRST_SPEED`, until runs on
# this machine say better. Of a pass, half was products; a Gram matrix is nothing else, in float32.
_FIRST_RATES = {
    "pass": 2.5e-11,
    "gram": 1.2e-11,
    "solve": 4e-12,
    "plain": 2e-8,
    "score": 1.6e-11,
    "fixed": 5.0,
}

_FIRST_SPEED, _FIRST_WIDE = 390.0, 130.0
_PRODUCTS = {"pass": 0.5, "score": 0.5, "gram": 1.0}


def first_rates(speed: float | None, wide: float | None) -> dict[str, float]:
    """Seconds per unit of work before any run: `speed` of the products of models, `wide` of float32 ones, in
    10^9 FLOP/s, as far as they were measured."""
    rates = dict(_FIRST_RATES)
    for unit, share in _PRODUCTS.items():
        first, now = (_FIRST_WIDE, wide) if unit == "gram" else (_FIRST_SPEED, speed)
        if now:
            rates[unit] *= 1 - share + share * first / now
    return rates


def work_units(recipe: Recipe, layout: ModelFacts) -> list[tuple[str, str, float]]:
    """(phase, unit, amount): how much of which work a run does; seconds are rate[unit] * amount."""
    methods = discover().methods
    tokens = recipe.calibration.samples * recipe.calibration.length
    weights = sum(rows * inputs for rows, inputs in layout.layers.values())
    needs = needs_of(recipe)
    work: list[tuple[str, str, float]] = [("load", "fixed", 1.0)]
    if needs - {"nothing"}:
        work += [("outputs", "pass", tokens * weights), ("statistics", "pass", tokens * weights)]
    if needs & {"gram", "inputs"}:
        squares = sum(max(shape) * min(shape) for shape in layout.layers.values())
        work.append(("statistics", "gram", tokens * squares))
    for number, stage in enumerate(recipe.stages, start=1):
        covered = [shape for name, shape in layout.layers.items() if stage.covers(name)]
        phase = f"stage {number}, {stage.method}"
        if tries := methods[stage.method].tries:
            work += [(phase, unit, amount) for unit, amount in _search(recipe, layout, number, tries)]
        elif passes := methods[stage.method].passes:
            tokens_passed = passes(stage.params) * recipe.calibration.length
            work.append(
                (phase, "pass", float(tokens_passed * sum(rows * inputs for rows, inputs in covered)))
            )
        elif methods[stage.method].needs == "gram":
            work.append((phase, "solve", float(sum(rows * inputs * inputs for rows, inputs in covered))))
        else:
            work.append((phase, "plain", float(sum(rows * inputs for rows, inputs in covered))))
    scored = recipe.evaluation.windows * recipe.evaluation.length * layout.parameters
    work.append(("perplexity", "score", scored * (2.2 if "divergence" in recipe.evaluation.metrics else 1.0)))
    work.append(("rest", "fixed", 6.0))
    return work


def _search(recipe: Recipe, layout: ModelFacts, number: int, tries: Tries) -> Iterator[tuple[str, float]]:
    """(unit, amount) of making every value that stage `number` tries, and of running the model on windows."""
    methods, stage = discover().methods, recipe.stages[number - 1]
    shapes = layout.layers.values()
    squares = sum(rows * inputs * inputs for rows, inputs in shapes)
    weights = sum(rows * inputs for rows, inputs in shapes)
    tokens = recipe.calibration.samples * recipe.calibration.length
    yield "gram", float(tokens * sum(max(shape) * min(shape) for shape in shapes))
    yield "pass", float(tokens * weights)
    after = [later.method for later in recipe.stages[number:]]
    count = len(plans.ways(after, stage.params["over"], tries(stage.params)))
    for later in recipe.stages[number:]:
        solves = methods[later.method].needs == "gram"
        yield ("solve", float(count * squares)) if solves else ("plain", float(count * weights))
    if scores := methods[stage.method].scores:
        yield "score", float(scores(stage.params) * recipe.calibration.length * layout.parameters)
