"""Tokens per second of this process, reading a prompt and writing an answer.

    speed.prefill  512 tokens read at once;  speed.decode  32 tokens written one by one

Compressed weights are decoded before they run, so the figures are those of plain matrices and are marked
`simulated`: they tell what the run costs here, not what a packed kernel would reach. Where all of them are
2:4 and the device has kernels for that, these run, and the figures are real ones.
"""

import statistics
import time

import torch

from backend.artifacts import compressed_modules
from backend.evaluate import Measured, Result, Subject
from backend.generate import positions_of
from backend.precision import all_widened, name_of
from backend.progress import Update
from backend.registry import metric
from backend.semi_structured import sparse_kernels

_PROMPT, _ANSWER, _REPEATS = 512, 32, 3


@metric
@torch.inference_mode()
def speed(subject: Subject) -> Result:
    """Medians of three passes after one to warm up."""
    compressed = len(compressed_modules(subject.opened.model))
    opened = subject.opened
    with sparse_kernels(opened.model) as sparse, all_widened(opened.model, opened.family):
        return _timed(subject, simulated=sparse < compressed)


def _timed(subject: Subject, simulated: bool) -> Result:
    opened = subject.opened
    prompt = min(_PROMPT, (positions_of(opened.model) or _PROMPT + _ANSWER) - _ANSWER)
    if prompt < 1:
        # Too few positions for an answer of this length.
        return Result()
    ids = subject.tokens.ids.flatten()[:prompt][None].to(opened.device)
    reads, writes = [], []
    for number in range(_REPEATS + 1):
        subject.progress(Update("speed", number, _REPEATS + 1))
        start = _now(opened.device)
        out = opened.model(ids, use_cache=True, logits_to_keep=1)
        middle = _now(opened.device)
        for _ in range(_ANSWER):
            subject.progress(Update("speed", number, _REPEATS + 1))
            token = out.logits[:, -1:].argmax(dim=-1)
            out = opened.model(token, past_key_values=out.past_key_values, use_cache=True)
        if number:
            reads.append(middle - start)
            writes.append(_now(opened.device) - middle)
    stamp = {
        "prompt": ids.shape[1], "answer": _ANSWER, "device": opened.device.type, "simulated": simulated,
        "threads": torch.get_num_threads(), "compute_dtype": name_of(opened.compute_dtype),
    }  # fmt: skip
    prefill, decode = ids.shape[1] / statistics.median(reads), _ANSWER / statistics.median(writes)
    return Result(
        [
            Measured("speed.prefill", prefill, "tokens/s", False, stamp, n=_REPEATS),
            Measured("speed.decode", decode, "tokens/s", False, stamp, n=_REPEATS),
        ]
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
