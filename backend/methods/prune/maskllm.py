"""Learn which N of every M weights to keep, by gradients of soft masks; the weights stay as they are.

    m = sum_k p_k P_k,  p = softmax((κ g + r e) / τ)  for each group of M inputs, P [K, M] all masks of N ones
    minimize over g:  loss(W * m) - λ (1 - t/T) sum |W * m|²       e Gumbel noise, τ falls over the T steps
    start: g = r n + 0.01 alpha (P m0 - N²/M),   n ~ N(0, 0.01²),      end: the pattern of the largest g

m0 is the N:M mask of an earlier prune stage, whose pruned weights may come back with their dense values, or
Wanda's or magnitude's own. With `start` scores it is as sure of itself as the scores of the group are.
`blocks`: the loss is each block's output beside the dense block's; `text`: the whole model's on the next
token. Every eighth sample only judges: of the start and all judgements the mask is kept that loses least.
The paper is `text`, `mask`, noise r 1, alpha 3, reward λ 1e-5, a rate of 5e-4 and two billion tokens. From a
few thousand it learns these by heart and no more; the defaults are made for them. `text` holds 24 bytes of
logits and moments a weight (2:4). Stores what prune.magnitude stores. With a `text` of its own the stage
learns and judges on that one: after a first such stage it carries these masks over to another domain.
Fang et al., MaskLLM, arXiv 2409.17481, section 3.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from backend.errors import UserError
from backend.packing import pack, unpack
from backend.parameters import OwnText, Samples
from backend.parts import Sparse, gone
from backend.registry import Claim, method
from backend.sizes import kept_by_pattern
from backend.solvers import masks
from backend.solvers.blockwise import Fit, Values, fit, gradients, relative_error, split
from backend.solvers.longrun import descend
from backend.views import Block, Layer, Work

_JUDGEMENTS = 10

Fixed = Annotated[Literal["2:4", "1:4"], Field(description="Keep N of every M consecutive inputs")]
Prior = Annotated[
    Literal["wanda", "magnitude"], Field(description="Scores, and the mask where no earlier stage made one")
]
Start = Annotated[
    Literal["scores", "mask"],
    Field(description="Start as sure as the scores are, or equally sure everywhere"),
]
Objective = Annotated[
    Literal["blocks", "text"],
    Field(description="Each block's output beside the dense block's, or the whole model's loss on text"),
]
Epochs = Annotated[int, Field(ge=1, le=1000, description="Times that each sample is seen")]
Batch = Annotated[int, Field(ge=1, le=256, description="Samples a step")]
Rate = Annotated[float, Field(ge=0.0, le=10.0, description="Step of Adam for logits; falls to nothing")]
Alpha = Annotated[float, Field(ge=0.0, le=1000.0, description="How firmly the start is believed")]
Noise = Annotated[
    float, Field(ge=0.0, le=1.0, description="Share of the randomness of draws and of the start")
]
Reward = Annotated[float, Field(ge=0.0, le=1.0, description="Reward for keeping large weights; falls to 0")]
_WANDA = {"method": "prune.wanda", "params": {"pattern": "2:4"}}


@method(
    paper="arXiv:2409.17481",
    needs="norms",
    keeps=lambda rows, inputs, params: kept_by_pattern(rows * inputs, params["pattern"]),
    passes=lambda params: 4 * params["samples"] * params["epochs"],
    claim=Claim(
        "Learned 2:4 masks lose less than the Wanda masks that they start from, on the same weights",
        whose="ours",
        paper_says="MaskLLM learns from two billion tokens, and beats SparseGPT as well.",
        better=(_WANDA, {"method": "prune.maskllm", "params": {"samples": 16, "epochs": 2}}),
        worse=(_WANDA,),
    ),
)
def maskllm(
    work: Work,
    *,
    pattern: Fixed = "2:4",
    prior: Prior = "wanda",
    start: Start = "scores",
    objective: Objective = "blocks",
    samples: Samples = 64,
    epochs: Epochs = 4,
    batch: Batch = 1,
    learning_rate: Rate = 0.001,
    alpha: Alpha = 5.0,
    noise: Noise = 0.0,
    reward: Reward = 0.0,
    text: OwnText = "",
) -> None:
    """A sparse part of the weights that the learned masks keep, for every linear of the stage."""
    starts = {
        layer.name: _start(layer, prior, start, pattern)
        for layer in work.layers("norms")
        if work.covers(layer.name) and not gone(layer.parts)
    }
    with gradients():
        choice = masks.Choice(masks.patterns_of(pattern), alpha, noise)
    learn = _of_text if objective == "text" else _of_blocks
    learn(work, starts, choice, samples, epochs, batch, learning_rate, reward)


def _start(layer: Layer, prior: str, start: str, pattern: str) -> Tensor:
    """How much each weight is wanted at the start [out, in]."""
    keep, of = (int(number) for number in pattern.split(":"))
    scores = layer.weight.abs()
    if prior == "wanda":
        assert layer.statistics.squares is not None
        scores = scores * layer.statistics.squares.sqrt().float()
    mask = masks.keep_pattern(scores, pattern) if layer.kept is None else layer.kept
    if bool((mask.view(-1, of).sum(dim=1) != keep).any()):
        raise UserError(
            f"prune.maskllm: an earlier stage left other than {pattern} of {layer.name}; "
            f"allowed: a prune stage with pattern {pattern} before it, or none"
        )
    return masks.wanted_shares(scores.square(), mask, of) if start == "scores" else mask.float()


def _of_blocks(
    work: Work, starts: Values, choice: masks.Choice, samples: int, epochs: int, batch: int, rate: float,
    reward: float,
) -> None:  # fmt: skip
    told = work.kept.load() or {}
    for block in work.blocks(samples, batch):
        with gradients(), torch.no_grad():
            weights = {name: layer.weight.clone() for name, layer in block.layers.items()}
            found = _block(block, weights, starts, choice, epochs, batch, rate, reward)
            for name, weight in weights.items():
                mask = choice.hard(found.values[name], weight.shape)
                block.parts[name] = (Sparse.keep(weight, mask, block.layers[name].dtype),)
        told[str(block.number)] = torch.tensor([found.losses[0], found.losses[found.best]])
        work.kept.save(told)
    for place, words in enumerate(("of the start", "of the learned masks")):
        errors = [float(told[number][place]) for number in sorted(told, key=int)]
        work.report[f"held-out error {words}, by block"] = errors


def _block(
    block: Block, weights: Values, starts: Values, choice: masks.Choice, epochs: int, batch: int, rate: float,
    reward: float,
) -> Fit:  # fmt: skip
    first = {name: choice.first(starts[name].clone(), block.rng) for name in weights}
    steps = epochs * -(-len(split(len(block.inputs))[0]) // batch)
    taken = 0

    def loss(values: Mapping[str, Tensor], some: Tensor) -> Tensor:
        nonlocal taken
        share = min(taken / steps, 1.0)
        learning = torch.is_grad_enabled()
        taken += learning
        linears, kept = {}, torch.zeros(())
        for name, weight in weights.items():
            now = weight * choice.soft(values[name], weight.shape, share, block.rng)
            linears[name] = partial(linear, weight=now, bias=block.biases[name])
            kept = kept + now.square().sum() if reward and learning else kept
        lost = relative_error(block.outputs(block.inputs[some], linears), block.targets[some])
        return lost - reward * (1 - share) * kept

    return fit(
        first, {name: torch.ones(()) for name in first}, loss, len(block.inputs), batch, epochs,
        dict.fromkeys(first, rate), block.rng, block.told,
        as_stored=lambda values: {name: masks.decided(logits) for name, logits in values.items()},
    )  # fmt: skip


def _of_text(
    work: Work, starts: Values, choice: masks.Choice, samples: int, epochs: int, batch: int, rate: float,
    reward: float,
) -> None:  # fmt: skip
    with gradients(), torch.no_grad():
        layers = {layer.name: layer for layer in work.layers("nothing") if layer.name in starts}
        weights = {name: layer.weight.clone() for name, layer in layers.items()}
        logits = {name: choice.first(start.clone(), work.rng) for name, start in starts.items()}
        tokens, loss = work.tokens[:samples], work.loss()
        learned, judges = split(len(tokens))

        def slopes(values: Values, some: Tensor, share: float, rng: torch.Generator) -> Values:
            with torch.enable_grad():
                leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
                now = {
                    name: weights[name] * choice.soft(leaf, weights[name].shape, share, rng)
                    for name, leaf in leaves.items()
                }
                # Masks are drawn once a step, and one sample's graph at a time is in memory.
                ends = {name: made.detach().requires_grad_() for name, made in now.items()}
                felt = {name: -2 * reward * (1 - share) * made.detach() for name, made in now.items()}
                for one in some:
                    lost = loss(tokens[one][None], ends) / len(some)
                    for name, slope in zip(ends, torch.autograd.grad(lost, list(ends.values())), strict=True):
                        felt[name] += slope
                found = torch.autograd.grad(list(now.values()), list(leaves.values()), list(felt.values()))
            return dict(zip(leaves, found, strict=True))

        def judged(values: Values) -> float:
            now = {name: weight * choice.hard(values[name], weight.shape) for name, weight in weights.items()}
            return sum(float(loss(tokens[one][None], now)) for one in judges) / len(judges)

        def packed(values: Values) -> Values:
            return {name: pack(choice.hard(values[name], weights[name].shape), 1) for name in values}

        found = descend(
            logits, slopes, judged, packed, learned, batch, epochs, _JUDGEMENTS, rate,
            work.rng.initial_seed(), work.kept, work.told,
        )  # fmt: skip
        for name, weight in weights.items():
            mask = unpack(found.best[name], 1, weight.numel()).view(weight.shape).bool()
            work.parts[name] = (Sparse.keep(weight, mask, layers[name].dtype),)
    work.report["held-out loss, nats a token"] = list(found.losses)
    work.report["after so many steps"] = list(found.steps)
