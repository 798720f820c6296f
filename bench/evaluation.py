"""Tokens per second of scoring 2048-token windows, beside a plain transformers loop in the same run.

The plain loop makes the logits of a whole window, turns them to float32 and takes the cross-entropy. Both
read the same windows in turn, so that a busy machine slows both.
"""

import argparse
import math
import time

import torch
from transformers import AutoModelForCausalLM

from backend.artifacts import load_model, load_tokenizer
from backend.assets import EMBEDDED_MODEL
from backend.evaluate import final_states, token_losses
from backend.host import Host
from backend.models import facts, locate
from backend.text import evaluation


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="wikipedia-en")
    parser.add_argument("--windows", type=int, default=6)
    options = parser.parse_args()
    host = Host.from_environment()
    layout = facts(EMBEDDED_MODEL, host)
    opened = load_model(layout, host)
    plain = AutoModelForCausalLM.from_pretrained(locate(EMBEDDED_MODEL, host), dtype=torch.bfloat16).eval()
    windows = evaluation(options.text, load_tokenizer(EMBEDDED_MODEL, host), 2048, options.windows, host).ids
    spent = {"plain loop": 0.0, "paretoscope": 0.0, "blocks alone": 0.0}
    losses: dict[str, list[float]] = {"plain loop": [], "paretoscope": []}
    token_losses(opened, final_states(opened, windows[0])[:-1], windows[0][1:])
    plain(windows[:1])
    for ids in windows:
        start = time.perf_counter()
        logits = plain(ids[None]).logits[0].float()
        losses["plain loop"].append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item())
        del logits
        middle = time.perf_counter()
        states = final_states(opened, ids)
        blocks = time.perf_counter()
        losses["paretoscope"].append(token_losses(opened, states[:-1], ids[1:]).mean().item())
        spent["plain loop"] += middle - start
        spent["paretoscope"] += time.perf_counter() - middle
        spent["blocks alone"] += blocks - middle
    tokens = windows.numel()
    for name, seconds in spent.items():
        found = f"perplexity {math.exp(sum(losses[name]) / len(windows)):.4f}" if name in losses else ""
        print(f"{name:13} {tokens / seconds:7.0f} tokens/s  {found}")
    print(f"ratio {spent['plain loop'] / spent['paretoscope']:.2f}")


if __name__ == "__main__":
    main()
