"""GPTQ of the whole embedded model beside a textbook implementation, block by block in the same run.

The textbook walks as ours does, one sample at a time, gathers X'X for each of the seven linears, factors it,
and quantizes column by column, updating all later columns after each. Printed are the seconds of the whole,
of the solver alone (factor and columns), of two passes of the text through the block with nothing gathered,
which both need and which bound the ratio, and the output error both leave.
"""

import argparse
import time
from functools import partial

import torch
from torch import Tensor

from backend.artifacts import load_model, load_tokenizer, replace_module
from backend.assets import EMBEDDED_MODEL
from backend.facts import facts
from backend.families import blocks_of
from backend.host import Host
from backend.linear import CompressedLinear
from backend.methods.quantize.gptq import gptq
from backend.parts import combined
from backend.report import relative_error
from backend.statistics import Gatherer
from backend.text import calibration
from backend.views import Layer, Statistics

BITS, GROUP, DAMPING = 3, 64, 0.01


def textbook(weight: Tensor, gram: Tensor) -> Tensor:
    """GPTQ as its algorithm is printed, without blocks: every column updates all columns after it."""
    w = weight.clone()
    h = gram.clone()
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    out = torch.zeros_like(w)
    for j in range(w.shape[1]):
        if j % GROUP == 0:
            group = w[:, j : j + GROUP]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            scale = ((high - low) / (2**BITS - 1)).clamp(min=1e-8)
            zero = (-low / scale).round()
        codes = ((w[:, j] / scale).round() + zero).clamp(0, 2**BITS - 1)
        out[:, j] = (codes - zero) * scale
        error = (w[:, j] - out[:, j]) / upper[j, j]
        w[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return out


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="wikipedia-en")
    parser.add_argument("--blocks", type=int, default=30)
    options = parser.parse_args()
    host = Host.from_environment()
    opened = load_model(facts(EMBEDDED_MODEL, host), host)
    model, family = opened.model, opened.family
    tokens = calibration(options.text, load_tokenizer(EMBEDDED_MODEL, host), 64, 512, 0, host).ids
    spent = {"ours": 0.0, "ours, solver": 0.0, "textbook": 0.0, "textbook, solver": 0.0, "two passes": 0.0}
    errors = {"ours": 0.0, "textbook": 0.0}
    blocks = blocks_of(model, family)
    states = model.model.embed_tokens(tokens)
    rotary = model.model.rotary_emb(states, torch.arange(512)[None])

    def run(block: int, batch: Tensor) -> Tensor:
        return blocks[block](batch, position_embeddings=rotary, attention_mask=None)

    for block in range(options.blocks):
        groups = family.group_names(block)
        names = [name for group in groups for name in group]

        start = time.perf_counter()
        with Gatherer(model, groups, dict.fromkeys(names, "gram")) as gatherer:
            for first in range(0, 64, 8):
                gatherer.feed(partial(run, block, states[first : first + 8]))
        found = {name: gatherer.of(group) for group in groups for name in group}
        solving = time.perf_counter()
        parts = {}
        for group in groups:
            shared = Statistics(found[group[0]].tokens, found[group[0]].squares, found[group[0]].gram)
            for name in group:
                weight = model.get_submodule(name).weight.float()
                layer = Layer(name, weight, (), shared, torch.Generator(), torch.bfloat16)
                parts[name] = gptq(layer, bits=BITS, group_size=GROUP, damping=DAMPING)
        spent["ours, solver"] += time.perf_counter() - solving
        dense = {name: model.get_submodule(name) for name in names}
        for name in names:
            replace_module(model, name, CompressedLinear(parts[name], None, torch.bfloat16))
        outputs = torch.cat([run(block, states[first : first + 8]) for first in range(0, 64, 8)])
        spent["ours"] += time.perf_counter() - start
        for name, module in dense.items():
            replace_module(model, name, module)

        start = time.perf_counter()
        for first in [*range(0, 64, 8), *range(0, 64, 8)]:
            run(block, states[first : first + 8])
        spent["two passes"] += time.perf_counter() - start

        start = time.perf_counter()
        grams: dict[str, Tensor] = {}

        def add(name: str, x: Tensor, grams: dict[str, Tensor] = grams) -> None:
            x = x.reshape(-1, x.shape[-1]).float()
            grams[name] = grams.get(name, 0) + x.T @ x

        hooks = [
            model.get_submodule(name).register_forward_pre_hook(
                lambda module, inputs, name=name: add(name, inputs[0])
            )
            for name in names
        ]
        for sample in range(64):
            run(block, states[sample : sample + 1])
        for hook in hooks:
            hook.remove()
        solving = time.perf_counter()
        made = {name: textbook(model.get_submodule(name).weight.float(), grams[name]) for name in names}
        spent["textbook, solver"] += time.perf_counter() - solving
        kept = {name: model.get_submodule(name).weight.data for name in names}
        for name, weight in made.items():
            model.get_submodule(name).weight.data = weight.bfloat16()
        for sample in range(64):
            run(block, states[sample : sample + 1])
        spent["textbook"] += time.perf_counter() - start
        for name, weight in kept.items():
            model.get_submodule(name).weight.data = weight

        for name in names:
            weight = kept[name].float()
            errors["ours"] += relative_error(weight, combined(parts[name]), found[name])[0]
            errors["textbook"] += relative_error(weight, made[name], found[name])[0]
        states = outputs
        print(f"block {block + 1}: " + ", ".join(f"{k} {v:.1f} s" for k, v in spent.items()), flush=True)
    count = options.blocks * 7
    left = {name: error / count for name, error in errors.items()}
    print(f"mean relative output error: ours {left['ours']:.5f}, textbook {left['textbook']:.5f}")
    whole, alone = spent["textbook"] / spent["ours"], spent["textbook, solver"] / spent["ours, solver"]
    most = spent["textbook"] / spent["two passes"]
    print(
        f"ratio: whole {whole:.2f}, solver alone {alone:.2f}; the two passes alone allow {most:.2f} at most"
    )


if __name__ == "__main__":
    main()
