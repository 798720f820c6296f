"""Whether the artifact is still a working language model; if not, the cause.

    finite      every weight and every loss is a number
    collapse    its perplexity is no better than that of the evaluation text's own token frequencies
    repetition  greedy answers to five fixed prompts: share of 4-token runs that occurred before in an answer;
                left out where a model has too few positions for them, as the text of `finite` says

A run that fails is marked as broken and stays off the Pareto front.
"""

import math

import torch
from torch import Tensor

from backend.artifacts import OpenModel, compressed_modules
from backend.evaluate import Measured, Result, Subject
from backend.generate import greedy, positions_of
from backend.precision import name_of
from backend.progress import Update
from backend.registry import metric

PROMPTS = (
    "The capital of France is",
    "Water boils when",
    "In 1969, the first people",
    "A good way to learn a language is",
    "The three primary colours are",
)
_TOKENS, _RUN = 48, 4
# In a shorter text, most tokens occur once and their own frequencies predict it too well.
_ENOUGH = 400
# A loop from the first words on repeats nearly all its runs; small dense models, decoded greedily, repeat up
# to two thirds.
_LOOP = 0.9


@metric
def sanity(subject: Subject) -> Result:
    """sanity.finite, sanity.repetition, and the cause if the model is broken."""
    opened = subject.opened
    bad = next((name for name, tensor in _weights(opened) if not bool(torch.isfinite(tensor).all())), None)
    losses = subject.scores.windows("nll")
    finite = bad is None and bool(torch.isfinite(losses).all())
    stamp = {
        "prompts": len(PROMPTS), "tokens": _TOKENS, "sampling": "greedy",
        "compute_dtype": name_of(opened.compute_dtype),
    }  # fmt: skip
    prompts = [subject.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    positions = positions_of(opened.model)
    asked = positions is None or max(map(len, prompts)) + _TOKENS <= positions
    told = "" if asked else f"no greedy answers: this model reads at most {positions} tokens"
    result = Result([Measured("sanity.finite", float(finite), "share", False, stamp, told)])
    if not finite:
        result.broken = f"NaN or infinite values in {bad}" if bad else "the loss is NaN or infinite"
        return result
    shares = []
    if asked:
        subject.progress(Update("sanity", 0, 1, f"{len(PROMPTS)} greedy answers"))
        answers = greedy(opened, subject.tokenizer, PROMPTS, _TOKENS)
        shares = [repeated_share(ids, _RUN) for ids in answers]
        result.measurements.append(
            Measured("sanity.repetition", sum(shares) / len(shares), "share", True, stamp, n=len(PROMPTS))
        )
    known = unigram_perplexity(subject.tokens.ids)
    perplexity = math.exp(min(float(losses.mean()), 700.0))
    if subject.tokens.ids.numel() >= _ENOUGH and perplexity >= known:
        result.broken = (
            f"collapsed: perplexity {perplexity:,.0f} is no better than "
            f"the text's own token frequencies ({known:,.0f})"
        )
    elif sum(share > _LOOP for share in shares) > len(PROMPTS) // 2:
        result.broken = "repetition loops: most greedy answers repeat one phrase to the end"
    return result


def repeated_share(ids: list[int], run: int) -> float:
    """Share of the runs of `run` tokens that occurred earlier in the same answer."""
    runs = [tuple(ids[start : start + run]) for start in range(len(ids) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def unigram_perplexity(ids: Tensor) -> float:
    """Perplexity of the windows under their own token frequencies: what is known without any context."""
    counts = torch.unique(ids, return_counts=True)[1].double()
    share = counts / counts.sum()
    return math.exp(float(-(share * share.log()).sum()))


def _weights(opened: OpenModel) -> list[tuple[str, Tensor]]:
    decoded = [
        (f"{name} ({part.kind})", tensor)
        for name, module in compressed_modules(opened.model).items()
        for part in module.parts
        for tensor in part.tensors().values()
        if tensor.is_floating_point()
    ]
    return [*opened.model.named_parameters(), *decoded]
