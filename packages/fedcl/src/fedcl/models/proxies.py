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


class VectorProxy(nn.Module):
    """Two linear layers with ReLU between, for features [B, D]; tensors and features may have a dimension of clients.

    The layers of many proxies are joined by `fan_out` and `fan_in`, since one product of wide matrices takes less time
    than several of narrow ones.

    Args:
        width: D.
        hidden: inner width.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, hidden) * width**-0.5)
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.randn(hidden, width) * hidden**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(width))


def fan_out(x: Float[Tensor, "*K B D"], readers: Sequence[VectorProxy]) -> list[Float[Tensor, "*K B h"]]:
    """The inner features of all proxies that read the same features."""
    weight = torch.cat([proxy.first for proxy in readers], -1)
    bias = torch.cat([proxy.first_bias for proxy in readers], -1)
    inner = functional.relu(x @ weight + bias[..., None, :])
    return list(inner.split(readers[0].first.shape[-1], -1))


def fan_in(
    inner: Sequence[Float[Tensor, "*K B h"]], share: Float[Tensor, "*K n"], writers: Sequence[VectorProxy]
) -> Float[Tensor, "*K B D"]:
    """The sum of what a layer's proxies give, times their gates, which multiply the inner features since these are few."""
    scaled = torch.cat(list(inner), -1) * share.repeat_interleave(inner[0].shape[-1], -1)[..., None, :]
    weight = torch.cat([proxy.second for proxy in writers], -2)
    bias = torch.stack([proxy.second_bias for proxy in writers], -2)
    return scaled @ weight + share[..., None, :] @ bias


def make_proxy(
    kind: str, source: Sequence[int], target: Sequence[int], where: tuple[int, int], options: Mapping[str, Any]
) -> nn.Module:
    """A proxy from features of one shape to another.

    Args:
        kind: basic: 1 x 1 convolution and normalisation; bottleneck: two of them with ReLU between; vector: two linear
            layers with ReLU between.
        source: shape of the features it reads, without the batch.
        target: shape of those it adds to.
        where: layer and skip, for messages.
        options: `divisor` and `hidden`.

    Raises:
        ConfigError: source and target do not fit.
    """
    if kind != "vector":
        return _map_proxy(kind, source, target, where, options)
    if tuple(source) != tuple(target):
        raise ConfigError(f"layer {where[0]} has {target[0]} features, those {where[1]} back are {source[0]}")
    return VectorProxy(target[0], options["hidden"])


def proxy_cost(proxy: nn.Module, source: Sequence[int]) -> int:
    """Multiply-adds of a proxy for one image."""
    if isinstance(proxy, VectorProxy):
        return sum(each.numel() for each in proxy.parameters())
    return counted(proxy, source)[1]


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
