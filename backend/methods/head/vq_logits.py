"""Let tokens share rows of the output head: few rows are multiplied, and a token takes the result of its own.

    logit_v = h . C[m(v)]        C [k, d] codes, m(v) the code of token v
    E (h . E_v - h . C_m(v))² = |(E_v - C_m(v)) L|²        L Lᵀ = E h hᵀ, over the calibration text

`frequent` gives a share of the codes to the most frequent tokens of the text and to special tokens, one each,
and clusters the rest; `activation` clusters all tokens by that error, `plain` by their distance. Tuning then
brings the codes nearer to the dense head on the text, the body fixed:

    minimize over C:  mean of - sum_c p_c l_c + ln sum_c n_c exp l_c        l = h Cᵀ, n_c tokens of code c,
                                                                  p_c what the dense head gives them together

Tokens that share a code are equally likely, and greedily the first of them is written. Where the head was
the embedding, the embedding stays, and the model grows by codes and numbers: only the work of the head falls.
Loses much: no pretrained head is made for it. VQ-Logits, arXiv 2505.10202.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.parameters import Samples
from backend.readout import Bounds
from backend.registry import Claim, method
from backend.shared import SharedRows, shared_bytes
from backend.shrink import untie
from backend.sizes import Matrix
from backend.solvers.blockwise import fit, gradients
from backend.solvers.clusters import k_means, means
from backend.views import Work

Codes = Annotated[int, Field(ge=2, le=65536, description="How many rows the head has")]
Mapped = Annotated[Literal["frequent", "activation", "plain"], Field(description="Which tokens share a row")]
Singles = Annotated[
    float, Field(ge=0.0, lt=1.0, description="Share of the rows that frequent tokens have for themselves")
]
Steps = Annotated[int, Field(ge=1, le=100, description="Steps of the clustering")]
Epochs = Annotated[int, Field(ge=0, le=100, description="Times that tuning sees the samples; 0: none")]
Rate = Annotated[float, Field(gt=0.0, le=1.0, description="Step of AdamW, as a share of a row's mean size")]
_CLAIMED = {"codes": 2048, "epochs": 0}
# Added to the mean square of the states, as a share of its mean diagonal.
_RIDGE = 0.01
# Rows of states whose logits of the dense head exist at once.
_ROWS = 128


def _stored(matrix: Matrix, params: Mapping[str, Any]) -> int:
    return shared_bytes(matrix.rows, min(params["codes"], matrix.rows), matrix.inputs, matrix.value_bits)


@method(
    paper="arXiv:2505.10202",
    unties=True,
    stored=_stored,
    claim=Claim(
        "With 2048 rows, not tuned, frequent tokens that keep their own lose less than clusters of all",
        whose="ours",
        paper_says="With rows shared in training, perplexity is 4 % higher for 99 % fewer head weights.",
        better=({"method": "head.vq_logits", "params": {**_CLAIMED, "tokens": "frequent"}},),
        worse=({"method": "head.vq_logits", "params": {**_CLAIMED, "tokens": "activation"}},),
    ),
)
def vq_logits(
    work: Work,
    *,
    codes: Codes = 2048,
    tokens: Mapped = "frequent",
    singles: Singles = 0.75,
    steps: Steps = 15,
    samples: Samples = 16,
    epochs: Epochs = 2,
    learning_rate: Rate = 0.01,
) -> None:
    """Shared rows in place of the head."""
    name = work.family.head
    untie(work.model, name)
    head: Any = work.model.get_submodule(name)
    table, states = head.weight.detach().float(), _states(work, samples)
    codes = min(codes, len(table))
    total = steps + 1 + len(states)

    def clustering(step: int) -> None:
        work.told(len(states) + step, total, f"clusters, step {step} of {steps}")

    numbers = _numbers(work, table, states, tokens, codes, int(singles * codes), steps, clustering)
    rows = means(table, numbers, codes)
    if epochs:
        rows = _tuned(work, head, states, rows, numbers, epochs, learning_rate)
    work.parts[name] = (SharedRows.of(rows, numbers, head.weight.dtype),)
    work.report["tokens that have a row of their own"] = int((torch.bincount(numbers) == 1).sum())


def _states(work: Work, samples: int) -> list[Tensor]:
    """What the head is given for each calibration sample: [length, d]."""
    body = work.model.get_submodule(work.family.blocks.split(".", 1)[0])
    found = []
    for number, ids in enumerate(work.tokens[:samples]):
        work.told(number, samples, f"states of sample {number + 1}")
        ids = ids[None].to(work.model.device)
        found.append(body(input_ids=ids, use_cache=False).last_hidden_state[0])
    return found


def _numbers(
    work: Work,
    table: Tensor,
    states: list[Tensor],
    which: str,
    codes: int,
    singles: int,
    steps: int,
    told: Callable[[int], None],
) -> Tensor:
    """The row of each token [tokens]."""
    if codes == len(table):
        return torch.arange(codes, device=table.device)
    if which == "plain":
        return k_means(table, codes, steps, work.rng, told)
    square = sum(some.double().T @ some.double() for some in states)
    assert isinstance(square, Tensor)
    square /= sum(len(some) for some in states)
    square.diagonal().add_(_RIDGE * square.diagonal().mean())
    seen = table @ torch.linalg.cholesky(square).float()
    if which == "activation":
        return k_means(seen, codes, steps, work.rng, told)
    counts = torch.bincount(work.tokens.flatten(), minlength=len(table))[: len(table)]
    special = [token for token in work.tokenizer.all_special_ids if token < len(table)]
    # A token that ends an answer must not be written in place of another.
    counts[special] = counts.max() + 1
    own = counts.argsort(descending=True, stable=True)[: max(singles, len(special))]
    numbers = torch.full((len(table),), -1, device=table.device)
    numbers[own] = torch.arange(len(own), device=table.device)
    rest = (numbers < 0).nonzero()[:, 0]
    numbers[rest] = len(own) + k_means(seen[rest], codes - len(own), steps, work.rng, told)
    return numbers


def _tuned(
    work: Work,
    head: Any,
    states: list[Tensor],
    rows: Tensor,
    numbers: Tensor,
    epochs: int,
    rate: float,
) -> Tensor:
    """Codes [k, d] that lose less than `rows` on samples that were not learned from, or these."""
    bounded = Bounds.of(work.model.config)
    sizes = torch.bincount(numbers, minlength=len(rows)).float().log()

    def loss(values: Mapping[str, Tensor], some: Tensor) -> Tensor:
        total, count = torch.zeros(()), 0
        for sample in some.tolist():
            for given in states[sample].split(_ROWS):
                with torch.no_grad():
                    odds = bounded(head(given)).softmax(dim=1)
                    mass = torch.zeros(len(given), len(rows)).to(odds).index_add_(1, numbers, odds)
                mine = bounded(given.float() @ values["rows"].T)
                # A sum over a batch of rows at a time keeps one piece's logits in memory.
                total = total + ((mine + sizes).logsumexp(dim=1) - (mass * mine).sum(dim=1)).sum()
                count += len(given)
        return total / count

    with gradients():
        states = [some.clone() for some in states]
        numbers, sizes = numbers.clone(), sizes.clone()
        found = fit(
            {"rows": rows},
            {"rows": rows.square().mean().sqrt().expand_as(rows)},
            loss,
            len(states),
            1,
            epochs,
            {"rows": rate},
            work.rng,
            work.told,
            as_stored=lambda values: {"rows": values["rows"].to(head.weight.dtype).float()},
        )
    work.report["loss of the codes on samples to judge, nats"] = [round(each, 4) for each in found.losses]
    return found.values["rows"]
