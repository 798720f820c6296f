"""How far the compressed model's predictions are from the dense model's, token by token.

    divergence.kl          mean KL(P || Q) in nats, P dense, Q compressed; also median and 99th percentile
    divergence.kl_reverse  the same for KL(Q || P)
    divergence.agreement   share of tokens where both rank the same token first
    divergence.flips       share of tokens where exactly one of both ranks the true token first

Standard errors are those of means over windows. Logits and sums over the vocabulary are float32, and no
token's divergence is below zero, so that a mean of 1e-7 nats or less is rounding, not a difference. Flips as
in Dutta et al., Accuracy is not all you need, arXiv 2407.09141, with tokens in place of questions.
"""

import math

import torch
from torch import Tensor

from backend.evaluate import Measured, Result, Scores, Series, Subject
from backend.registry import metric


@metric
def divergence(subject: Subject) -> Result:
    """Means, medians and tails of both divergences, agreement and flips; KL of each window."""
    if "divergence" not in subject.recipe.evaluation.metrics:
        raise ValueError("divergence was not among the metrics when the windows were scored")
    scores = subject.scores
    result = Result(series=[_series(subject, scores, name) for name in ("kl", "kl_reverse", "agree")])
    for name in ("kl", "kl_reverse"):
        tail = torch.quantile(scores[name].double().flatten()[_spread(scores[name])], 0.99).item()
        result.measurements += [
            _measured(subject, name, scores.windows(name), "nats", True),
            _plain(subject, f"{name}_median", scores[name].median().item(), "nats"),
            _plain(subject, f"{name}_p99", tail, "nats"),
        ]
    flips = (scores["correct"] != scores["dense_correct"]).double().mean(dim=1)
    result.measurements += [
        _measured(subject, "agreement", scores.windows("agree"), "share", False),
        _measured(subject, "flips", flips, "share", True),
    ]
    if not all(math.isfinite(found.value) for found in result.measurements):
        return Result(broken="the divergence from the dense model is NaN or infinite")
    return result


def _spread(values: Tensor) -> slice:
    # torch.quantile takes at most 2**24 values; beyond that every n-th token says the same.
    return slice(None, None, -(-values.numel() // 2**24))


def _series(subject: Subject, scores: Scores, name: str) -> Series:
    return Series(
        f"divergence.{name}.windows", subject.reference_protocol, tuple(scores.windows(name).tolist())
    )


def _measured(subject: Subject, name: str, windows: Tensor, unit: str, lower: bool) -> Measured:
    stderr = float(windows.std()) / math.sqrt(len(windows)) if len(windows) > 1 else None
    stamp, text, count = (
        subject.reference_protocol,
        subject.recipe.evaluation.text,
        subject.tokens.protocol["tokens"],
    )
    return Measured(f"divergence.{name}", float(windows.mean()), unit, lower, stamp, text, stderr, count)


def _plain(subject: Subject, name: str, value: float, unit: str) -> Measured:
    stamp, text, count = (
        subject.reference_protocol,
        subject.recipe.evaluation.text,
        subject.tokens.protocol["tokens"],
    )
    return Measured(f"divergence.{name}", value, unit, True, stamp, text, None, count)
