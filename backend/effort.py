"""How much work the phases of a run are, counted from shapes and from what methods say they cost."""

from collections.abc import Iterable, Iterator, Mapping

from backend import plans
from backend.costs import Cost
from backend.facts import ModelFacts
from backend.recipe import Recipe, Stage
from backend.registry import Tries, discover
from backend.rules import needs_of

# Seconds per unit (see `work_units`) on two cores that multiply bfloat16 at `_FIRST_SPEED`, until runs on
# this machine say better. Of a pass, half was products; a Gram matrix is nothing else, in float32.
_FIRST_RATES = {
    "pass": 2.5e-11,
    "gram": 1.2e-11,
    "round": 3.8e-9,
    "solve": 2.5e-11,
    "svd": 1.2e-10,
    "score": 1.6e-11,
    "fixed": 5.0,
}

_FIRST_SPEED, _FIRST_WIDE = 390.0, 130.0
_PRODUCTS = {"pass": 0.5, "score": 0.5, "gram": 1.0}
# Comparing the scores with the dense model's takes longer than finding them.
_DIVERGENCE = 1.2


def first_rates(speed: float | None, wide: float | None) -> dict[str, float]:
    """Seconds per unit of work before any run: `speed` of the products of models, `wide` of float32 ones, in
    10^9 FLOP/s, as far as they were measured."""
    rates = dict(_FIRST_RATES)
    for unit, share in _PRODUCTS.items():
        first, now = (_FIRST_WIDE, wide) if unit == "gram" else (_FIRST_SPEED, speed)
        if now:
            rates[unit] *= 1 - share + share * first / now
    return rates


def rate_of(rates: Mapping[str, float], unit: str) -> float:
    """Seconds per unit of work; a method's own unit costs what its kind does until runs say better."""
    return rates.get(unit, rates[unit.split(" ")[0]])


def work_units(recipe: Recipe, layout: ModelFacts) -> list[tuple[str, str, float]]:
    """(phase, unit, amount): how much of which work a run does; seconds are rate_of(rates, unit) * amount.

    A unit is a kind of work, or a kind and the method that does it: `solve quantize.gptq`.
    """
    methods = discover().methods
    tokens = recipe.calibration.samples * recipe.calibration.length
    weights = _weights(layout.layers.values())
    needs = needs_of(recipe)
    work: list[tuple[str, str, float]] = [("load", "fixed", 1.0)]
    if needs - {"nothing"}:
        work += [("outputs", "pass", tokens * weights), ("statistics", "pass", tokens * weights)]
    if needs & {"gram", "inputs"}:
        work.append(("statistics", "gram", tokens * _squares(layout)))
    for number, stage in enumerate(recipe.stages, start=1):
        covered = [shape for name, shape in layout.layers.items() if stage.covers(name)]
        phase = f"stage {number}, {stage.method}"
        if tries := methods[stage.method].tries:
            work += [(phase, unit, amount) for unit, amount in _search(recipe, layout, number, tries)]
        elif passes := methods[stage.method].passes:
            tokens_passed = passes(stage.params) * recipe.calibration.length
            work.append((phase, f"pass {stage.method}", float(tokens_passed * _weights(covered))))
        else:
            work.append((phase, *_made(stage, covered)))
    scored = float(recipe.evaluation.windows * recipe.evaluation.length * layout.parameters)
    work.append(("perplexity", "score", scored))
    if "divergence" in recipe.evaluation.metrics:
        work.append(("divergence", "score divergence", _DIVERGENCE * scored))
    work.append(("rest", "fixed", 6.0))
    return work


def _weights(shapes: Iterable[tuple[int, int]]) -> int:
    return sum(rows * inputs for rows, inputs in shapes)


def _squares(layout: ModelFacts) -> int:
    return sum(max(shape) * min(shape) for shape in layout.layers.values())


def _made(stage: Stage, shapes: Iterable[tuple[int, int]]) -> tuple[str, float]:
    """(unit, amount) of what a stage makes of linears of these shapes."""
    cost = discover().methods[stage.method].cost or Cost("round")
    unit = f"{cost.like} {stage.method}"
    return unit, float(sum(cost.amount(rows, inputs, stage.params) for rows, inputs in shapes))


def _search(recipe: Recipe, layout: ModelFacts, number: int, tries: Tries) -> Iterator[tuple[str, float]]:
    """(unit, amount) of making every value that stage `number` tries, and of running the model on windows."""
    methods, stage = discover().methods, recipe.stages[number - 1]
    shapes = layout.layers.values()
    tokens = recipe.calibration.samples * recipe.calibration.length
    yield "gram", float(tokens * _squares(layout))
    yield "pass", float(tokens * _weights(shapes))
    after = [later.method for later in recipe.stages[number:]]
    count = len(plans.ways(after, stage.params["over"], tries(stage.params)))
    for later in recipe.stages[number:]:
        unit, amount = _made(later, shapes)
        yield unit, count * amount
    if scores := methods[stage.method].scores:
        yield "score", float(scores(stage.params) * recipe.calibration.length * layout.parameters)
