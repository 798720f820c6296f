"""The sweep that a first start queues by itself, so that the first visit shows real points."""

from typing import Any

from backend.assets import EMBEDDED_MODEL


def starter_sweep() -> dict[str, Any]:
    """The dense model and eight chains around it, cheapest first: a few minutes on two cores."""
    wanda: dict[str, Any] = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
    sparsegpt: dict[str, Any] = {"method": "prune.sparsegpt", "params": {"pattern": "2:4"}}
    return {
        "model": EMBEDDED_MODEL,
        "stages": [
            [],
            [{"method": "quantize.rtn", "params": {"bits": [4, 3]}}],
            [{"method": "quantize.gptq", "params": {"bits": [3, 2]}}],
            [wanda],
            [sparsegpt],
            [wanda, {"method": "compensate.eora", "params": {"rank": 64}}],
            [
                sparsegpt,
                {"method": "quantize.gptq", "params": {"bits": 4}},
                {"method": "compensate.eora", "params": {"rank": 32}},
            ],
        ],
        "calibration": {"text": "wikipedia-en", "samples": 16, "length": 512},
        "evaluation": {
            "text": "wikipedia-en",
            "length": 1024,
            "windows": 8,
            "metrics": ["perplexity", "divergence", "memory"],
        },
    }
