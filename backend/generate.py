"""Write on from a prompt, token by token."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from backend.artifacts import OpenModel
from backend.errors import UserError
from backend.precision import all_widened
from backend.sampling import Sampling
from backend.tokenizing import check_rows


def write(
    opened: OpenModel, tokenizer: Any, prompt: str, sampling: Sampling, on_token: Callable[[int], None]
) -> list[int]:
    """Token ids of the answer, each new one handed to `on_token`; whatever that raises stops the writing.

    Raises UserError for an empty prompt, one that leaves no room, and chat without a chat template.
    """
    ids = torch.tensor([list(sampling.begin)], dtype=torch.long)
    if unknown := [token for token in sampling.begin if token >= opened.model.config.vocab_size]:
        raise UserError(
            f"begin: there is no token {unknown[0]}; this model has {opened.model.config.vocab_size}"
        )
    if prompt or not sampling.begin:
        ids = torch.cat([prompt_ids(tokenizer, prompt, sampling.chat), ids], dim=1)
    positions = positions_of(opened.model)
    if positions is not None and ids.shape[1] + sampling.max_tokens > positions:
        raise UserError(
            f"prompt: {ids.shape[1]} tokens and {sampling.max_tokens} new ones are too many; "
            f"this model reads at most {positions}"
        )
    answer = list(sampling.begin)
    torch.manual_seed(sampling.seed)
    drawn = (
        {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        if sampling.temperature > 0
        else {"do_sample": False}
    )
    with torch.inference_mode(), all_widened(opened.model, opened.family):
        opened.model.generate(
            ids.to(opened.device),
            attention_mask=torch.ones_like(ids).to(opened.device),
            max_new_tokens=sampling.max_tokens,
            pad_token_id=_padding(opened.model),
            streamer=_Streamer(answer, on_token),
            **drawn,
        )
    return answer


def positions_of(model: Any) -> int | None:
    """The longest sequence in tokens that a model reads, where its configuration says so."""
    told = getattr(model.config, "max_position_embeddings", None)
    return None if told is None else int(told)


def greedy(opened: OpenModel, tokenizer: Any, prompts: Sequence[str], tokens: int) -> list[list[int]]:
    """Greedy answers of exactly `tokens` token ids to several plain prompts at once."""
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for ids in encoded:
        check_rows(ids, tokenizer, "prompt")
    longest = max(len(ids) for ids in encoded)
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in encoded])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded])
    with torch.inference_mode(), all_widened(opened.model, opened.family):
        out = opened.model.generate(
            padded.to(opened.device),
            attention_mask=mask.to(opened.device),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=_padding(opened.model),
        )
    return out[:, longest:].tolist()


def _padding(model: Any) -> int:
    """The token that fills up what has ended; one without a row in the embedding cannot."""
    told = model.generation_config.pad_token_id or 0
    return told if 0 <= told < model.config.vocab_size else 0


def prompt_ids(tokenizer: Any, prompt: str, chat: bool) -> Tensor:
    """Token ids [1, n] of a prompt, inside the tokenizer's chat template when `chat`."""
    if not prompt.strip():
        raise UserError("prompt: it is empty; write at least a word")
    if not chat:
        return _within(tokenizer, tokenizer(prompt, return_tensors="pt")["input_ids"])
    if not tokenizer.chat_template:
        raise UserError("prompt: this model's tokenizer has no chat template; switch chat off")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return _within(tokenizer, tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"])


def _within(tokenizer: Any, ids: Tensor) -> Tensor:
    check_rows(ids, tokenizer, "prompt")
    return ids


class _Streamer(BaseStreamer):
    """Hands on new tokens; the first call brings the prompt."""

    def __init__(self, answer: list[int], on_token: Callable[[int], None]) -> None:
        self._answer, self._on_token, self._prompt = answer, on_token, True

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        for token in value.flatten().tolist():
            self._answer.append(token)
            self._on_token(token)

    def end(self) -> None:
        pass
