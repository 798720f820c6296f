"""From final hidden states to logits: the head, and what an architecture does to its outputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.precision import widened

# Rows of hidden states whose logits exist at once: enough to keep the product with the head busy.
_ROWS = 128
# Rows whose float32 losses exist at once: few enough to stay in the cache, and below the size at which freed
# memory goes back to the system and has to be cleared again.
SLICE = 16


@dataclass(frozen=True)
class Bounds:
    """logits <- cap tanh(scale logits / cap): Granite and Cohere scale them, Gemma bounds them."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "Bounds":
        """As a model's configuration has them."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits in float32 of what the head puts out."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@dataclass(frozen=True)
class Readout:
    """A head with its bounds."""

    head: nn.Module
    bounds: Bounds = Bounds()

    def __call__(self, states: Tensor) -> Tensor:
        """Logits [..., vocabulary] in float32 of final states [..., d]."""
        return self.bounds(self.head(states))

    def slices(self, states: Tensor) -> Iterator[Tensor]:
        """Logits [SLICE, vocabulary] in float32 of final states [n, d], slice by slice."""
        with widened(self.head):
            for start in range(0, len(states), _ROWS):
                for rows in self.head(states[start : start + _ROWS]).split(SLICE):
                    yield self.bounds(rows)
