"""The small layers that bypass a backbone's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fedcl.errors import ConfigError


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
    if kind == "vector":
        inner = options["hidden"]
        layers = [nn.Linear(source[0], inner), nn.ReLU(), nn.Linear(inner, target[0])]
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)  # type: ignore[arg-type, union-attr, operator]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return nn.Sequential(*layers)
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
