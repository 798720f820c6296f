"""Layers with the statistics of correlated inputs, and plain float64 references to hold methods against."""

import torch
from torch import Tensor

from backend.views import Layer, Statistics


def correlated_inputs(tokens: int, inputs: int, seed: int = 0) -> Tensor:
    """X [tokens, in] float64 whose covariance spans several decades, as activations of real models do."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    scales = torch.logspace(1, -2, inputs, dtype=torch.float64)
    return torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ (mixed * scales[:, None])


def statistics_of(x: Tensor) -> Statistics:
    """Statistics of inputs X [tokens, in]."""
    x = x.double()
    gram = x.T @ x
    sizes = x.abs()
    return Statistics(
        x.shape[0], gram.diagonal().clone(), gram, x.sum(dim=0), sizes.mean(dim=0), sizes.sum(dim=0),
        sizes.amax(dim=0), x[:512].float(),
    )  # fmt: skip


def layer_of(weight: Tensor, x: Tensor, dtype: torch.dtype = torch.float32) -> Layer:
    """A fresh layer of that weight whose inputs were X."""
    rng = torch.Generator().manual_seed(0)
    return Layer("model.layers.0.self_attn.q_proj", weight.float(), (), statistics_of(x), rng, dtype)


def random_layer(
    rows: int = 48, inputs: int = 128, tokens: int = 1024, seed: int = 0
) -> tuple[Layer, Tensor]:
    """A layer of random weights and its inputs X [tokens, in]."""
    x = correlated_inputs(tokens, inputs, seed)
    weight = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed + 1))
    return layer_of(weight, x), x


def after(layer: Layer, parts: tuple) -> Layer:
    """The same layer with the parts that a stage made."""
    return Layer(layer.name, layer.weight, parts, layer.statistics, layer.rng, layer.dtype)


def output_error(x: Tensor, weight: Tensor, now: Tensor) -> float:
    """||X (W - Ŵ)ᵀ||² computed on the inputs themselves, without any second moment."""
    return float((x.double() @ (weight.double() - now.double()).T).square().sum())


def real_like_layer(rows: int = 192, inputs: int = 256, tokens: int = 1024, seed: int = 0) -> Layer:
    """A layer as real models have them: inputs that go together, a few loud ones, means that are not zero;
    weights of unequal columns with a few large ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loudness = (0.8 * draw(inputs)).exp()
    loudness[:: inputs // 4] *= 8
    shared = draw(tokens, inputs // 8) @ draw(inputs // 8, inputs) / (inputs // 8) ** 0.5
    x = (shared + 0.5 * draw(tokens, inputs) + 0.3 * draw(inputs)) * loudness
    # Weights are the smaller the louder their input is, and their tails are heavier than a normal's.
    weight = draw(rows, inputs) * draw(rows, inputs).abs().sqrt() * (0.3 * draw(inputs)).exp() / loudness**0.5
    return layer_of(weight.bfloat16(), x, torch.bfloat16)
