"""The small layers that bypass a backbone's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fedcl.errors import ConfigError
from fedcl.models.complexity import counted


class StatisticsOnce(nn.BatchNorm2d):
    """Batch normalisation whose second pass over a batch leaves the running statistics alone.

    Attributes:
        counts: whether the next training pass updates them.
    """

    counts = True

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The normalised features."""
        if self.training and not self.counts:
            return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(x)


class MapProxies(nn.ModuleList):
    """A layer's proxies for feature maps, each a module."""

    def weighted(self, inputs: Sequence[Any], gate: Tensor, kept: Sequence[int]) -> list[Tensor]:
        """What the kept proxies give, times their gates.

        Args:
            inputs: features that proxy 1, 2, ... read; None where a layer was pruned away.
            gate: a_l; its first value is the block's.
            kept: which proxies, from 1.
        """
        return [gate[j] * self[j - 1](inputs[j - 1]) for j in kept]


class VectorProxies(nn.Module):
    """A layer's proxies for features [B, D]: two linear layers with ReLU between.

    Tensors and features may have a leading dimension of clients.

    Args:
        count: of proxies.
        width: D.
        hidden: inner width.
    """

    def __init__(self, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(count, width, hidden) * width**-0.5)
        self.first_bias = nn.Parameter(torch.zeros(count, hidden))
        self.second = nn.Parameter(torch.randn(count, hidden, width) * hidden**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(count, width))

    def weighted(self, inputs: Sequence[Any], gate: Tensor, kept: Sequence[int]) -> list[Tensor]:
        """The sum of what the kept proxies give, times their gates; as of `MapProxies`.

        Gates multiply the inner features, which are few; the second layers are then one product over all proxies.
        """
        if not kept:
            return []
        tensors: tuple[Tensor, ...] = (self.first, self.first_bias, self.second, self.second_bias)
        share = gate[..., 1:]
        if len(kept) < share.shape[-1]:
            rows = [j - 1 for j in kept]
            tensors = (
                self.first[..., rows, :, :],
                self.first_bias[..., rows, :],
                self.second[..., rows, :, :],
                self.second_bias[..., rows, :],
            )
            share = share[..., rows]
        first, first_bias, second, second_bias = tensors
        products = [inputs[j - 1] @ first[..., row, :, :] for row, j in enumerate(kept)]
        inner = functional.relu(torch.cat(products, -1) + first_bias.flatten(-2)[..., None, :])
        scaled = inner * share.repeat_interleave(first_bias.shape[-1], -1)[..., None, :]
        return [scaled @ second.flatten(-3, -2) + share[..., None, :] @ second_bias]


def make_proxies(
    kind: str, sources: Sequence[Sequence[int]], target: Sequence[int], layer: int, options: Mapping[str, Any]
) -> MapProxies | VectorProxies:
    """A layer's proxies.

    Args:
        kind: basic: 1 x 1 convolution and normalisation; bottleneck: two of them with ReLU between; vector: two linear
            layers with ReLU between.
        sources: shapes of the features that proxy 1, 2, ... read, without the batch.
        target: shape of those it adds to.
        layer: from 1, for messages.
        options: `divisor` and `hidden`.

    Raises:
        ConfigError: source and target do not fit.
    """
    if kind != "vector":
        return MapProxies(
            [_map_proxy(kind, source, target, (layer, j), options) for j, source in enumerate(sources, start=1)]
        )
    if len({tuple(shape) for shape in [*sources, target]}) > 1:
        raise ConfigError(f"layer {layer} has {target[0]} features, its sources {[shape[0] for shape in sources]}")
    return VectorProxies(len(sources), target[0], options["hidden"])


def proxy_costs(proxies: MapProxies | VectorProxies, sources: Sequence[Sequence[int]]) -> list[int]:
    """Multiply-adds of each proxy for one image."""
    if isinstance(proxies, VectorProxies):
        one = sum(each[0].numel() for each in proxies.parameters())
        return [one] * len(sources)
    return [counted(proxy, source)[1] for proxy, source in zip(proxies, sources, strict=True)]


def proxy_parameters(proxies: MapProxies | VectorProxies, j: int) -> int:
    """How many parameters proxy j has, from 1."""
    if isinstance(proxies, VectorProxies):
        return sum(each[j - 1].numel() for each in proxies.parameters())
    return sum(each.numel() for each in proxies[j - 1].parameters())


def _map_proxy(
    kind: str, source: Sequence[int], target: Sequence[int], where: tuple[int, int], options: Mapping[str, Any]
) -> nn.Module:
    pool = _pool(source, target, where)
    if kind == "basic":
        return nn.Sequential(*pool, _conv(source[0], target[0]), StatisticsOnce(target[0]))
    inner = max(target[0] // options["divisor"], 16)
    first = [_conv(source[0], inner), StatisticsOnce(inner), nn.ReLU()]
    return nn.Sequential(*pool, *first, _conv(inner, target[0]), StatisticsOnce(target[0]))


def _pool(source: Sequence[int], target: Sequence[int], where: tuple[int, int]) -> list[nn.Module]:
    strides = [a / b for a, b in zip(source[1:], target[1:], strict=True)]
    if len(set(strides)) > 1 or strides[0] != int(strides[0]):
        raise ConfigError(
            f"layer {where[0]} has features {list(target)}, which those {where[1]} back, {list(source)}, are no multiple of"
        )
    stride = int(strides[0])
    return [nn.MaxPool2d(stride + 1, stride, stride // 2)] if stride > 1 else []


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.normal_(layer.weight, std=0.01)
    return layer
