"""Routers: from an input to the weights with which it mixes the static kernels.

All look at the global average z of the input [B, C_i], spatial axes gone:

- softmax: l = relu(z A1^T) A2^T + b2, pi = softmax(l / T) (dynamic convolution);
- sigmoid: pi = sigmoid(z A^T + b) (CondConv), without a temperature;
- odconv: the softmax router with a normalised hidden layer, and three more heads of sigmoids that scale positions,
  input channels and filters (ODConv).

References: Chen et al., CVPR 2020, arXiv:1912.03458; Yang et al., CondConv, NeurIPS 2019, arXiv:1904.04971; Li et al.,
ODConv, ICLR 2022, arXiv:2209.07947; spec section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynsparse.errors import ConfigError, InputError, check_choice

NORMS = ("batch", "group")


class Factors(NamedTuple):
    """What ODConv's router gives.

    Attributes:
        kernel: pi [B, K].
        spatial: factors of the positions [B, *k]; None for a kernel of one position.
        channel: factors of the input channels [B, C_i].
        filter: factors of the output channels [B, C_o]; None for a depthwise layer, where they repeat `channel`.
    """

    kernel: Float[Tensor, "b k"]
    spatial: Tensor | None
    channel: Float[Tensor, "b c_i"]
    filter: Tensor | None


def pooled(x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b c_i"]:
    """The mean over all positions."""
    return x.flatten(2).mean(-1)


def hidden_width(in_channels: int, reduction: int, min_hidden: int) -> int:
    """C_h = max(min_hidden, C_i // r): a wide enough hidden layer cannot die as a whole.

    Raises:
        ConfigError: `reduction` or `min_hidden` is below 1.
    """
    for name, value in (("reduction", reduction), ("min_hidden", min_hidden)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1; got {value}")
    return max(min_hidden, in_channels // reduction)


class Router(nn.Module):
    """The softmax router, pi = softmax((relu(z A1^T) A2^T + b2) / T).

    Attributes:
        squeeze: A1, [C_h, C_i], no bias.
        kernel_head: A2 [K, C_h] and b2 [K].
        temperature: T, a saved buffer []; `TemperatureSchedule` sets it.
    """

    temperature: Tensor

    def __init__(self, in_channels: int, num_kernels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(in_channels, hidden, bias=False)
        self.kernel_head = nn.Linear(hidden, num_kernels)
        self.register_buffer("temperature", torch.ones(()))
        initialise(self)

    def forward(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b k"]:
        """Attention pi, whose rows sum to 1."""
        return self.attend(self.hidden(x))

    def hidden(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b c_h"]:
        """relu(z A1^T)."""
        return self.squeeze(pooled(x)).relu()

    def attend(self, hidden: Float[Tensor, "b c_h"]) -> Float[Tensor, "b k"]:
        """softmax(l / T)."""
        return torch.softmax(self.kernel_head(hidden) / self.temperature, dim=1)


class SigmoidRouter(nn.Module):
    """CondConv's router, pi = sigmoid(z A^T + b).

    Attributes:
        kernel_head: A [K, C_i] and b [K].
    """

    def __init__(self, in_channels: int, num_kernels: int) -> None:
        super().__init__()
        self.kernel_head = nn.Linear(in_channels, num_kernels)
        initialise(self)

    def forward(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b k"]:
        """Routing weights, each in (0, 1)."""
        return torch.sigmoid(self.kernel_head(pooled(x)))


class ODConvRouter(Router):
    """ODConv's router, whose further heads see the same hidden layer and temperature.

    Attributes:
        norm: of the hidden layer: BatchNorm as in ODConv, or GroupNorm of one group, which also trains on one sample.
        spatial_head, channel_head, filter_head: sigmoids; None where they have nothing to say.
    """

    def __init__(
        self,
        in_channels: int,
        num_kernels: int,
        hidden: int,
        *,
        out_channels: int,
        kernel_size: Sequence[int],
        groups: int,
        norm: str = "batch",
    ) -> None:
        super().__init__(in_channels, num_kernels, hidden)
        depthwise = in_channels == groups == out_channels
        self.kernel_size = tuple(kernel_size)
        self.norm = nn.BatchNorm1d(hidden) if norm == "batch" else nn.GroupNorm(1, hidden)
        self.channel_head = nn.Linear(hidden, in_channels)
        self.filter_head = None if depthwise else nn.Linear(hidden, out_channels)
        self.spatial_head = nn.Linear(hidden, prod(kernel_size)) if prod(kernel_size) > 1 else None
        initialise(self)

    def hidden(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b c_h"]:
        """relu(norm(z A1^T)).

        Raises:
            InputError: one sample in training mode under batch normalisation, which has no variance.
        """
        if self.training and x.shape[0] == 1 and isinstance(self.norm, nn.BatchNorm1d):
            raise InputError(
                "the odconv router's BatchNorm cannot train on a batch of 1",
                'set router_norm="group", or a larger batch',
            )
        return self.norm(self.squeeze(pooled(x))).relu()

    def factors(self, x: Float[Tensor, "b c_i *space"]) -> Factors:
        """All of the heads."""
        hidden = self.hidden(x)
        spatial = self._head(self.spatial_head, hidden)
        return Factors(
            kernel=self.attend(hidden),
            spatial=None if spatial is None else spatial.reshape(x.shape[0], *self.kernel_size),
            channel=torch.sigmoid(self.channel_head(hidden) / self.temperature),
            filter=self._head(self.filter_head, hidden),
        )

    def _head(self, head: nn.Linear | None, hidden: Tensor) -> Tensor | None:
        return None if head is None else torch.sigmoid(head(hidden) / self.temperature)


def initialise(router: nn.Module) -> None:
    """He normal by fan-out, N(0, 2 / rows), for every linear layer; biases 0."""
    for module in router.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


ROUTERS = ("softmax", "sigmoid", "odconv")


def make_router(
    kind: str,
    in_channels: int,
    num_kernels: int,
    hidden: int,
    *,
    out_channels: int,
    kernel_size: Sequence[int],
    groups: int = 1,
    norm: str = "batch",
) -> nn.Module | None:
    """The router of a layer by name; None for one kernel, which needs none (odconv keeps its other heads).

    Raises:
        ConfigError: no such router or norm.
    """
    check_choice("router", kind, ROUTERS)
    check_choice("router_norm", norm, NORMS)
    if kind == "odconv":
        sizes = {"out_channels": out_channels, "kernel_size": kernel_size, "groups": groups}
        return ODConvRouter(in_channels, num_kernels, hidden, norm=norm, **sizes)  # type: ignore[arg-type]
    if num_kernels == 1:
        return None
    return SigmoidRouter(in_channels, num_kernels) if kind == "sigmoid" else Router(in_channels, num_kernels, hidden)
