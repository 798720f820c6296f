"""Perplexity: exp of the mean loss over all scored tokens of the windows.

    ppl = exp(mean of -ln Q(token)), length - 1 tokens of each window scored, windows do not overlap

The standard error is taken over windows, since tokens of one window depend on each other:
ppl * sd(window means) / sqrt(windows).
The loss of each window is kept, so that two runs on the same windows are compared pairwise.
"""

import math

from backend.evaluate import Measured, Result, Series, Subject
from backend.registry import metric


@metric
def perplexity(subject: Subject) -> Result:
    """One measurement and the loss of each window."""
    losses = subject.scores.windows("nll")
    mean = float(losses.mean())
    text = subject.recipe.evaluation.text
    if not math.isfinite(mean):
        return Result(broken="the loss is NaN or infinite on the evaluation text")
    value = math.exp(min(mean, 700.0))
    stderr = value * float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else None
    measured = Measured(
        "perplexity", value, "", True, subject.protocol, text, stderr, int(subject.scores["nll"].numel())
    )
    return Result([measured], [Series("perplexity.windows", subject.protocol, tuple(losses.tolist()))])
