"""Take whole blocks out of the model, or attention or MLP out of some: shallower, smaller and faster.

    influence_i = 1 - mean over tokens of cos(h_i, h'_i)      h_i, h'_i [d]: the stream before and after it

Blocks, or halves of blocks, that change the direction of the stream least go first, all at once (ShortGPT).
`greedy` takes one after the other, each time the one without which the model that is left predicts the text
best (SLEB). `evolution` begins with the choice of influence and swaps some that go for some that stay, as
long as the KL from the whole model falls (EvoPress; one parent, compared on few windows, then on all).
`last` takes the last ones and `random` any, for comparison. The blocks that stay are renumbered: the model is
an ordinary one. A half that goes leaves its linears without a byte, but a plain model has to multiply zeros
there. Without training afterwards a small model survives the loss of a tenth of its blocks, not of a quarter.
SLEB, arXiv 2402.09025, algorithm 1; EvoPress, arXiv 2410.14649; ShortGPT, arXiv 2403.03853, equation 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.depth import (
    Piece,
    Whole,
    apart,
    count_of,
    end_of,
    final,
    influences,
    loss,
    members,
    whole_of,
    without,
)
from backend.errors import UserError
from backend.parts import LowRank
from backend.registry import Claim, method
from backend.shrink import drop_blocks, without_blocks
from backend.solvers.evolution import BEST, Selection, evolve, words
from backend.views import Work

Blocks = Annotated[int, Field(ge=1, le=512, description="From how many blocks it goes")]
What = Annotated[Piece, Field(description="The whole block, or its attention or MLP alone")]
Score = Annotated[
    Literal["influence", "greedy", "evolution", "last", "random"], Field(description="Which go first")
]
Samples = Annotated[int, Field(ge=1, le=4096, description="How many of the calibration samples are read")]
Generations = Annotated[int, Field(ge=1, le=1000, description="Of the evolution")]
Offspring = Annotated[int, Field(ge=1, le=256, description="Children of a generation of the evolution")]
# Samples that tell the children of a generation apart at first.
_FIRST = 1


def _left(layout: Any, params: Mapping[str, Any]) -> Any:
    piece, count = params["piece"], params["blocks"]
    if piece == "block":
        return without_blocks(layout, count, "prune.blocks")
    if params["score"] in ("influence", "evolution") and layout.config.get("use_parallel_residual"):
        raise UserError(
            f"prune.blocks: score is {params['score']}, but attention and MLP of this model stand side by "
            "side, with no stream between them; allowed: greedy, last, random, or piece block"
        )
    if count > layout.blocks:
        raise UserError(f"prune.blocks: blocks is {count}; this model has {layout.blocks}")
    names = {name for block in range(count) for name in members(layout.family, piece, block)}
    return replace(layout, emptied=layout.emptied | names)


def _passes(params: Mapping[str, Any]) -> int:
    searched = params["generations"] * (params["offspring"] + params["samples"])
    return int(params["samples"] + (searched if params["score"] == "evolution" else 0))


@method(
    paper="arXiv:2403.03853",
    needs="norms",
    shrinks=_left,
    passes=_passes,
    claim=Claim(
        "Leaving out the four blocks of least influence loses less than leaving out any four",
        whose="ours",
        paper_says="ShortGPT beats other ways to prune, on benchmarks, with a quarter of the blocks gone.",
        better=({"method": "prune.blocks", "params": {"blocks": 4, "score": "influence"}},),
        worse=({"method": "prune.blocks", "params": {"blocks": 4, "score": "random"}},),
    ),
)
def blocks(
    work: Work,
    *,
    blocks: Blocks = 4,
    piece: What = "block",
    score: Score = "influence",
    samples: Samples = 16,
    generations: Generations = 20,
    offspring: Offspring = 8,
) -> None:
    """The model without the chosen blocks, or linears of rank 0 in the chosen halves."""
    opened, count, tokens = whole_of(work), count_of(work), work.tokens[:samples]
    if score == "greedy":
        chosen = _greedy(work, opened, piece, tokens, blocks)
    elif score == "last":
        chosen = list(range(count - blocks, count))
    elif score == "random":
        chosen = torch.randperm(count, generator=work.rng)[:blocks].tolist()
    else:
        # The generations are what counts where there are some.
        ahead = generations if score == "evolution" else 0
        found = influences(
            opened, piece, tokens,
            lambda done, total, words: work.told(0 if ahead else done, ahead or total, words),
        )  # fmt: skip
        work.report[f"influence of each {piece}"] = [round(value, 4) for value in found]
        chosen = sorted(range(count), key=found.__getitem__)[:blocks]
    if score == "evolution":
        chosen = _evolved(work, opened, piece, tokens, chosen, generations, offspring)
    work.report[f"{piece} left out of" if piece != "block" else "blocks left out"] = chosen
    if piece == "block":
        drop_blocks(work.model, work.family, chosen)
        return
    for number in chosen:
        last: Any = work.model.get_submodule(end_of(work.family, piece, number))
        if last.bias is not None:
            last.bias.zero_()
        for name in members(work.family, piece, number):
            rows, inputs = work.layout.layers[name]
            linear: Any = work.model.get_submodule(name)
            nothing = torch.zeros(rows, 0), torch.zeros(0, inputs)
            work.parts[name] = (LowRank.of(*nothing, linear.weight.dtype).to(opened.device),)


def _greedy(work: Work, opened: Whole, piece: Piece, tokens: Tensor, wanted: int) -> list[int]:
    count = count_of(work)
    gone: list[int] = []
    curve: list[float] = []
    total, done = sum(count - number for number in range(wanted)), 0
    for _ in range(wanted):
        losses = {}
        for number in (number for number in range(count) if number not in gone):
            work.told(done, total, f"{piece} {len(gone) + 1} of {wanted}, without {number}")
            done += 1
            with without(opened, piece, [*gone, number]):
                losses[number] = loss(opened, tokens)
        gone.append(min(losses, key=losses.__getitem__))
        curve.append(round(min(losses.values()), 4))
    work.report["loss after each, nats a token"] = curve
    return gone


def _evolved(
    work: Work,
    opened: Whole,
    piece: Piece,
    tokens: Tensor,
    start: Sequence[int],
    generations: int,
    offspring: int,
) -> list[int]:
    count, dense = count_of(work), final(opened, tokens)
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def lost(plan: Sequence[int], windows: Sequence[int]) -> float:
        out, some = tuple(at for at, stays in enumerate(plan) if not stays), tuple(sorted(windows))
        if (out, some) not in seen:
            with without(opened, piece, out):
                seen[out, some] = apart(opened, tokens[list(some)], [dense[at] for at in some])
        return seen[out, some]

    def told(generation: int, plan: Sequence[int], losses: Sequence[float]) -> None:
        work.told(generation + 1, generations, words(losses, generations))

    rounds = [Selection(_FIRST, max(1, offspring // 4)), Selection(len(tokens), 1)]
    found = evolve(
        [int(number not in start) for number in range(count)],
        [[0, 1]] * count,
        lost,
        windows=len(tokens),
        generations=generations,
        offspring=offspring,
        rounds=rounds if len(tokens) > _FIRST else rounds[1:],
        rng=work.rng,
        told=told,
        kept=work.kept,
    )
    work.report[BEST] = [round(best, 5) for best in found.losses]
    return [at for at, stays in enumerate(found.plan) if not stays]
