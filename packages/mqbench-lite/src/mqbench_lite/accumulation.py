"""Sums of products of integers, exact, on hardware that multiplies floats.

float32 holds every integer up to 2^24. Where a layer's sums may be larger, activations are split into high and low
nibbles, whose sums are 16 times smaller, and combined in float64; where that does not suffice, all is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- its usual name
from jaxtyping import Float
from torch import Tensor, nn

from mqbench_lite.errors import ProfileError
from mqbench_lite.graph import Layer, Node, QParams

EXACT = 2**24
"""Integers below it are float32 numbers."""
INT32 = 2**31 - 1
NIBBLE = 16


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How large a layer's accumulator can get.

    Attributes:
        largest: no sum or part of it is larger in absolute value, whatever the input and the order.
        arithmetic: how the sums are computed exactly.
    """

    largest: int
    arithmetic: Literal["float32", "nibbles", "float64"]


def bound(layer: Layer, grid: QParams, axis: int = 0) -> Bound:
    """The bound of a layer whose input lies on the grid.

    Args:
        layer: its weight's and bias's codes.
        grid: the input's.
        axis: the weight's axis of output channels.
    """
    weight = np.moveaxis(centred_weight(layer).astype(np.int64), axis, 0)
    weight = weight.reshape(len(weight), -1)
    positive, negative = np.maximum(weight, 0).sum(axis=1), np.maximum(-weight, 0).sum(axis=1)
    above, below = grid.qmax - int(grid.zero_point), int(grid.zero_point) - grid.qmin
    bias = _integer_bias(layer)
    if bias.size > positive.size:  # groups of a transposed convolution
        positive, negative = (np.tile(sums, bias.size // sums.size) for sums in (positive, negative))
    highest = positive * above + negative * below + np.maximum(bias, 0)
    lowest = negative * above + positive * below + np.maximum(-bias, 0)
    largest, split = int(max(highest.max(), lowest.max())), int((positive + negative).max()) * NIBBLE
    exact = largest < EXACT
    return Bound(largest=largest, arithmetic="float32" if exact else "nibbles" if split < EXACT else "float64")


def centred_weight(layer: Layer) -> np.ndarray:
    """A weight's codes minus their zero points, int16."""
    if layer.grid is None:
        raise ProfileError("a layer without a weight grid has no codes", "quantise its weight")
    zero_point = layer.grid.zero_point
    if zero_point.ndim:
        zero_point = zero_point.reshape([-1 if at == layer.grid.axis else 1 for at in range(layer.weight.ndim)])
    return layer.weight.astype(np.int16) - zero_point.astype(np.int16)


def _integer_bias(layer: Layer) -> np.ndarray:
    integer = layer.bias is not None and layer.bias.dtype == np.int32
    return layer.bias.astype(np.int64) if integer and layer.bias is not None else np.zeros(1, np.int64)


class Accumulator(nn.Module):
    """The exact integer sums of a layer, bias included.

    Args:
        node: a `conv`, `conv_transpose` or `linear` node.
        layer: its numbers, the weight on a grid.
        grid: its input's grid.

    Raises:
        ProfileError: the sums may leave int32, in which engines keep them.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, node: Node, layer: Layer, grid: QParams) -> None:
        super().__init__()
        self.node = node
        self.bound = bound(layer, grid, 1 if node.op == "conv_transpose" else 0)
        if self.bound.largest > INT32:
            problem = f"{node.name}: sums reach {self.bound.largest}, which int32 does not hold"
            raise ProfileError(problem, "raise the weight's least step size, so that the bias has fewer steps")
        self.register_buffer("weight", torch.tensor(centred_weight(layer)).float())
        bias = layer.bias if layer.bias is not None and layer.bias.dtype == np.int32 else None
        self.register_buffer("bias", None if bias is None else torch.tensor(bias).double())

    def forward(self, codes: Float[Tensor, "*shape"]) -> Float[Tensor, "*sums"]:
        """Sums over centred codes, of float32 or, where they may be larger than it holds, float64."""
        arithmetic = self.bound.arithmetic
        if arithmetic == "float32" and codes.is_cpu:
            return apply_layer(self.node, codes, self.weight, None if self.bias is None else self.bias.float())
        if arithmetic == "float64" or (not codes.is_cpu and codes.device.type != "mps"):
            return apply_layer(self.node, codes.double(), self.weight.double(), self.bias)
        high = torch.floor(codes / NIBBLE)
        sums = apply_layer(self.node, high, self.weight, None).double().mul_(NIBBLE)
        sums.add_(apply_layer(self.node, codes - high * NIBBLE, self.weight, None))
        return sums if self.bias is None else sums.add_(along(self.bias, sums, channel_axis(self.node)))


def output_steps(node: Node, layer: Layer, grid: QParams) -> np.ndarray:
    """The step size of a layer's sums, s_x s_w: one, or one for each output channel."""
    if layer.grid is None:
        raise ProfileError(f"{node.name}: its weight has no grid", "quantise it")
    steps = np.asarray(grid.scale * layer.grid.scale, np.float32)
    if node.op == "conv_transpose" and steps.ndim:  # its weight holds the output channels of one group
        return np.tile(steps, node.attributes["groups"])
    return steps


def channel_axis(node: Node) -> int:
    """The axis of the output channels of a layer's result."""
    return -1 if node.op == "linear" else 1


def along(channels: Tensor, like: Tensor, axis: int) -> Tensor:
    """Numbers of the channels in a shape that broadcasts along an axis."""
    if channels.numel() == 1:
        return channels
    return channels.reshape([-1 if at == axis % like.dim() else 1 for at in range(like.dim())])


def apply_layer(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's operation, without fast algorithms that are not sums of the products."""
    if node.op == "linear":
        return F.linear(x, weight, bias)
    spatial, attributes = weight.dim() - 2, node.attributes
    padding: Sequence[int] = attributes["padding"]
    if len(padding) == 2 * spatial:  # begins, then ends
        x = F.pad(x, [side for at in reversed(range(spatial)) for side in (padding[at], padding[at + spatial])])
        padding = (0,) * spatial
    kinds: dict[str, tuple[Callable[..., Tensor], ...]] = {
        "conv": (F.conv1d, F.conv2d, F.conv3d),
        "conv_transpose": (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    }
    named = {key: tuple(attributes[key]) for key in ("stride", "dilation", "output_padding") if key in attributes}
    with torch.backends.nnpack.flags(enabled=False):
        return kinds[node.op][spatial - 1](
            x, weight, bias, padding=tuple(padding), groups=attributes["groups"], **named
        )
