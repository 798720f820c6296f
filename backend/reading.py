"""Read a text token by token with the dense model and with compressed ones: losses, divergences, guesses."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from backend.artifacts import OpenModel
from backend.errors import UserError
from backend.evaluate import compare_logits, final_states, token_losses
from backend.generate import prompt_ids
from backend.progress import Progress, Update
from backend.readout import SLICE
from backend.tokenizing import check_rows

MOST_TOKENS = 1024
GUESSES = 5
_DIGITS = 5


def read(
    dense: OpenModel, tokenizer: Any, ids: Sequence[int], runs: Iterable[tuple[str, OpenModel]],
    total: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """What each model thinks of token ids [n]; lists have n - 1 entries, for the tokens after the first.

    pieces  {token id: its text}
    dense   loss (-ln P of the token, nats) and top (the likeliest tokens as [id, probability])
    runs    the same for each, with kl (KL(P || Q) of the next token) and rank (of P's first token in Q)
    """
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens; write something that has at least 2")
    progress(Update("read", 0, total + 1, "dense"))
    text = torch.tensor(list(ids), dtype=torch.long, device=dense.device)
    with torch.inference_mode():
        states = final_states(dense, text)[:-1]
        told, tops = {}, _tops(dense, states)
        own: list[float | None] = []
        for number, (name, opened) in enumerate(runs, start=1):
            progress(Update("read", number, total + 1, name))
            scores = _scores(opened, final_states(opened, text)[:-1], dense, states, text[1:])
            own = _numbers(scores.pop("dense_nll"))
            told[name] = {
                "loss": _numbers(scores["nll"]), "kl": _numbers(scores["kl"]),
                "rank": scores["rank"].tolist(), "top": _pairs(scores["ids"], scores["chances"]),
            }  # fmt: skip
        if not told:
            own = _numbers(token_losses(dense, states, text[1:]))
    seen = {*map(int, ids), *(token for row in tops for token, _ in row)}
    seen |= {token for run in told.values() for row in run["top"] for token, _ in row}
    return {
        "ids": [int(token) for token in ids],
        "pieces": {str(token): tokenizer.decode([token]) for token in sorted(seen)},
        "dense": {"loss": own, "top": tops},
        "runs": told,
    }


def ids_of(tokenizer: Any, text: str, answer: Sequence[int], chat: bool, most: int) -> tuple[list[int], bool]:
    """(at most so many token ids of a text, or of a prompt and its answer; whether some were cut off)."""
    if answer:
        found = [*prompt_ids(tokenizer, text, chat)[0].tolist(), *answer]
    else:
        found = tokenizer(text)["input_ids"]
        check_rows(found, tokenizer, "text")
    return [int(token) for token in found[:most]], len(found) > most


def _scores(
    opened: OpenModel, states: Tensor, dense: OpenModel, dense_states: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    rows = []
    # As many rows at a time as an evaluation takes, so that the numbers are the same.
    for mine, theirs, wanted in zip(
        opened.readout.slices(states),
        dense.readout.slices(dense_states),
        targets.split(SLICE),
        strict=True,
    ):
        row = compare_logits(mine, theirs, wanted)
        best = mine.gather(1, theirs.argmax(dim=1, keepdim=True))
        chances, tokens = mine.softmax(dim=1).topk(GUESSES, dim=1)
        row |= {"rank": (mine > best).sum(dim=1) + 1, "chances": chances, "ids": tokens}
        rows.append(row)
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}


def _tops(opened: OpenModel, states: Tensor) -> list[list[list[Any]]]:
    slices = opened.readout.slices(states)
    found = [logits.softmax(dim=1).topk(GUESSES, dim=1) for logits in slices]
    return _pairs(torch.cat([row.indices for row in found]), torch.cat([row.values for row in found]))


def _pairs(tokens: Tensor, chances: Tensor) -> list[list[list[Any]]]:
    return [
        [[token, round(chance, _DIGITS)] for token, chance in zip(*row, strict=True) if math.isfinite(chance)]
        for row in zip(tokens.tolist(), chances.tolist(), strict=True)
    ]


def _numbers(values: Tensor) -> list[float | None]:
    """JSON knows no infinity, and a broken model has one."""
    return [round(value, _DIGITS) if math.isfinite(value) else None for value in values.tolist()]
