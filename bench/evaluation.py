"""Tokens per second of scoring 2048-token windows, beside a plain transformers loop in the same run.

The plain loop makes the logits of a whole window, turns them to float32 and takes the cross-entropy. The
model is computed as it is stored and in float32; `auto` is what a run takes here. All read the same windows
in turn, so that a busy machine slows all, and between them the widest product of a block is timed in either
type: a speed is also told as the share of that peak which the products of linears and head alone make up.

ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 shows what a processor without bfloat16 instructions does.
"""

import argparse
import math
import time
from dataclasses import replace

import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from backend.artifacts import OpenModel, load_model, load_tokenizer
from backend.assets import EMBEDDED_MODEL
from backend.evaluate import final_states, token_losses
from backend.host import Host
from backend.models import facts, locate
from backend.precision import compute_dtype, name_of
from backend.text import evaluation

LENGTH = 2048


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="wikipedia-en")
    parser.add_argument("--windows", type=int, default=4)
    options = parser.parse_args()
    host = Host.from_environment()
    layout = facts(EMBEDDED_MODEL, host)
    tokenizer = load_tokenizer(EMBEDDED_MODEL, host)
    windows = evaluation(options.text, tokenizer, LENGTH, options.windows, host).ids
    stored = torch.bfloat16
    plain = AutoModelForCausalLM.from_pretrained(locate(EMBEDDED_MODEL, host), dtype=stored).eval()
    ours = {
        f"computed in {name}": load_model(layout, replace(host, compute=name))
        for name in ("bfloat16", "float32")
    }
    names = ["plain loop", *ours, *(f"{name}, blocks alone" for name in ours)]
    spent, losses = dict.fromkeys(names, 0.0), {name: [] for name in names}
    peaks = {dtype: math.inf for dtype in (stored, torch.float32)}
    token_losses(
        next(iter(ours.values())), final_states(next(iter(ours.values())), windows[0, :64]), windows[0, :64]
    )
    for ids in windows:
        start = time.perf_counter()
        logits = plain(ids[None]).logits[0].float()
        losses["plain loop"].append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item())
        del logits
        spent["plain loop"] += time.perf_counter() - start
        for name, opened in ours.items():
            start = time.perf_counter()
            states = final_states(opened, ids)
            middle = time.perf_counter()
            losses[name].append(token_losses(opened, states[:-1], ids[1:]).mean().item())
            spent[name] += time.perf_counter() - start
            spent[f"{name}, blocks alone"] += middle - start
        for dtype in peaks:
            peaks[dtype] = min(peaks[dtype], _product_seconds(ours, dtype))
    report(
        spent,
        losses,
        peaks,
        windows.numel(),
        sum(rows * width for rows, width in layout.layers.values()),
        math.prod(layout.tables[layout.family.embeddings[0]]),
    )
    told = compute_dtype(stored, torch.device("cpu"), host)
    print(f"auto takes {name_of(told)} here")


def report(
    spent: dict[str, float], losses: dict[str, list[float]], peaks: dict[torch.dtype, float],
    tokens: int, weights: int, head: int,
) -> None:  # fmt: skip
    """Print a line for each way of scoring."""
    speeds = {dtype: 2 * LENGTH * 1536 * 576 / seconds / 1e9 for dtype, seconds in peaks.items()}
    for dtype, speed in speeds.items():
        print(f"largest product in {name_of(dtype)}: {speed:.0f} GFLOP/s")
    for name, seconds in spent.items():
        rate = tokens / seconds
        told = f"{spent['plain loop'] / seconds:.2f} times the plain loop" if "alone" not in name else ""
        if "float32" in name:
            multiplied = 2 * (weights + (0 if "alone" in name else head))
            told += f"  {rate * multiplied / 1e9 / speeds[torch.float32]:.0%} of the float32 peak"
        if losses[name]:
            told += f"  perplexity {math.exp(sum(losses[name]) / len(losses[name])):.4f}"
        print(f"{name:34} {rate:7.0f} tokens/s  {told}")


def _product_seconds(ours: dict[str, OpenModel], dtype: torch.dtype) -> float:
    """Of a window with the first block's widest linear."""
    model = next(iter(ours.values())).model
    weight = model.model.layers[0].mlp.gate_proj.weight.to(dtype)
    x = torch.ones(LENGTH, weight.shape[1], dtype=dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
