"""The Budget: what a plan of levels is predicted to cost, and what measured runs say of such predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.artifacts import load_model, load_tokenizer
from backend.errors import UserError
from backend.fisher import sensitivities
from backend.host import Host
from backend.levels import Level, build, recipe_of, standard, weights
from backend.models import facts
from backend.progress import Progress
from backend.recipe import Calibration, Recipe
from backend.solvers.budget import Ladder, ladder
from backend.text import calibration as calibration_text

# Windows whose gradients are taken; the sensitivities' own text, apart from what the levels were fitted on.
WINDOWS, LENGTH = 4, 512
# Fewer measured plans than this say nothing about how far a prediction may be off.
FEWEST_MEASURED = 4


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
    tokens = calibration_text(wanted.text, tokenizer, WINDOWS, LENGTH, wanted.seed + 1, host)
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
    """What measured plans say: measured KL ~ scale * predicted^power, within a factor either way.

    factor    the interval is [KL / factor, KL * factor]; None where too few plans were measured
    covered   of how many measured plans the interval made from the others held the measured KL
    """

    scale: float
    power: float
    count: int
    factor: float | None
    covered: int

    def corrected(self, predicted: Sequence[float] | np.ndarray) -> np.ndarray:
        """Predictions as measured runs would have them."""
        return self.scale * np.asarray(predicted, dtype=float) ** self.power


def trust(predicted: Sequence[float], measured: Sequence[float]) -> Trust:
    """Fit on the log scale, and how far each measured plan is off when the others alone predict it.

    The factor is the ceil(0.9 (n + 1))-th smallest of those leave-one-out errors, as in the jackknife+
    (Barber et al. 2021); with few plans that is the largest. Raises UserError for a KL not above zero.
    """
    if not all(value > 0 for value in (*predicted, *measured)):
        raise UserError("a measured or predicted KL is not above zero, so it has no logarithm")
    x, y = np.log(np.asarray(predicted, dtype=float)), np.log(np.asarray(measured, dtype=float))
    scale, power = _fit(x, y)
    if len(x) < FEWEST_MEASURED:
        return Trust(scale, power, len(x), None, 0)
    errors = []
    for left in range(len(x)):
        others = np.arange(len(x)) != left
        a, b = _fit(x[others], y[others])
        errors.append(abs(y[left] - np.log(a) - b * x[left]))
    covered = sum(
        error <= _quantile([other for at, other in enumerate(errors) if at != left])
        for left, error in enumerate(errors)
    )
    return Trust(scale, power, len(x), float(np.exp(_quantile(errors))), covered)


def _quantile(errors: Sequence[float]) -> float:
    rank = min(int(np.ceil(0.9 * (len(errors) + 1))), len(errors))
    return float(np.sort(errors)[rank - 1])


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    if len(x) == 0:
        return 1.0, 1.0
    # One or two plans, or plans all alike, tell a factor but no slope.
    if len(x) < 3 or np.ptp(x) < 1e-9:
        return float(np.exp(np.mean(y - x))), 1.0
    power, offset = np.polyfit(x, y, 1)
    return float(np.exp(offset)), float(power)
