"""What a change of one linear costs the whole model, predicted from one backward pass.

For small changes KL(dense || changed) is a quadratic form in the Fisher matrix. Between linears its cross
terms are left out, within a linear the direction of the output error is kept:

    KL per token ~ 1/2 mean_t (g_t . d_t)²
    d_t = (Ŵ - W) x_t [out],  g_t = d(-ln P(y)) / d(output at t) [out]

with labels y drawn from the model's own distribution (the true Fisher, not the empirical one). A plan costs
the sum over its linears. Underestimates where the KL is near 1 and beyond.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.artifacts import OpenModel
from backend.families import blocks_of
from backend.progress import Progress, Update

# One linear's changes [out, in] float32, by level.
Changes = Callable[[int], Mapping[str, Sequence[Tensor]]]


def sensitivities(
    opened: OpenModel, tokens: Tensor, changes: Changes, seed: int, progress: Progress, scratch: Path
) -> dict[str, list[float]]:
    """{linear: predicted KL in nats per token, one for each of its changes}.

    tokens   ids [windows, length]; each window is one backward pass, and one window is in memory at a time
    changes  for a block number the linears' changes Ŵ - W
    scratch  where inputs and gradients of all windows wait, about 4 bytes per token and linear channel
    """
    blocks = len(blocks_of(opened.model, opened.family))
    found: dict[str, list[float]] = {}
    scratch.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for number, ids in enumerate(tokens):
            progress(Update("gradients", number, len(tokens), f"window {number + 1} of {len(tokens)}"))
            _record(opened, ids.to(opened.device), generator, Path(folder), number)
        for block in range(blocks):
            progress(Update("sensitivity", block, blocks, f"block {block + 1} of {blocks}"))
            kept = [
                load_file(Path(folder) / f"{number}-{block}.safetensors", device=str(opened.device))
                for number in range(len(tokens))
            ]
            for name, levels in changes(block).items():
                found[name] = [
                    _cost(change, [(k[f"{name}#x"], k[f"{name}#g"]) for k in kept]) for change in levels
                ]
    return found


def weight_gradients(
    opened: OpenModel, tokens: Tensor, progress: Progress, scratch: Path
) -> Iterator[tuple[str, Tensor]]:
    """Linear by linear (name, d loss / d weight [out, in] float32), the loss that of the next token in nats.

    The mean over the tokens [windows, length]; inputs and gradients of all windows wait in `scratch`, and one
    weight's gradient is in memory at a time.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    scored = len(tokens) * (tokens.shape[1] - 1)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for number, ids in enumerate(tokens):
            progress(Update("gradients", number, len(tokens), f"window {number + 1} of {len(tokens)}"))
            _record(opened, ids.to(opened.device), None, Path(folder), number)
        for block in range(len(blocks_of(opened.model, opened.family))):
            kept = [
                load_file(Path(folder) / f"{number}-{block}.safetensors", device=str(opened.device))
                for number in range(len(tokens))
            ]
            for name in (name for group in opened.family.group_names(block) for name in group):
                total = sum(k[f"{name}#g"].float().T @ k[f"{name}#x"].float() for k in kept)
                assert isinstance(total, Tensor)
                yield name, total / scored


def _cost(change: Tensor, seen: Sequence[tuple[Tensor, Tensor]]) -> float:
    total = torch.zeros((), dtype=torch.float64, device=change.device)
    for x, gradient in seen:
        error = x @ change.T.to(x.dtype)
        total += (error.float() * gradient.float()).sum(dim=1).square().sum(dtype=torch.float64)
    return float(total) / 2 / sum(len(x) for x, _ in seen)


def _record(
    opened: OpenModel, ids: Tensor, generator: torch.Generator | None, folder: Path, number: int
) -> None:
    """Inputs and output gradients of every linear on one window, a file a block.

    The labels are drawn from the model's own distribution; without a generator they are the text's.
    """
    family = opened.family
    names = [
        name
        for block in range(len(blocks_of(opened.model, family)))
        for group in family.group_names(block)
        for name in group
    ]
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def seen(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = given[0].detach()
            output.register_hook(lambda gradient: gradients.__setitem__(name, gradient.detach()))

        return seen

    handles = [opened.model.get_submodule(name).register_forward_hook(of(name)) for name in names]
    # No weight needs a gradient, so the graph has to begin somewhere: at the embeddings.
    start = opened.model.get_input_embeddings().register_forward_hook(
        lambda module, given, output: output.detach().requires_grad_()
    )
    try:
        with torch.inference_mode(False), torch.enable_grad():
            # Cloned, for what was made in inference mode cannot be part of a graph.
            states = opened.body(input_ids=ids[None].clone(), use_cache=False).last_hidden_state[0]
            logits = opened.readout(states)
            if generator is None:
                logits, labels = logits[:-1], ids[1:].clone()
            else:
                with torch.no_grad():
                    odds = torch.softmax(logits.detach(), dim=1).cpu()
                    labels = torch.multinomial(odds, 1, generator=generator)[:, 0].to(logits.device)
            nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    finally:
        for handle in (*handles, start):
            handle.remove()
    for block in range(len(blocks_of(opened.model, family))):
        kept = {}
        for group in family.group_names(block):
            for name in group:
                kept[f"{name}#x"] = inputs[name].reshape(len(ids), -1).cpu()
                kept[f"{name}#g"] = gradients[name].reshape(len(ids), -1).cpu()
        # Linears of a group share their inputs, and a file keeps every tensor once.
        save_file(
            {name: tensor.clone() for name, tensor in kept.items()}, folder / f"{number}-{block}.safetensors"
        )
