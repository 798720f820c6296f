"""The loss of a whole model on text as a function of the weights of some of its linears, for gradients."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from backend.artifacts import OpenModel, replace_module
from backend.parts import Part, combined, inputs_of
from backend.tuning import Standin

if TYPE_CHECKING:
    from backend.pipeline import Walk

TextLoss = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def text_loss(walk: "Walk") -> TextLoss:
    """(token ids [samples, length], {linear: weight [out, in]}) -> nats a token, of the next one.

    The model is a float32 copy of the one at hand; its other linears are as the earlier stages left them.
    """
    opened = walk.opened
    parts: dict[str, tuple[Part, ...]] = {
        name: pieces for block in range(walk.layout.blocks) for name, pieces in walk.parts(block).items()
    }
    with torch.inference_mode(False), torch.no_grad():
        model: Any = copy.deepcopy(opened.model).float().requires_grad_(False)
        mine = OpenModel(model, opened.family, opened.name, opened.device)
        biases: dict[str, Tensor | None] = {}
        for name in walk.layout.layers:
            bias = model.get_submodule(name).bias
            biases[name] = None if bias is None else bias.detach()
            if pieces := parts.get(name):
                weight = combined(pieces).clone()
                fixed = partial(linear, weight=weight, bias=biases[name])
                replace_module(model, name, Standin(inputs_of(pieces), fixed))

    def loss(ids: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        originals = {}
        for name, weight in weights.items():
            originals[name] = model.get_submodule(name)
            function = partial(linear, weight=weight, bias=biases[name])
            replace_module(model, name, Standin(inputs_of(parts.get(name, ())), function))
        try:
            ids = ids.clone().to(opened.device)
            states = mine.body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            logits = mine.readout(states)
            return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        finally:
            for name, original in originals.items():
                replace_module(model, name, original)

    return loss
