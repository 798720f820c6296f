"""Search for each linear's bits, sparsity, rank or mixture by mutation, measuring every candidate.

    child = parent with min(U{1..3}, U{1..3}) flips; a flip takes a bit from one linear and gives it to
    another of the same size, so that the bytes stay exactly those of the start; in a mixture it gives two of
    the same size other levels that use up their bytes, or, in front of prune.linears, leaves out an attention
    or an MLP, or takes one back, and others get or pay the bytes
    fitness = KL(dense || candidate), mean over the tokens of a few windows; the least becomes the parent

Children are compared on one window, the best quarter and the parent on `windows` of them, drawn anew each
generation from text that the levels were not fitted on. Starts from the same bits everywhere, or from the
plan of least predicted KL (as allocate.fisher makes it). Makes every linear at each number of bits (tenth of
sparsity, half of the rank) within `reach` of the mean, with the stages after it; plans that for them, stores
nothing itself. Goes on where it was when it was stopped.
Assumes nothing of how errors add up, and pays for it: each generation runs the model on `offspring` windows
and more.
Too few generations on few windows fit the windows. Sieberling et al., EvoPress, arXiv 2410.14649.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from backend.parameters import PREDICTED_WINDOWS, MeanBits, MeanRank, MeanSparsity, Over, Reach
from backend.registry import Claim, method
from backend.solvers.budget import around, budget_of_mean, ladder, mean_of, nearly_uniform
from backend.solvers.evolution import BEST, Selection, evolve, words
from backend.views import Work

Generations = Annotated[int, Field(ge=1, le=10_000, description="How often a parent has children")]
Offspring = Annotated[int, Field(ge=1, le=1024, description="Children of a generation")]
Windows = Annotated[
    int, Field(ge=1, le=1024, description="Windows that the last round of a generation is judged on")
]
Start = Annotated[
    Literal["fisher", "uniform"],
    Field(description="The first parent: the plan of least predicted KL, or the same bits everywhere"),
]


def _rounds(offspring: int, windows: int) -> tuple[Selection, ...]:
    last = Selection(windows, 1)
    return (Selection(1, max(1, offspring // 4)), last) if windows > 1 else (last,)


def _scores(params: Mapping[str, Any]) -> int:
    """Windows that the model is run on, about."""
    rivals = [params["offspring"], max(1, params["offspring"] // 4) + 1]
    rounds = _rounds(params["offspring"], params["windows"])
    each = sum(count * chosen.windows for count, chosen in zip(rivals, rounds, strict=False))
    return params["generations"] * each + (PREDICTED_WINDOWS if params["start"] == "fisher" else 0)


@method(
    paper="arXiv:2410.14649",
    needs="gram",
    plans="bits",
    tries=around,
    scores=_scores,
    claim=Claim(
        "At 60% sparsity, the plan that a search finds loses less than OWL's",
        whose="ours",
        paper_says="EvoPress beats OWL at 70 % sparsity, with a far longer search.",
        better=(
            {"method": "allocate.evopress", "params": {"over": "sparsity", "sparsity": 0.6, "reach": 2}},
            {"method": "prune.sparsegpt", "params": {"sparsity": 0.6}},
        ),
        worse=(
            {"method": "allocate.owl", "params": {"sparsity": 0.6}},
            {"method": "prune.sparsegpt", "params": {"sparsity": 0.6}},
        ),
        metric="divergence.kl",
    ),
)
def evopress(
    work: Work,
    *,
    over: Over = "bits",
    bits: MeanBits = 3.0,
    sparsity: MeanSparsity = 0.5,
    rank: MeanRank = 64,
    reach: Reach = 1,
    generations: Generations = 30,
    offspring: Offspring = 8,
    windows: Windows = 2,
    start: Start = "fisher",
) -> None:
    """Plan bits, a sparsity, a rank or a mixture for every linear."""
    asked = {"over": over, "bits": bits, "sparsity": sparsity, "rank": rank, "reach": reach}
    mean = mean_of(asked)
    found = work.choices(over, around(asked))
    budget = budget_of_mean(found.bytes, found.values, mean)
    if start == "fisher":
        first = ladder(found.bytes, found.predicted()).plan(budget)
    else:
        order = torch.randperm(len(found.linears), generator=work.rng).tolist()
        first = nearly_uniform(found.bytes, found.values, mean, order)
    found.told(0, generations, "first generation")
    evolved = evolve(
        first, found.bytes, found.divergence, windows=found.windows, generations=generations,
        offspring=offspring, rounds=_rounds(offspring, windows), rng=work.rng,
        told=lambda done, plan, losses: found.told(done + 1, generations, words(losses, generations)),
        kept=work.kept, halves=found.halves, budget=budget,
    )  # fmt: skip
    work.report[BEST] = evolved.losses
    work.put(found.plan(evolved.plan))
