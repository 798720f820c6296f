"""Which stages may follow each other, and what of a recipe a model can bear."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from backend import plans
from backend.errors import UserError
from backend.parameters import GROUPED_ROW, MIXTURE
from backend.registry import Method, Need, discover

if TYPE_CHECKING:
    from backend.recipe import Recipe, Stage

# Weights only move forward through these kinds: nothing may move a weight off a grid, and factors come last.
# What every family calls its head.
_HEAD = "lm_head"
_ORDER = {"prune": 1, "quantize": 2, "factorize": 2, "compensate": 3}


def table_stages(
    stages: "Iterable[tuple[int, Stage]]", table: str, layers: Iterable[str]
) -> "list[tuple[int, Stage]]":
    """Those of the numbered stages that name an embedding or the head, and no linear of a block."""
    named = [(number, stage) for number, stage in stages if stage.only and stage.covers(table)]
    return [(number, stage) for number, stage in named if not any(stage.covers(layer) for layer in layers)]


def check_layers(
    recipe: "Recipe",
    layers: Mapping[str, tuple[int, int]],
    positions: int | None = None,
    tables: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> None:
    """Hold a recipe against the model's linears ({name: (out, in)}), its tables ({name: (tokens, d)}) and its
    longest sequence in tokens.

    Raises UserError when a group or pattern does not divide the inputs of a layer, `only` matches nothing,
    two stages fight over one layer, or a window is longer than the model's positions.
    """
    for number, stage in enumerate(recipe.stages, start=1):
        where = f"stage {number}, {stage.method}"
        covered = {name: shape for name, shape in layers.items() if stage.covers(name)}
        if not covered and (named := {name: tables[name] for name in tables if stage.covers(name)}):
            _check_table_method(stage, next(iter(named)), where)
            _check_divides(stage, named, where)
            continue
        if not covered:
            example = next(iter(layers))
            raise UserError(f"{where}: only '{stage.only}' matches no linear; names look like {example}")
        _check_divides(stage, covered, where)
    if unknown := [name for name in recipe.plan if name not in layers]:
        raise UserError(f"plan: {unknown[0][:120]} is no linear; names look like {next(iter(layers))}")
    for name, shape in layers.items():
        chain = recipe.stages_of(name)
        _check_chain(chain, f" ({name})")
        if name in recipe.plan:
            for number, stage in chain:
                _check_divides(stage, {name: shape}, f"plan for stage {number}, {stage.method}")
    _check_something_left(recipe, layers)
    _check_overruled(recipe, layers)
    for name in tables:
        chain = table_stages(enumerate(recipe.stages, start=1), name, layers)
        _check_chain(chain, f" ({name})")
        if name.rpartition(".")[2] == _HEAD:
            _check_shared_rows(recipe.stages, chain, name)
    if positions:
        methods = discover().methods
        whole = any(methods[stage.method].shape == "work" for stage in recipe.stages)
        asks = whole or needs_of(recipe) - {"nothing"}
        for part, length in (
            ("calibration", recipe.calibration.length if asks else 0),
            ("evaluation", recipe.evaluation.length),
        ):
            if length > positions:
                raise UserError(
                    f"{part}: length is {length}; this model reads at most {positions} tokens at once"
                )


def _check_something_left(recipe: "Recipe", layers: Iterable[str]) -> None:
    methods, emptying = discover().methods, {}
    for number, stage in enumerate(recipe.stages, start=1):
        if stage.params.get("over") == MIXTURE:
            # The search chooses what goes behind it.
            break
        if methods[stage.method].empties:
            emptying[number] = stage.method
    if emptying and all(any(number in emptying for number, _ in recipe.stages_of(name)) for name in layers):
        raise UserError(
            f"{next(iter(emptying.values()))}: leaves out every linear of the model; allowed: `only` with "
            "the names of some, or behind allocate.evopress with over 'mixture', which chooses them"
        )


def _check_overruled(recipe: "Recipe", layers: Iterable[str]) -> None:
    """Nothing that a person asked for is silently given up for what a later planning stage finds."""
    methods = discover().methods
    planning = [
        (number, stage, aim)
        for number, stage in enumerate(recipe.stages, start=1)
        if (aim := methods[stage.method].planned(stage.params))
    ]
    for at, (number, stage, aim) in enumerate(planning):
        where = f"stage {number}, {stage.method}"
        # Ranks alone are planned within what the stage covers.
        if stage.only and (aim != "rank" or methods[stage.method].tries is not None):
            raise UserError(
                f"{where}: only is '{stage.only}', but it plans whatever the stages after it cover; "
                "allowed: no only here, and only in those stages"
            )
        taken = _taken(recipe.stages[number:], aim, layers)
        planned = [name for name in recipe.plan if aim in recipe.plan[name]]
        if lost := next((name for name in planned if name in taken), None):
            raise UserError(
                f"{where}: plans the {aim} of {lost}, to which the plan of the recipe gives one; "
                "allowed: one of the two"
            )
        for other, earlier, same in planning[:at]:
            if same == aim and taken & _taken(recipe.stages[other:], aim, layers):
                raise UserError(
                    f"{where}: plans the {aim} again that stage {other}, {earlier.method}, planned for the "
                    "same linears; allowed: one of the two"
                )


def _takers(later: "Sequence[Stage]", parameter: str) -> "list[Stage]":
    """Those of some stages that a plan gives a parameter to, linear by linear."""
    methods = discover().methods
    return [
        stage
        for stage in later
        if parameter in methods[stage.method].params.model_fields and methods[stage.method].shape == "layer"
    ]


def _taken(later: "Sequence[Stage]", parameter: str, layers: Iterable[str]) -> set[str]:
    takers = _takers(later, parameter)
    return {name for name in layers if any(stage.covers(name) for stage in takers)}


def overruled(recipe: "Recipe") -> list[str]:
    """What a plan makes of numbers that later stages were given themselves, a sentence each."""
    methods, found = discover().methods, []
    for number, stage in enumerate(recipe.stages, start=1):
        aim = methods[stage.method].planned(stage.params)
        if not aim:
            continue
        for later in _takers(recipe.stages[number:], aim):
            own, mean = later.params[aim], stage.params[aim]
            if own not in (mean, methods[later.method].params.model_fields[aim].default):
                found.append(
                    f"{later.method}: its {aim} of {own:g} does not count, for stage {number}, "
                    f"{stage.method}, plans {mean:g} on average"
                )
    return found


def _check_shared_rows(stages: "Sequence[Stage]", chain: "Sequence[tuple[int, Stage]]", table: str) -> None:
    """A head that consists of shared rows is no table of weights any more."""
    methods = discover().methods
    sharing = [
        stage for stage in stages if methods[stage.method].kind == "head" and methods[stage.method].stored
    ]
    if sharing and chain:
        number, stage = chain[0]
        raise UserError(
            f"stage {number}, {stage.method}: only names {table}, which {sharing[0].method} makes of rows "
            "that tokens share; allowed: one of the two"
        )


def needs_of(recipe: "Recipe") -> set[Need]:
    """What the stages must know of the inputs of linears, those too that a plan gives other parameters."""
    methods = discover().methods
    stages = [*recipe.stages, *(stage for name in recipe.plan for _, stage in recipe.stages_of(name))]
    return {methods[stage.method].asks(stage.params) for stage in stages}


def check_order(stages: "tuple[Stage, ...]") -> None:
    """Raise UserError where stages cannot follow each other in this order, whatever the model is."""
    _check_plans(stages)
    _check_model_wide(stages)
    if all(stage.only is None for stage in stages):
        _check_chain(list(enumerate(stages, start=1)), "")


def _check_model_wide(stages: "tuple[Stage, ...]") -> None:
    methods, changed, before = discover().methods, "", ""
    for number, stage in enumerate(stages, start=1):
        found = methods[stage.method]
        if found.shrinks:
            if before:
                raise UserError(
                    f"stage {number}, {stage.method}: comes after {before}, which saw another model; "
                    "allowed: before every stage that does not make the model itself smaller"
                )
            if stage.only:
                raise UserError(
                    f"stage {number}, {stage.method}: only is '{stage.only}', but the whole model is made "
                    "smaller; allowed: no only"
                )
            continue
        before = before or f"stage {number}, {stage.method}"
        if found.kind == "transform" and changed:
            raise UserError(
                f"stage {number}, {stage.method}: comes after {changed}, whose weights it would not reach; "
                "allowed: before every stage that compresses"
            )
        if found.kind == "recover" and not changed:
            raise UserError(
                f"stage {number}, {stage.method}: there is nothing to tune yet; "
                "allowed: after a stage that prunes, quantizes or factorizes"
            )
        if found.kind != "transform" and not found.plans:
            changed = changed or f"stage {number}, {stage.method}"


def _check_plans(stages: "tuple[Stage, ...]") -> None:
    methods = discover().methods
    for number, stage in enumerate(stages, start=1):
        planned = methods[stage.method].planned(stage.params)
        # A plan is for stages that go linear by linear.
        able = {
            name: found
            for name, found in methods.items()
            if planned in found.params.model_fields and found.shape == "layer"
        }
        later = [other for other in stages[number:] if other.method in able]
        where = f"stage {number}, {stage.method}"
        if planned and not later:
            raise UserError(
                f"{where}: no later stage takes the {planned} that it plans linear by linear; "
                f"allowed: {', '.join(able)} after it"
            )
        if stage.params.get("over") == MIXTURE and not any(
            plans.switches(other.method) for other in stages[number:]
        ):
            raise UserError(
                f"{where}: over is 'mixture', but no later stage prunes or compensates linear by linear; "
                "allowed: such a stage after it, or over 'bits'"
            )
        searched = methods[stage.method].tries is not None
        before = any(methods[other.method].shape == "layer" for other in stages[:number])
        if planned == "rank" and not searched and not before:
            raise UserError(
                f"{where}: there is no error yet to plan ranks by; "
                "allowed: after a stage that prunes or quantizes, before one that compensates"
            )
        if searched and (own := next((s for s in stages[number:] if s.text), None)):
            raise UserError(
                f"{where}: makes every level on the text of the calibration, but {own.method} has the text "
                f"{own.text[:60]!r}; allowed: text empty"
            )
        for other in later:
            if planned == "sparsity" and other.params.get("pattern", "free") != "free":
                raise UserError(
                    f"{where}: {other.method} has pattern {other.params['pattern']}, "
                    "whose sparsity is fixed; allowed: pattern free"
                )


def _check_chain(chain: "list[tuple[int, Stage]]", layer: str) -> None:
    seen: list[Method] = []
    for number, stage in chain:
        found = discover().methods[stage.method]
        where = f"stage {number}, {stage.method}{layer}"
        rank = _ORDER.get(found.kind)
        if rank is None or found.inputs or found.shrinks:
            continue
        later = [other for other in seen if _ORDER[other.kind] > rank]
        if later:
            raise UserError(
                f"{where}: {found.kind} cannot follow {later[0].kind} ({later[0].id}); "
                "allowed order: prune, then quantize, then compensate"
            )
        if found.kind == "factorize" and seen:
            raise UserError(
                f"{where}: factors replace the whole weight, so what {seen[-1].id} made of it would be lost; "
                "allowed: factorize as the first stage of a layer"
            )
        if found.kind == "quantize" and any(other.kind == "factorize" for other in seen):
            raise UserError(
                f"{where}: the layer consists of two factors, which are not quantized; allowed: a compensate "
                "stage after a factorize stage (use `only` to give layers different ones)"
            )
        if found.kind == "quantize" and any(other.kind == "quantize" for other in seen):
            raise UserError(
                f"{where}: the weights are already on a grid; allowed: one quantize stage per layer "
                "(use `only` to give layers different ones)"
            )
        if found.follows and (not seen or any(other.kind != found.follows for other in seen)):
            raise UserError(
                f"{where}: works on what a {found.follows} stage leaves and on nothing else; "
                "allowed: right after one that covers the layer"
            )
        if found.kind == "compensate" and not seen:
            raise UserError(
                f"{where}: there is nothing to compensate; "
                "put a prune or quantize stage that covers the layer before this one"
            )
        seen.append(found)


def _check_table_method(stage: "Stage", table: str, where: str) -> None:
    """Tables see no calibration text, and are no linears of a block."""
    methods = discover().methods
    able = [
        name
        for name, found in methods.items()
        if found.shape == "layer" and found.needs == "nothing" and not found.inputs and not found.empties
    ]
    if stage.method not in able:
        raise UserError(
            f"{where}: only names {table}, a table that is compressed without calibration; "
            f"allowed there: {', '.join(able)}"
        )


def _check_divides(stage: "Stage", layers: Mapping[str, tuple[int, int]], where: str) -> None:
    group = stage.params.get("group_size", GROUPED_ROW)
    pattern = stage.params.get("pattern", "free")
    widths = sorted({inputs for _, inputs in layers.values()})
    pads = discover().methods[stage.method].pads
    for name, (_, inputs) in layers.items():
        if group != GROUPED_ROW and inputs % group and not pads:
            common = [size for size in range(8, 513) if all(width % size == 0 for width in widths)]
            allowed = ", ".join(map(str, [size for size in common if size % 8 == 0] or common))
            raise UserError(
                f"{where}: group_size is {group}, which does not divide the {inputs} inputs of {name}; "
                f"allowed for this model: -1 (whole row){', ' + allowed if allowed else ''}"
            )
        if pattern != "free" and inputs % int(pattern.split(":")[1]):
            raise UserError(
                f"{where}: pattern {pattern} does not divide the {inputs} inputs of {name}; allowed: free"
            )
