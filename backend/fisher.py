"""What a change of one linear costs the whole model, predicted from backward passes of the dense one.

For small changes KL(dense || changed) is a quadratic form in the Fisher matrix. Between linears its cross
terms are left out; within a linear the direction of the output error and what positions do to each other are
kept, since the loss at a token feels the errors at all positions before it:

    KL per token ~ 1/2T E_y (sum_t g_t . d_t)²,  T positions of a window
    d_t = (Ŵ - W) x_t [out],  g_t = d(sum of -ln P(y)) / d(output at t) [out]

with labels y drawn from the model's own distribution (the true Fisher, not the empirical one), several times
for each window: each draw is one square, and n squares leave the mean a relative error of sqrt(2/n). A plan
costs the sum over its linears.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.artifacts import OpenModel
from backend.families import blocks_of
from backend.progress import Progress, Update

# What is read: windows of so many tokens, and draws of labels for each.
WINDOWS, LENGTH, DRAWS = 8, 256, 4
# Bytes of inputs and gradients that wait on the disk at once; of a larger model they come in several passes.
_WAITING_BYTES = 4_000_000_000

# One linear's changes [out, in] float32, by level.
Changes = Callable[[int], Mapping[str, Sequence[Tensor]]]


def sensitivities(
    opened: OpenModel,
    tokens: Tensor,
    changes: Changes,
    seed: int,
    progress: Progress,
    scratch: Path,
    draws: int = DRAWS,
) -> dict[str, list[float]]:
    """{linear: predicted KL in nats per token, one for each of its changes}.

    tokens   ids [windows, length]; one window is in memory at a time, with a backward pass for each draw
    changes  for a block number the linears' changes Ŵ - W
    scratch  where inputs and gradients of all windows wait, some blocks' at a time
    """
    blocks = len(blocks_of(opened.model, opened.family))
    found: dict[str, list[float]] = {}
    scratch.mkdir(parents=True, exist_ok=True)
    for some in _passes(opened, tokens.numel(), draws):
        # The same labels in each pass.
        generator = torch.Generator().manual_seed(seed)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            for number, ids in enumerate(tokens):
                progress(Update("gradients", number, len(tokens), f"window {number + 1} of {len(tokens)}"))
                _record(opened, ids.to(opened.device), generator, Path(folder), number, some, draws)
            for block in some:
                progress(Update("sensitivity", block, blocks, f"block {block + 1} of {blocks}"))
                kept = [
                    load_file(Path(folder) / f"{number}-{block}.safetensors", device=str(opened.device))
                    for number in range(len(tokens))
                ]
                for name, levels in changes(block).items():
                    seen = [(k[f"{name}#x"], k[f"{name}#g"]) for k in kept]
                    found[name] = [_cost(change, seen) for change in levels]
    return found


def _passes(opened: OpenModel, tokens: int, draws: int) -> list[range]:
    """The blocks in runs whose inputs and gradients may wait on the disk together."""
    count = len(blocks_of(opened.model, opened.family))
    weights = [opened.model.get_submodule(name).weight for name in _names(opened, [0])]
    channels = sum(weight.shape[0] * draws + weight.shape[1] for weight in weights)
    each = tokens * channels * opened.compute_dtype.itemsize
    at_once = max(1, min(count, _WAITING_BYTES // each))
    return [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]


def _names(opened: OpenModel, blocks: Iterable[int]) -> list[str]:
    family = opened.family
    return [name for block in blocks for group in family.group_names(block) for name in group]


def weight_gradients(
    opened: OpenModel, tokens: Tensor, progress: Progress, scratch: Path
) -> Iterator[tuple[str, Tensor]]:
    """Linear by linear (name, d loss / d weight [out, in] float32), the loss that of the next token in nats.

    The mean over the tokens [windows, length]; inputs and gradients of all windows wait in `scratch`, and one
    weight's gradient is in memory at a time.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    scored = len(tokens) * (tokens.shape[1] - 1)
    blocks = range(len(blocks_of(opened.model, opened.family)))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for number, ids in enumerate(tokens):
            progress(Update("gradients", number, len(tokens), f"window {number + 1} of {len(tokens)}"))
            _record(opened, ids.to(opened.device), None, Path(folder), number, blocks, 1)
        for block in blocks:
            kept = [
                load_file(Path(folder) / f"{number}-{block}.safetensors", device=str(opened.device))
                for number in range(len(tokens))
            ]
            for name in (name for group in opened.family.group_names(block) for name in group):
                total = sum(k[f"{name}#g"][0].float().T @ k[f"{name}#x"].float() for k in kept)
                assert isinstance(total, Tensor)
                yield name, total / scored


def _cost(change: Tensor, seen: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Half the mean square, over windows and draws, of what a change adds to the loss, by token.

    seen    for each window its inputs [length, in] and the gradients of each draw [draws, length, out]
    """
    total = torch.zeros((), dtype=torch.float64, device=change.device)
    tokens = 0
    for x, gradients in seen:
        error = (x @ change.T.to(x.dtype)).float()
        felt = torch.stack([(error * one.float()).sum() for one in gradients])
        total += felt.double().square().mean()
        tokens += len(x)
    return float(total) / 2 / tokens


def _record(
    opened: OpenModel,
    ids: Tensor,
    generator: torch.Generator | None,
    folder: Path,
    number: int,
    blocks: Sequence[int],
    draws: int,
) -> None:
    """Inputs and output gradients of the linears of some blocks on one window, a file a block.

    The labels are drawn from the model's own distribution; without a generator they are the text's.
    """
    names = _names(opened, blocks)
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}

    def of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def seen(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = given[0].detach()
            output.register_hook(lambda gradient: gradients[name].append(gradient.detach().cpu()))

        return seen

    handles = [opened.model.get_submodule(name).register_forward_hook(of(name)) for name in names]
    # No weight needs a gradient, so the graph has to begin somewhere: at the first block that is asked about.
    start = blocks_of(opened.model, opened.family)[blocks[0]].register_forward_pre_hook(
        lambda module, given: (given[0].detach().requires_grad_(), *given[1:])
    )
    try:
        with torch.inference_mode(False), torch.enable_grad():
            # Cloned, for what was made in inference mode cannot be part of a graph.
            states = opened.body(input_ids=ids[None].clone(), use_cache=False).last_hidden_state[0]
            logits = opened.readout(states)
            for draw in range(draws):
                loss = _loss(logits, ids, generator)
                loss.backward(retain_graph=draw + 1 < draws)
    finally:
        for handle in (*handles, start):
            handle.remove()
    for block in blocks:
        kept = {}
        for name in _names(opened, [block]):
            kept[f"{name}#x"] = inputs[name].reshape(len(ids), -1).cpu()
            kept[f"{name}#g"] = torch.stack([one.reshape(len(ids), -1) for one in gradients[name]])
        # Linears of a group share their inputs, and a file keeps every tensor once.
        save_file(
            {name: tensor.clone() for name, tensor in kept.items()}, folder / f"{number}-{block}.safetensors"
        )


def _loss(logits: Tensor, ids: Tensor, generator: torch.Generator | None) -> Tensor:
    """-ln P of labels in nats, summed: of the text's next tokens, or of tokens drawn from P itself."""
    if generator is None:
        return nn.functional.cross_entropy(logits[:-1], ids[1:].clone(), reduction="sum")
    with torch.no_grad():
        odds = torch.softmax(logits.detach(), dim=1).cpu()
        labels = torch.multinomial(odds, 1, generator=generator)[:, 0].to(logits.device)
    return nn.functional.cross_entropy(logits, labels, reduction="sum")
