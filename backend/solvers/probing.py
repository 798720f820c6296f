"""Whether a change leaves a model's function as it is: its logits on a few tokens, before and after."""

from typing import Any

import torch
from torch import Tensor

# Largest difference in float32, in shares of the largest logit, that rounding alone makes.
TOLERANCE = 1e-3


def probe_tokens(model: Any, count: int = 16) -> Tensor:
    """Token ids [count] from the whole vocabulary of a model."""
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.linspace(0, rows - 1, count, device=model.device).long()


def answers(model: Any, ids: Tensor) -> Tensor:
    """Logits [length, vocabulary] in float32 for token ids [length]."""
    return model(ids[None], use_cache=False).logits[0].float()


def apart(logits: Tensor, expected: Tensor) -> float | None:
    """Largest difference of logits in shares of the largest of those expected; None within the tolerance."""
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    off = float((logits - expected).abs().max() / largest)
    return None if off <= TOLERANCE else off
