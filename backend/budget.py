"""The Budget: what a plan of levels is predicted to cost, and what measured runs say of such predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.artifacts import load_model, load_tokenizer
from backend.errors import UserError
from backend.facts import facts
from backend.fisher import LENGTH, WINDOWS, sensitivities
from backend.host import Host
from backend.levels import Level, build, recipe_of, standard, weights
from backend.progress import Progress
from backend.recipe import Calibration, Recipe
from backend.solvers import student
from backend.solvers.budget import Ladder, ladder
from backend.text import held_out

# Fewer measured plans than this say nothing about how far a prediction may be off.
FEWEST_MEASURED = 8
# Share of further plans that the interval is made to hold.
LEVEL = 0.9
# Numbers of the law that are fitted.
_FITTED = 2


# One task is one object: that it is the same is cheaper to tell than that it says the same.
@dataclass(frozen=True, eq=False)
class Budget:
    """What `learn` found, as plain values of a finished task.

    layers        names of the linears
    bytes         [linears][levels] of what is stored
    losses        [linears][levels] predicted KL in nats per token
    errors        [linears][levels] relative output error on the calibration text
    rest_bytes    everything beside the linears
    """

    model: str
    calibration: Calibration
    levels: tuple[Level, ...]
    layers: tuple[str, ...]
    places: tuple[tuple[int, str], ...]
    weights: tuple[int, ...]
    bytes: tuple[tuple[int, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    rest_bytes: int

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "Budget":
        """From the result of a task."""
        return cls(
            result["model"],
            Calibration.model_validate(result["calibration"]),
            tuple(Level(level["name"], tuple(level["stages"])) for level in result["levels"]),
            tuple(result["layers"]),
            tuple((block, projection) for block, projection in result["places"]),
            tuple(result["weights"]),
            tuple(map(tuple, result["bytes"])),
            tuple(map(tuple, result["losses"])),
            tuple(map(tuple, result["errors"])),
            result["rest_bytes"],
        )

    def recipe(self, choice: Mapping[str, int], **fields: Any) -> Recipe:
        """The ordinary recipe that gives each linear its chosen level."""
        return recipe_of(self.model, self.calibration, self.levels, choice, **fields)

    def ladder(self) -> Ladder:
        """All plans that a budget can mean."""
        return ladder(self.bytes, self.losses)

    def predicted(self, choice: Mapping[str, int]) -> float:
        """KL of a plan, as the sensitivities have it."""
        return sum(self.losses[at][choice[name]] for at, name in enumerate(self.layers))

    def packed(self, choice: Mapping[str, int]) -> int:
        """Packed bytes of the whole model under a plan."""
        return self.rest_bytes + sum(self.bytes[at][choice[name]] for at, name in enumerate(self.layers))


def learn(model: str, calibration: Calibration, host: Host, progress: Progress) -> dict[str, Any]:
    """Build the levels, then predict what each costs; plain values. UserError when a level does not fit."""
    layout = facts(model, host)
    database = build(model, calibration, standard(layout.layers), host, progress)
    opened = load_model(layout, host)
    tokenizer = load_tokenizer(model, host)
    wanted = database.calibration
    fitted = (wanted.samples, wanted.length, wanted.seed)
    tokens = held_out(wanted.text, tokenizer, WINDOWS, LENGTH, fitted, host)
    dense = {}
    for name in layout.layers:
        stored: Any = opened.model.get_submodule(name)
        dense[name] = (stored.weight.T if opened.family.transposed else stored.weight).detach()

    def changes(block: int) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        with torch.inference_mode():
            for number, parts in database.parts(block, opened.device):
                names = [name for group in opened.family.group_names(block) for name in group]
                for name in names:
                    original = dense[name].float()
                    change = weights(parts.get(name, ()), original) - original
                    found.setdefault(name, []).append(change.to(dense[name].dtype))
                assert number == len(found[names[0]]) - 1
        return found

    losses = sensitivities(opened, tokens.ids, changes, wanted.seed, progress, host.cache / "levels")
    rows = database.rows()
    whole = {name: dense[name].numel() * dense[name].element_size() for name in layout.layers}
    numbers = range(len(database.levels))
    rest = sum(
        size
        for name, (_, size) in layout.tensors.items()
        if name.removesuffix(".weight") not in layout.layers
    )
    return {
        "model": model,
        "calibration": wanted.model_dump(mode="json"),
        "levels": [{"name": level.name, "stages": list(level.stages)} for level in database.levels],
        "layers": list(layout.layers),
        "places": [list(opened.family.place(name)) for name in layout.layers],
        "weights": [dense[name].numel() for name in layout.layers],
        "bytes": [[_of(rows, name, k, "bytes", whole[name]) for k in numbers] for name in layout.layers],
        "errors": [[_of(rows, name, k, "error", 0.0) for k in numbers] for name in layout.layers],
        "losses": [losses[name] for name in layout.layers],
        "rest_bytes": rest,
        "protocol": tokens.protocol,
    }


def _of(
    rows: Mapping[tuple[str, int], Mapping[str, Any]], name: str, level: int, key: str, dense: Any
) -> Any:
    return rows[name, level][key] if (name, level) in rows else dense


@dataclass(frozen=True)
class Trust:
    """What measured plans say: measured KL ~ scale * p * exp(growth * p) for a predicted p, up to a factor.

    Errors that are no longer small add up to more than their sum, so the ratio grows with p; beyond `reach`,
    the largest p that was measured, it is held at what it is there.

    factor    the interval of 90 % is [KL / factor, KL * factor]; None where too few plans were measured
    covered   for how many measured plans the law and the interval of the others alone held the measured KL
    """

    scale: float
    growth: float
    reach: float
    count: int
    factor: float | None
    covered: int

    def corrected(self, predicted: Sequence[float] | np.ndarray) -> np.ndarray:
        """Predictions as measured runs would have them."""
        p = np.asarray(predicted, dtype=float)
        return self.scale * p * np.exp(self.growth * np.minimum(p, self.reach))


def trust(predicted: Sequence[float], measured: Sequence[float]) -> Trust:
    """Fit the law by least squares of log(measured / predicted), and say how far each plan is off it.

    The interval is Student's, of the spread s of those logarithms around the law: a further plan is off by
    less than t s sqrt(1 + 2/n), with n - 2 degrees of freedom and the mean leverage of the plans. It takes
    the logarithms for normal; whether they are shows in how many plans the others alone hold, which no
    formula fixes. Raises UserError for a KL not above zero.
    """
    if not all(value > 0 for value in (*predicted, *measured)):
        raise UserError("a measured or predicted KL is not above zero, so it has no logarithm")
    x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    reach = float(x.max()) if len(x) else 0.0
    law = _fit(x, y, reach)
    if len(x) < FEWEST_MEASURED:
        return law
    covered = 0
    for left in range(len(x)):
        others = np.arange(len(x)) != left
        held_by = _fit(x[others], y[others], reach)
        off = abs(float(np.log(y[left] / held_by.corrected(x[left]))))
        covered += off <= _reach(held_by, x[others], y[others])
    return replace(law, factor=float(np.exp(_reach(law, x, y))), covered=covered)


def _reach(law: Trust, x: np.ndarray, y: np.ndarray) -> float:
    """Logarithm of the factor that a further plan stays within."""
    off, count = np.log(y / law.corrected(x)), len(x)
    spread = float(np.sqrt((off**2).sum() / (count - _FITTED)))
    return student.reach(count, LEVEL, _FITTED) * spread * float(np.sqrt(1 + _FITTED / count))


def _fit(x: np.ndarray, y: np.ndarray, reach: float) -> Trust:
    ratios = np.log(y / x)
    growth, offset = 0.0, float(ratios.mean()) if len(x) else 0.0
    # One or two plans, or plans all alike, tell a factor but no growth.
    if len(x) >= 3 and np.ptp(x) > 1e-9:
        slope, start = np.polyfit(x, ratios, 1)
        # A ratio that fell would make a plan that costs more look better somewhere.
        if slope > 0:
            growth, offset = float(slope), float(start)
    return Trust(float(np.exp(offset)), growth, reach, len(x), None, 0)
