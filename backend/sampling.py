"""How an answer is drawn."""

import unicodedata
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    """Settings of one generation: temperature 0 is greedy; `chat` puts the prompt into the chat template.

    `begin` are the token ids that the answer is made to begin with; `max_tokens` come after them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 96
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    chat: bool = False
    begin: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=4096)] = ()


def printable(text: str) -> str:
    """A text without the characters that nobody sees and that databases and tokenizers trip over."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        character
        for character in text
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    )
