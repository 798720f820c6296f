"""Surgery: compress one linear of a model alone, and see at once what that does."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from backend.artifacts import OpenModel, load_model, load_tokenizer, replace_module
from backend.errors import UserError
from backend.evaluate import compare_logits, final_states
from backend.facts import facts
from backend.generate import greedy
from backend.host import Host
from backend.linear import CompressedLinear
from backend.pipeline import Walk
from backend.precision import widened
from backend.progress import Progress, Update
from backend.recipe import Calibration, parse_recipe
from backend.registry import discover
from backend.report import Report
from backend.rules import check_layers
from backend.text import evaluation
from backend.views import most

WINDOWS, LENGTH = 4, 512
ANSWER_TOKENS = 32
PROMPTS = (
    "The capital of France is",
    "Water boils when",
    "Once upon a time there was a little",
)
_ROWS = 64


@torch.inference_mode()
def operate(
    model: str,
    layer: str,
    stages: Sequence[Mapping[str, Any]],
    calibration: Calibration,
    host: Host,
    progress: Progress,
) -> dict[str, Any]:
    """Measurements of the model in which `stages` worked on `layer` alone, as plain values.

    KL from dense and perplexity on a few windows of the text's test part, the layer's error and bytes, and
    greedy answers beside the dense model's. Raises UserError for a layer or stages that cannot work.
    """
    began = time.perf_counter()
    layout = facts(model, host)
    if layer not in layout.layers:
        raise UserError(f"surgery: {layer[:120]!r} is no linear; names look like {next(iter(layout.layers))}")
    recipe = parse_recipe(
        {
            "model": model,
            "stages": [{**stage, "only": layer} for stage in stages],
            "calibration": {**calibration.model_dump(), "order": "dense"},
            "evaluation": {"text": calibration.text, "length": LENGTH, "windows": WINDOWS},
        }
    )
    if not recipe.stages or any(discover().methods[stage.method].shape == "work" for stage in recipe.stages):
        raise UserError("surgery: choose one or more methods that work on single linears")
    if own := next((stage.text for stage in recipe.stages if stage.text), None):
        raise UserError(
            f"surgery: one text serves all stages, so {own[:60]!r} cannot be; allowed: text empty"
        )
    check_layers(recipe, layout.layers, layout.positions)
    progress(Update("open", 0, 3, model))
    opened, tokenizer, windows, states, answers = _patient(model, calibration.text, host)
    progress(Update("operate", 1, 3, layer))
    walk = Walk(recipe, layout, opened, host, host.runs / "surgery", progress, Report(opened.device))
    asked = most(discover().methods[stage.method].asks(stage.params) for stage in recipe.stages)
    found = walk.look(layer, "surgery", most(("gram", asked)))
    parts, rows = walk.apply(layer, recipe.stages_of(layer), (), found.statistics)
    linear: Any = opened.model.get_submodule(layer)
    replace_module(opened.model, layer, CompressedLinear(parts, linear.bias, found.dtype))
    try:
        progress(Update("measure", 2, 3, layer))
        scores = [_scores(opened, ids, dense) for ids, dense in zip(windows, states, strict=True)]
        said = greedy(opened, tokenizer, PROMPTS, ANSWER_TOKENS)
    finally:
        replace_module(opened.model, layer, linear)
    progress(Update("measure", 3, 3, layer))
    per_window = {name: torch.stack([score[name].double().mean() for score in scores]) for name in scores[0]}
    kls = per_window["kl"]
    return {
        "layer": layer,
        "chain": recipe.chain(),
        "kl": float(kls.mean()),
        "kl_stderr": float(kls.std() / math.sqrt(len(kls))),
        "agreement": float(per_window["agree"].mean()),
        "perplexity": math.exp(float(per_window["nll"].mean())),
        "dense_perplexity": math.exp(float(per_window["dense_nll"].mean())),
        "tokens": WINDOWS * (LENGTH - 1),
        **{key: rows[-1][key] for key in ("error", "bits", "sparsity", "rank", "bytes")},
        "dense_bytes": linear.weight.numel() * linear.weight.element_size(),
        "answers": [
            {"prompt": prompt, "dense": dense, "changed": tokenizer.decode(ids, skip_special_tokens=True)}
            for prompt, dense, ids in zip(PROMPTS, answers, said, strict=True)
        ],
        "seconds": time.perf_counter() - began,
    }


# The next operation is most likely on the same patient.
@lru_cache(maxsize=1)
def _patient(
    model: str, text: str, host: Host
) -> tuple[OpenModel, Any, Tensor, tuple[Tensor, ...], tuple[str, ...]]:
    """The dense model, its tokenizer, windows, their final hidden states, and its answers."""
    opened, tokenizer = load_model(facts(model, host), host), load_tokenizer(model, host)
    windows = evaluation(text, tokenizer, LENGTH, WINDOWS, host).ids.to(opened.device)
    states = tuple(final_states(opened, ids) for ids in windows)
    said = greedy(opened, tokenizer, PROMPTS, ANSWER_TOKENS)
    answers = tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in said)
    return opened, tokenizer, windows, states, answers


def _scores(opened: OpenModel, ids: Tensor, dense: Tensor) -> dict[str, Tensor]:
    readout = opened.readout
    states, targets = final_states(opened, ids)[:-1], ids[1:]
    with widened(readout.head):
        rows = [
            compare_logits(
                readout(states[start : start + _ROWS]),
                readout(dense[:-1][start : start + _ROWS]),
                targets[start : start + _ROWS],
            )
            for start in range(0, len(targets), _ROWS)
        ]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
