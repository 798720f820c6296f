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

from backend.artifacts import load_model, load_tokenizer
from backend.assets import EMBEDDED_MODEL
from backend.evaluate import final_states, token_losses
from backend.facts import facts
from backend.host import Host
from backend.models import locate
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
    widest = max(layout.layers.values(), key=math.prod)
    peaks = {dtype: math.inf for dtype in (stored, torch.float32)}
    plain(windows[:1, :256])
    for opened in ours.values():
        token_losses(opened, final_states(opened, windows[0, :256]), windows[0, :256])
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
            peaks[dtype] = min(peaks[dtype], _product_seconds(widest, dtype))
    speeds = {dtype: 2 * LENGTH * math.prod(widest) / seconds / 1e9 for dtype, seconds in peaks.items()}
    blocks, head = sum(map(math.prod, layout.layers.values())), math.prod(next(iter(layout.tables.values())))
    report(spent, losses, speeds, windows.numel(), blocks, head)
    told = compute_dtype(stored, torch.device("cpu"), host)
    print(f"auto takes {name_of(told)} here")


def report(
    spent: dict[str, float], losses: dict[str, list[float]], speeds: dict[torch.dtype, float],
    tokens: int, weights: int, head: int,
) -> None:  # fmt: skip
    """Print a line for each way of scoring; `weights` are those of the blocks' linears."""
    for dtype, speed in speeds.items():
        print(f"widest product in {name_of(dtype)}: {speed:.0f} GFLOP/s")
    for name, seconds in spent.items():
        rate = tokens / seconds
        told = f"{spent['plain loop'] / seconds:.2f} times the plain loop" if "alone" not in name else ""
        if "float32" in name:
            multiplied = 2 * (weights + (0 if "alone" in name else head))
            told += f"  {rate * multiplied / 1e9 / speeds[torch.float32]:.0%} of the float32 peak"
        if losses[name]:
            told += f"  perplexity {math.exp(sum(losses[name]) / len(losses[name])):.4f}"
        print(f"{name:34} {rate:7.0f} tokens/s  {told}")


def _product_seconds(shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Of a window with a linear of this shape (out, in)."""
    weight, x = torch.randn(shape).to(dtype), torch.randn(LENGTH, shape[1]).to(dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
