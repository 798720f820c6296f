"""Turn the residual stream, the heads and the MLP by orthogonal matrices, so that no channel is an outlier.

    E <- E Q,  W_in <- W_in diag(g) Q,  W_out <- Qᵀ W_out,  head <- head diag(g) Q,  g <- 1    Q = diag(±1) H
    v <- (I ⊗ H_h)ᵀ v,  o <- o (I ⊗ H_h)  for heads of size h
    down <- down H_f,  and x <- x H_f before it, as the model runs

with g the weights of the norms and H orthogonal Hadamard matrices [n, n]; for a residual stream without one,
Q is a random orthogonal matrix. Everything but the last line is folded into the weights. The function stays;
rounding the turned weights to the model's type is its only change. Gains where activations are quantized
afterwards; a model whose weights were on a grid leaves it. A head that was tied to the embedding gets weights
of its own, which the bytes show. Needs RMS norms before both halves of a block and none behind them, as
Llama and its kin have. Ashkboos et al., QuaRot, arXiv 2404.00456, section 4.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from backend.costs import Cost
from backend.errors import UserError
from backend.inputs import Rotated
from backend.parts import Dense
from backend.registry import Claim, method
from backend.shrink import untie
from backend.solvers import hadamard as matrices
from backend.solvers.folding import set_weight, weight_of
from backend.views import Work

Heads = Annotated[bool, Field(description="Turn values and the inputs of the output projection within heads")]
Online = Annotated[bool, Field(description="Turn the inputs of the down projection while the model runs")]
# With 4 bits, as in the paper, whatever is not turned breaks on small models.
_SIX = {"method": "quantize.activations", "params": {"input_bits": 6}}


@method(
    paper="arXiv:2404.00456",
    cost=Cost("round", 13),
    unties=True,
    claim=Claim(
        "With 6-bit activations, turning loses less than smoothing the channels",
        whose="ours",
        paper_says="QuaRot rounds weights, activations and cache to 4 bits, and beats SmoothQuant there.",
        better=({"method": "transform.hadamard"}, _SIX),
        worse=({"method": "transform.smoothquant"}, _SIX),
        more_bytes=True,
    ),
)
def hadamard(work: Work, *, heads: Heads = True, online: Online = True) -> None:
    """Turn the whole model."""
    model: Any = work.model
    family = work.family
    if not family.rotates:
        raise UserError(
            f"transform.hadamard: {family.name} has other norms than RMS norms before each half of a block; "
            "allowed: Llama and what is built like it, as Mistral, Qwen, SmolLM3, Phi-3 and Granite"
        )
    untie(model, family.head)
    head: Any = model.get_submodule(family.head)
    embedding: Any = model.get_submodule(family.embeddings[0])
    size = embedding.weight.shape[1]
    turn = _turn(size, work.rng).to(embedding.weight.device)
    final: Any = model.get_submodule(family.final_norm)
    with torch.no_grad():
        head.weight.copy_(_turned(head.weight.double() * final.weight.double(), turn))
        embedding.weight.copy_(_turned(embedding.weight.double(), turn))
        final.weight.fill_(1.0)
    for block in range(len(model.get_submodule(family.blocks))):
        groups = family.group_names(block)
        for number in (0, 2):
            norm: Any = model.get_submodule(f"{family.blocks}.{block}.{family.feeds[number]}")
            for name in groups[number]:
                weight = weight_of(model, family, name).double() * norm.weight.double()
                set_weight(model, family, name, weight @ turn)
            with torch.no_grad():
                norm.weight.fill_(1.0)
        for number in (1, 3):
            (name,) = groups[number]
            set_weight(model, family, name, turn.T @ weight_of(model, family, name).double())
            bias = getattr(model.get_submodule(name), "bias", None)
            if bias is not None:
                with torch.no_grad():
                    bias.copy_(turn.T @ bias.double())
        if heads:
            _turn_heads(work, block)
        (down,) = groups[3]
        weight = weight_of(model, family, down)
        if online and matrices.exists(weight.shape[1]) and work.covers(down):
            rotation = Rotated((weight.shape[0], weight.shape[1]))
            dtype = model.get_submodule(down).weight.dtype
            work.parts[down] = (
                Dense(rotation.shape, rotation.of_weight(weight).to(dtype)), rotation,
            )  # fmt: skip


def _turn_heads(work: Work, block: int) -> None:
    model: Any = work.model
    family, config = work.family, model.config
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if not family.feeds[1] or not matrices.exists(width):
        return
    value = f"{family.blocks}.{block}.{family.feeds[1]}"
    (out,) = family.group_names(block)[1]
    rows = weight_of(model, family, value).double()
    small = matrices.hadamard(width).to(rows.device)
    set_weight(model, family, value, (small.T @ rows.view(-1, width, rows.shape[1])).view_as(rows))
    bias = getattr(model.get_submodule(value), "bias", None)
    if bias is not None:
        with torch.no_grad():
            bias.copy_((bias.double().view(-1, width) @ small).reshape(-1))
    columns = weight_of(model, family, out).double()
    set_weight(model, family, out, (columns.view(len(columns), -1, width) @ small).view_as(columns))


def _turn(size: int, rng: torch.Generator) -> Tensor:
    """An orthogonal matrix [size, size] float64: a Hadamard matrix with random signs, else a random one."""
    if matrices.exists(size):
        signs = torch.randint(0, 2, (size, 1), generator=rng).double() * 2 - 1
        return signs * matrices.hadamard(size)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))
    return q * r.diagonal().sign()


def _turned(weight: Tensor, turn: Tensor) -> Tensor:
    # Row blocks: a vocabulary in float64 is large.
    return torch.cat([rows @ turn for rows in weight.split(8192)])
