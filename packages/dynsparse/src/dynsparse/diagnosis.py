"""Whether a model's kernels and routers do what they are for.

Reference: spec section 4, trap 7: a router whose hidden units are all dead mixes uniformly for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynsparse.converting import dynamic_layers
from dynsparse.errors import InputError
from dynsparse.layers import SDConvNd
from dynsparse.routers import Router

UNIFORM = 0.999
"""Fraction of the greatest entropy, log K, above which attention chooses nothing."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer, over all samples given.

    Attributes:
        layer: its name.
        entropy: mean entropy of the attention, nats; log K if it chooses nothing. CondConv's weights are normed first.
        max_prob: mean of the largest mixing weight.
        kernel_cosine: mean cosine between effective kernels; 1 if all are alike.
        density: mean density of the masks.
        union: density of their union.
        uniform: the temperature is 1 and the entropy is above 0.999 log K: the router is dead or does not look.
    """

    layer: str
    entropy: float
    max_prob: float
    kernel_cosine: float
    density: float
    union: float
    uniform: bool


@torch.no_grad()
def diagnose(model: nn.Module, loader: Iterable[Any]) -> list[LayerDiagnosis]:
    """Runs the model over data, in evaluation mode, and looks at every dynamic layer.

    Args:
        model: with dynamic layers; its modes are as before afterwards.
        loader: batches of inputs, or of tuples that start with the inputs.

    Returns:
        A row for each layer, in order.

    Raises:
        ConversionError: the model has no dynamic layer.
        InputError: the loader is empty.
    """
    layers = dynamic_layers(model)
    attention: dict[str, list[Tensor]] = {name: [] for name, _ in layers}
    hooks = [layer.register_forward_hook(_keep(attention[name])) for name, layer in layers]
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        model.eval()
        for batch in loader:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            model(inputs.to(device))
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    if not all(attention.values()):
        raise InputError("there is nothing to diagnose: the loader gave no batch that reaches every dynamic layer")
    return [_row(name, layer, torch.cat(attention[name])) for name, layer in layers]


def _keep(kept: list[Tensor]) -> Any:
    def look(layer: SDConvNd, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        x = inputs[0]
        kept.append(layer.attention(x if x.dim() == layer.dimensions + 2 else x[None]))

    return look


def _row(name: str, layer: SDConvNd, pi: Tensor) -> LayerDiagnosis:
    share = pi / pi.sum(1, keepdim=True)
    entropy = -torch.xlogy(share, share).sum(1).mean().item()
    annealed = not isinstance(layer.router, Router) or layer.router.temperature.item() == 1
    densities = layer.densities()
    return LayerDiagnosis(
        layer=name,
        entropy=entropy,
        max_prob=pi.amax(1).mean().item(),
        kernel_cosine=_mean_cosine(layer.effective_kernels().flatten(1)),
        density=densities.mean,
        union=densities.union,
        uniform=annealed and layer.num_kernels > 1 and entropy > UNIFORM * log(layer.num_kernels),
    )


def _mean_cosine(kernels: Tensor) -> float:
    """Over all pairs of different kernels; 1 for a single one."""
    count = len(kernels)
    if count == 1:
        return 1.0
    unit = functional.normalize(kernels, dim=1)
    return ((unit @ unit.T).sum() - unit.square().sum()).item() / (count * (count - 1))
