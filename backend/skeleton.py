"""The model that a configuration makes, without weights: what it takes from a checkpoint, what is tied."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from backend.errors import UserError

# What transformers raises for numbers that make no model: its own validation, or the arithmetic and the
# layers that run into them. Anything else, as a lack of memory, is not the configuration's fault.
_WRONG = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    StrictDataclassError,
)  # fmt: skip


@dataclass(frozen=True)
class Skeleton:
    """What transformers builds of a configuration.

    shapes      every tensor that it loads: full name -> shape
    ties        a tied tensor -> the one whose values it shares, as far as the configuration says
    ignored     names, as regular expressions, that it may find in a checkpoint and does without
    """

    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    ignored: frozenset[str]

    def does_without(self, tensor: str) -> bool:
        """Whether a tensor that the model does not take is one that it makes itself."""
        return any(re.search(pattern, tensor) for pattern in self.ignored)


def skeleton(config: Mapping[str, Any], model: str) -> Skeleton:
    """Build a model on no device; UserError when the configuration makes none."""
    return _built(json.dumps(config, sort_keys=True), model)


@lru_cache(maxsize=16)
def _built(config: str, model: str) -> Skeleton:
    told = json.loads(config)
    model_type = told.pop("model_type")
    try:
        made = CONFIG_MAPPING[model_type].from_dict(told)
        with torch.device("meta"):
            built: Any = AutoModelForCausalLM.from_config(made)
    except _WRONG as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"model {model}: config.json makes no {model_type} model ({reason})") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    ignored = frozenset(built._keys_to_ignore_on_load_unexpected or ())
    return Skeleton(shapes, dict(built.all_tied_weights_keys), ignored)
