"""Compressing and scoring on a GPU: random Llamas of 1 and 8 billion weights, a table in under eight minutes.

The weights are drawn on the device, in bfloat16. A model has the width and vocabulary of its namesake and
fewer blocks, as many as fit the time; what a whole one would take is `predicted`: the seconds of a block
times its namesake's blocks, too many where something is done once. Seconds are those of a chain of stages in
sequential order, statistics and the files of finished blocks included. Speed is that of scoring windows
through what came out, weights decoded or, where all are 2:4, by sparse kernels; its share is that of a
bfloat16 product of random matrices in this run, and counts linears and head alone. In the end a tiny model is
compressed here and on the CPU: how far the answers are apart, relative to them. What no longer fits the time
is left out and named.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from backend.artifacts import OpenModel, device_of
from backend.errors import UserError
from backend.evaluate import final_states, token_losses
from backend.facts import ModelFacts
from backend.families import family_of
from backend.headway import parts_of
from backend.host import Host
from backend.pipeline import Walk
from backend.precision import name_of
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.registry import discover
from backend.report import Report
from backend.resident import forget_peak, peak_bytes
from backend.semi_structured import sparse_kernels

CHAINS: dict[str, list[dict[str, Any]]] = {
    "gptq": [{"method": "quantize.gptq", "params": {"bits": 4, "group_size": 64}}],
    "sparsegpt 2:4": [{"method": "prune.sparsegpt", "params": {"pattern": "2:4"}}],
    "wanda 2:4, eora": [
        {"method": "prune.wanda", "params": {"pattern": "2:4"}},
        {"method": "compensate.eora", "params": {"rank": 64}},
    ],
    # Last, for it changes the model itself.
    "hadamard": [{"method": "transform.hadamard"}],
}


class Shape(NamedTuple):
    """A Llama's sizes; `blocks` are made, of `whole` that its namesake has."""

    hidden: int
    intermediate: int
    heads: int
    shared_heads: int
    vocabulary: int
    blocks: int
    whole: int


SHAPES = {
    "1B": Shape(2048, 8192, 32, 8, 128_256, 2, 16),
    "8B": Shape(4096, 14_336, 32, 8, 128_256, 1, 32),
    "tiny": Shape(64, 128, 4, 2, 256, 2, 2),
}


class RandomWalk(Walk):
    """A walk over a model that has no files, on tokens that were drawn."""

    ids: Tensor
    # Nothing of it is asked, not even by the proof that a transform keeps the function.
    tokenizer = object()
    tokens = property(lambda self: self.ids)


def random_llama(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[OpenModel, ModelFacts]:
    """A model drawn on the device, and its layout."""
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads, num_key_value_heads=shape.shared_heads, vocab_size=shape.vocabulary,
        max_position_embeddings=8192, tie_word_embeddings=False,
    )  # fmt: skip
    with init_empty_weights(include_buffers=False):
        model: Any = LlamaForCausalLM(config)
    rng = torch.Generator(device=device).manual_seed(0)
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            drawn = torch.ones(empty.shape, dtype=dtype, device=device)
            if empty.dim() == 2:
                drawn.normal_(std=empty.shape[1] ** -0.5, generator=rng)
            setattr(module, name, nn.Parameter(drawn, requires_grad=False))
    model.config.dtype = dtype
    family = family_of("llama", "random")
    tensors = {
        name: (tuple(value.shape), value.numel() * value.element_size())
        for name, value in model.named_parameters()
    }
    layers = {
        name: (shapes[0], shapes[1])
        for block in range(shape.blocks)
        for group in family.group_names(block)
        for name in group
        for shapes in [tensors[f"{name}.weight"][0]]
    }
    layout = ModelFacts("random", family, config.to_dict(), layers, tensors, 8192, "random", name_of(dtype))
    return OpenModel(model.to(device).eval(), family, "random", device), layout


def compressed(
    opened: OpenModel, layout: ModelFacts, stages: Sequence[dict[str, Any]], ids: Tensor, scratch: Path
) -> RandomWalk:
    """The walk after all stages."""
    samples, length = ids.shape
    recipe = parse_recipe(
        {
            "model": "random/llama", "stages": list(stages),
            "calibration": {"samples": samples, "length": length},
        }
    )  # fmt: skip
    host = dataclasses.replace(Host.from_environment(), home=scratch)
    walk = RandomWalk(recipe, layout, opened, host, scratch / "walk", silent, Report(opened.device))
    walk.ids = ids
    for part in parts_of(list(enumerate(recipe.stages, start=1))):
        number, stage = part[0]
        method = discover().methods[stage.method]
        if method.shape == "work":
            walk.whole(number, stage, method)
        else:
            walk.blocks(part)
    return walk


def placed(walk: RandomWalk) -> ExitStack:
    """While open, the model is what the walk made of it."""
    stack = ExitStack()
    for block in range(walk.layout.blocks):
        stack.enter_context(walk.swapped(walk.parts(block)))
    return stack


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def scoring(opened: OpenModel, ids: Tensor) -> float:
    """Tokens per second of the losses of windows [n, length], after one to warm up."""
    there = ids.to(opened.device)

    def score() -> None:
        for window in there:
            token_losses(opened, final_states(opened, window)[:-1], window[1:])

    score()
    return ids.numel() / _seconds(score, opened.device)


def peak_of(size: int, device: torch.device) -> float:
    """FLOP/s of a bfloat16 product of random matrices [size, size], the best of ten."""
    rng = torch.Generator(device=device).manual_seed(0)
    one, other = (
        torch.randn(size, size, dtype=torch.bfloat16, device=device, generator=rng) for _ in range(2)
    )
    return 2 * size**3 / min(_seconds(lambda: one @ other, device) for _ in range(10))


def apart(stages: Sequence[dict[str, Any]], device: torch.device, scratch: Path) -> float:
    """How far a tiny model's answers are apart that was compressed here and on the CPU, relative to them."""
    cpu = torch.device("cpu")
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(SHAPES["tiny"].vocabulary, (8, 64), generator=rng)
    drawn, layout = random_llama(SHAPES["tiny"], cpu, torch.float32)
    kept = {name: tensor.clone() for name, tensor in drawn.model.state_dict().items()}
    answers = []
    for place in (cpu, device):
        opened, _ = random_llama(SHAPES["tiny"], place, torch.float32)
        opened.model.load_state_dict(kept)
        walk = compressed(opened, layout, stages, ids, scratch / place.type)
        with placed(walk):
            answers.append(opened.model(ids[:1].to(place)).logits.cpu().double())
    expected, found = answers
    return float((found - expected).norm() / expected.norm())


class Limit:
    """No chain begins that would end after `seconds`, if it takes as long as the longest so far."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._longest, self.began = seconds, 0.0, time.perf_counter()

    def allows(self) -> bool:
        """Whether there is time for another chain."""
        return time.perf_counter() - self.began + self._longest <= self._seconds

    def took(self, seconds: float) -> None:
        """What a chain and its scoring took."""
        self._longest = max(self._longest, seconds)


def rows_of(name: str, samples: int, length: int, peak: float, limit: Limit, folder: Path) -> Iterator[str]:
    """The rows of the table for one model."""
    shape, device = SHAPES[name], device_of(Host.from_environment())
    ids = torch.randint(shape.vocabulary, (samples, length), generator=torch.Generator().manual_seed(0))
    scored = ids[: max(1, samples // 4)]
    opened, layout = random_llama(shape, device, torch.bfloat16)
    multiplied = sum(rows * inputs for rows, inputs in layout.layers.values())
    multiplied = 2 * (multiplied + shape.hidden * shape.vocabulary)

    def row(chain: str, seconds: str, predicted: str) -> str:
        rate = scoring(opened, scored)
        return (
            f"| {name} | {chain} | {shape.blocks} of {shape.whole} | {seconds} | {predicted} "
            f"| {peak_bytes(device) / 1e9:.1f} | {rate:.0f} | {rate * multiplied / peak:.0%} |"
        )

    forget_peak(device)
    yield row("dense", "", "")
    for number, (chain, stages) in enumerate(CHAINS.items()):
        if not limit.allows():
            yield f"| {name} | {chain} | left out: no time | | | | | |"
            continue
        start = time.perf_counter()
        forget_peak(device)
        walk = compressed(opened, layout, stages, ids, folder / f"{name}-{number}")
        _wait(device)
        taken = time.perf_counter() - start
        with placed(walk), sparse_kernels(opened.model) as sparse:
            told = f"{chain}, {sparse} sparse kernels" if sparse else chain
            yield row(told, f"{taken:.1f}", f"{taken / shape.blocks * shape.whole:.0f}")
        limit.took(time.perf_counter() - start)


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: 1B and 8B")
    parser.add_argument("--samples", type=int, default=16, help="of calibration; a quarter is scored")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sample")
    parser.add_argument("--product", type=int, default=8192, help="side of the product that gives the peak")
    parser.add_argument("--seconds", type=float, default=400.0, help="after which no chain is to end")
    options = parser.parse_args(arguments)
    device, limit = device_of(Host.from_environment()), Limit(options.seconds)
    if device.type != "cuda":
        raise UserError(
            "bench gpu: no CUDA device is in use here; allowed: a machine with one, "
            "and PARETOSCOPE_DEVICE auto, cuda or cuda:N"
        )
    peak = peak_of(options.product, device)
    print(f"{torch.cuda.get_device_name(device)}, product of {options.product}: {peak / 1e12:.1f} TFLOP/s")
    print(f"{options.samples} x {options.length} tokens of calibration")
    print("| model | chain | blocks | s | s, predicted for all | peak GB | tokens/s | share of peak |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.shape or ["1B", "8B"]:
            for row in rows_of(name, options.samples, options.length, peak, limit, Path(folder)):
                print(row, flush=True)
            torch.cuda.empty_cache()
        for number, (chain, stages) in enumerate(CHAINS.items()):
            far = apart(stages, device, Path(folder) / f"tiny-{number}")
            print(f"tiny model, {chain}: answers {far:.1e} from those of the CPU, relative to them")
    print(f"{time.perf_counter() - limit.began:.0f} s in all")


if __name__ == "__main__":
    main()
