"""`python -m backend.footprint ARTIFACT HOME`: the memory that reading and writing take, as JSON."""

import json
import os
import sys
from pathlib import Path

import psutil
import torch

from backend.artifacts import device_of, open_artifact
from backend.compute import die_with
from backend.host import Host
from backend.precision import name_of
from backend.resident import forget_peak, peak_bytes

_PROMPT, _ANSWER = 512, 8


@torch.inference_mode()
def main(artifact: str, home: str) -> None:
    """Open packed, prefill, decode, print peak and protocol."""
    die_with(os.getppid())
    host = Host.at(home)
    device = device_of(host)
    before = psutil.Process().memory_info().rss
    opened = open_artifact(Path(artifact), host, packed=True)
    # Opening holds the file and the tensors at once; what counts is running.
    forget_peak(device)
    positions = getattr(opened.model.config, "max_position_embeddings", _PROMPT + _ANSWER)
    prompt = min(_PROMPT, positions - _ANSWER)
    ids = torch.arange(prompt, device=device)[None] % opened.model.config.vocab_size
    cache = None
    for _ in range(_ANSWER):
        out = opened.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
    on_gpu = device.type == "cuda"
    peak = peak_bytes(device) - (0 if on_gpu else before)
    counted = "CUDA allocator peak" if on_gpu else "rise of the process's resident memory"
    protocol = {
        "prompt": prompt,
        "answer": _ANSWER,
        "weights": "kept packed",
        "counted": counted,
        "device": device.type,
        "compute_dtype": name_of(opened.compute_dtype),
    }
    print(json.dumps({"peak": peak, "protocol": protocol}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
