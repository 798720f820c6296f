"""A sweep: a recipe with lists in place of values, expanded to the grid of recipes it stands for."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from backend.errors import UserError
from backend.recipe import Frozen, Recipe, json_object, parse_recipe


class Sweep(Frozen):
    """A recipe with lists in place of values; `stages` may also be a list of whole chains."""

    template: dict[str, Any]

    def expand(self) -> list[Recipe]:
        """The grid of recipes, in the order of the lists, duplicates dropped; UserError on a bad one."""
        unique: dict[str, Recipe] = {}
        for data in _grid(self.template):
            recipe = parse_recipe(data)
            unique.setdefault(recipe.to_json(), recipe)
        return list(unique.values())


def parse_sweep(data: str | Mapping[str, Any]) -> Sweep:
    """A Sweep whose recipes are all valid; UserError on the first that is not."""
    sweep = Sweep(template=dict(json_object(data, "sweep")))
    sweep.expand()
    return sweep


def _grid(template: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    chains = template.get("stages", [])
    if not isinstance(chains, list):
        raise UserError(
            f"sweep: stages is {json.dumps(chains)[:80]}; allowed: a list of stages, or a list of such lists"
        )
    alternatives = chains if chains and all(isinstance(chain, list) for chain in chains) else [chains]
    for chain in alternatives:
        flat: list[tuple[tuple[Any, ...], list[Any]]] = []
        fixed = {key: value for key, value in template.items() if key != "stages"}
        for key in ("model", "seed"):
            if isinstance(fixed.get(key), list):
                flat.append(((key,), fixed[key]))
        for key in ("calibration", "evaluation"):
            section = fixed.get(key)
            if isinstance(section, Mapping):
                fixed[key] = dict(section)
                flat += [
                    ((key, name), value)
                    for name, value in section.items()
                    if isinstance(value, list) and name != "metrics"
                ]
        stages = [dict(stage) if isinstance(stage, Mapping) else stage for stage in chain]
        for number, stage in enumerate(stages):
            if not isinstance(stage, dict):
                continue
            flat += [
                (("stages", number, name), stage[name])
                for name in ("method", "only")
                if isinstance(stage.get(name), list)
            ]
            if isinstance(stage.get("params"), Mapping):
                stage["params"] = dict(stage["params"])
                flat += [
                    (("stages", number, "params", name), value)
                    for name, value in stage["params"].items()
                    if isinstance(value, list)
                ]
        for path, values in flat:
            if not values:
                raise UserError(
                    f"sweep: {'.'.join(map(str, path))} is an empty list; allowed: one value or more"
                )
        if (size := _product(len(values) for _, values in flat)) > 10_000:
            raise UserError(f"sweep: {size} recipes are asked for; allowed: at most 10000")
        for choice in itertools.product(*(values for _, values in flat)):
            recipe = json.loads(json.dumps({**fixed, "stages": stages}))
            for (path, _), value in zip(flat, choice, strict=True):
                target = recipe
                for key in path[:-1]:
                    target = target[key]
                target[path[-1]] = value
            yield recipe


def _product(sizes: Iterator[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
