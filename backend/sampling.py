"""How an answer is drawn."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    """Settings of one generation: temperature 0 is greedy; `chat` puts the prompt into the chat template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 96
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    chat: bool = False
