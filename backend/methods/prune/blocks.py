"""Take whole blocks out of the model: it gets shallower, smaller and faster, and stays an ordinary model.

    influence_i = 1 - mean over tokens of cos(h_i, h_{i+1})        h_i [d]: what block i is given

Blocks whose outputs point where their inputs did go first, all at once (ShortGPT). `greedy` takes one block
after the other, each time the one without which the model that is left predicts the text best (SLEB); it
reads the text once for every block still there and every block that goes. `last` takes the last ones and
`random` any, for comparison. The blocks that stay are renumbered. Without training afterwards a small model
survives the loss of a tenth of its blocks, not of a quarter.
ShortGPT, arXiv 2403.03853, equation 1; SLEB, arXiv 2402.09025, algorithm 1.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from backend.families import blocks_of
from backend.registry import Claim, method
from backend.shrink import drop_blocks, without_blocks
from backend.views import Work

Blocks = Annotated[int, Field(ge=1, le=512, description="How many blocks go")]
Score = Annotated[
    Literal["influence", "greedy", "last", "random"], Field(description="Which blocks go first")
]
Samples = Annotated[int, Field(ge=1, le=4096, description="How many of the calibration samples are read")]


def _left(layout: Any, params: Mapping[str, Any]) -> Any:
    return without_blocks(layout, params["blocks"], "prune.blocks")


@method(
    paper="arXiv:2403.03853",
    needs="norms",
    shrinks=_left,
    passes=lambda params: params["samples"],
    claim=Claim(
        "Leaving out the four blocks of least influence loses less than leaving out any four",
        better=({"method": "prune.blocks", "params": {"blocks": 4, "score": "influence"}},),
        worse=({"method": "prune.blocks", "params": {"blocks": 4, "score": "random"}},),
    ),
)
def blocks(work: Work, *, blocks: Blocks = 4, score: Score = "influence", samples: Samples = 16) -> None:
    """The model without the chosen blocks."""
    count = len(blocks_of(work.model, work.family))
    tokens = work.tokens[:samples]
    if score == "influence":
        influences = influence(work.model, work.family, tokens, work.told)
        work.report["influence of each block"] = [round(value, 4) for value in influences]
        chosen = sorted(range(count), key=influences.__getitem__)[:blocks]
    elif score == "greedy":
        chosen = _greedy(work, tokens, blocks)
    elif score == "last":
        chosen = list(range(count - blocks, count))
    else:
        chosen = torch.randperm(count, generator=work.rng)[:blocks].tolist()
    work.report["blocks left out"] = chosen
    drop_blocks(work.model, work.family, chosen)


def influence(model: Any, family: Any, tokens: Tensor, told: Any) -> list[float]:
    """1 - mean cosine of each block's inputs and outputs on token ids [samples, length]."""
    found = blocks_of(model, family)
    sums = [0.0] * len(found)

    def seen(number: int) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Any) -> None:
            after = out[0] if isinstance(out, tuple) else out
            # Near one a cosine of sixteen bits has lost all its digits.
            near = cosine_similarity(given[0].float(), after.float(), dim=-1)
            sums[number] += float(near.detach().sum(dtype=torch.float64))

        return hook

    handles = [block.register_forward_hook(seen(number)) for number, block in enumerate(found)]
    try:
        for number, ids in enumerate(tokens):
            told(number, len(tokens), f"sample {number + 1} of {len(tokens)}")
            _states(model, family, ids)
    finally:
        for handle in handles:
            handle.remove()
    return [1 - total / tokens.numel() for total in sums]


def _greedy(work: Work, tokens: Tensor, wanted: int) -> list[int]:
    found = blocks_of(work.model, work.family)
    gone: list[int] = []
    rounds = [len(found) - number for number in range(wanted)]
    curve, done = [], 0
    originals = [block.forward for block in found]

    def without(number: int) -> None:
        found[number].forward = lambda states, *given, **named: states

    try:
        for _ in range(wanted):
            losses = {}
            for number in (number for number in range(len(found)) if number not in gone):
                work.told(done, sum(rounds), f"block {len(gone) + 1} of {wanted}, without {number}")
                done += 1
                without(number)
                losses[number] = _loss(work, tokens)
                found[number].forward = originals[number]
            best = min(losses, key=losses.__getitem__)
            gone.append(best)
            curve.append(round(losses[best], 4))
            without(best)
    finally:
        for block, original in zip(found, originals, strict=True):
            block.forward = original
    work.report["loss after each block, nats a token"] = curve
    return gone


def _loss(work: Work, tokens: Tensor) -> float:
    """Mean -ln Q(next token) in nats."""
    total, head = 0.0, work.model.get_submodule(work.family.head)
    for ids in tokens:
        states = _states(work.model, work.family, ids)[:-1]
        for rows, targets in zip(states.split(128), ids[1:].split(128), strict=True):
            logits = head(rows).float()
            cap = getattr(work.model.config, "final_logit_softcapping", None)
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            total += float(nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum"))
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def _states(model: Any, family: Any, ids: Tensor) -> Tensor:
    body = model.get_submodule(family.blocks.split(".", 1)[0])
    return body(input_ids=ids[None].to(model.device), use_cache=False).last_hidden_state[0]
