"""The embedded model's output head beside shared rows and factors of the same bytes, in turns in one run.

Logits of one token, as in writing, and of 256, as in reading. What a head computes depends on no weight's
value, so the rows and the tokens' numbers are drawn. Printed are the median of the rounds in milliseconds,
bytes in memory, and the ratio to the dense head in the same rounds.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from backend.artifacts import load_model
from backend.assets import EMBEDDED_MODEL
from backend.facts import facts
from backend.host import Host
from backend.linear import CompressedLinear
from backend.parts import LowRank
from backend.shared import SharedHead, SharedRows


def _bytes(head: nn.Module) -> int:
    tensors = [*head.parameters(), *head.buffers()]
    if isinstance(head, CompressedLinear) and head.thin:
        tensors += [factor for pair in head.thin for factor in pair]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    host = Host.from_environment()
    dense = load_model(facts(EMBEDDED_MODEL, host), host).head
    tokens, width = dense.weight.shape
    dtype, rng = dense.weight.dtype, torch.Generator().manual_seed(0)
    numbers = torch.randint(options.rows, (tokens,), generator=rng)
    part = SharedRows.of(torch.randn(options.rows, width, generator=rng), numbers, dtype)
    rank = max(1, part.bits // (8 * dtype.itemsize * (tokens + width)))
    factors = torch.randn(tokens, rank, generator=rng), torch.randn(rank, width, generator=rng)
    heads: dict[str, nn.Module] = {
        "dense": dense,
        f"{options.rows} shared rows": SharedHead(part, None),
        f"factors of rank {rank}": CompressedLinear((LowRank.of(*factors, dtype),), None, dtype),
    }
    stored = {f"{options.rows} shared rows": part.bits // 8}
    for count in (1, 256):
        states = torch.randn(count, width, generator=rng).to(dtype)
        taken: dict[str, list[float]] = {name: [] for name in heads}
        for turn in range(options.rounds + 3):
            for name, head in heads.items():
                start = time.perf_counter()
                head(states)
                # The first turns warm caches and allocators up.
                if turn >= 3:
                    taken[name].append(time.perf_counter() - start)
        for name, seconds in taken.items():
            ratios = [ours / base for ours, base in zip(seconds, taken["dense"], strict=True)]
            size = f"{_bytes(heads[name]) / 1e6:.1f} MB in memory"
            size += f", {stored[name] / 1e6:.1f} MB stored" if name in stored else ""
            print(
                f"{count} token{'s' if count > 1 else ''}, {name}: "
                f"{1e3 * statistics.median(seconds):.2f} ms, {statistics.median(ratios):.2f} of dense, {size}"
            )


if __name__ == "__main__":
    main()
