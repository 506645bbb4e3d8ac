"""Random quantised networks of every kind of operation that engines have on integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hosts import REDUCED
from hypothesis import strategies as st

from mqbench_lite.graph import Graph, Layer, Node, QParams, QuantizedGraph

BITS = 8


def grid(scale: float, zero_point: int, qmin: int = 0, qmax: int = 255) -> QParams:
    return QParams(scale=np.array(scale, np.float32), zero_point=np.array(zero_point, np.int32), qmin=qmin, qmax=qmax)


@dataclass
class Builder:
    """A network under construction; each method appends an operation and names its tensor."""

    rng: np.random.Generator
    shape: tuple[int, ...] = (3, 8, 8)
    signed_share: float = 0.0
    bits: int = 8
    nodes: list[Node] = field(default_factory=list)
    grids: dict[str, QParams] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], **attributes: object) -> str:
        name = f"{op}.{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs, attributes))
        self.shapes[name] = shape
        return name

    def input(self) -> str:
        return self.add("input", (), self.shape)

    def quantize(self, x: str, spread: float, rectified: bool = False) -> str:
        """A grid that holds about `spread` on either side, or from 0 up for what a ReLU made."""
        name = f"Q:{x}"
        signed = self.rng.random() < self.signed_share
        low = -(2 ** (self.bits - 1)) if signed else 0
        high = low + 2**self.bits - 1
        odd = int(self.rng.integers(2 ** (self.bits - 1))) * 2 + 1
        zero_point = 0 if signed or rectified else odd
        steps = max(high - zero_point, zero_point - low)
        self.nodes.append(Node(name, "quantize", (x,), {"bits": self.bits}))
        self.grids[name] = grid(spread / steps, zero_point, low, high)
        self.shapes[name] = self.shapes[x]
        return name

    def conv(
        self, x: str, out: int, kernel: int, stride: int, padding: int, groups: int, per_channel: bool = True
    ) -> str:
        channels, height, width = self.shapes[x]
        size = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        name = self.add(
            "conv", (x,), (out, *size), stride=(stride,) * 2, padding=(padding,) * 2, dilation=(1, 1), groups=groups
        )
        self._weigh(name, x, (out, channels // groups, kernel, kernel), per_channel)
        return name

    def linear(self, x: str, out: int, per_channel: bool = True) -> str:
        name = self.add("linear", (x,), (*self.shapes[x][:-1], out))
        self._weigh(name, x, (out, self.shapes[x][-1]), per_channel)
        return name

    def spread(self, name: str) -> float:
        """About how large a layer's results are."""
        layer, read = self.layers[name], self.grids_of(self.nodes_by_name[name].inputs[0])
        weight = layer.weight.astype(float).reshape(len(layer.weight), -1)
        scale = float(np.mean(layer.grid.scale)) * float(read.scale)
        return 3 * float(np.sqrt((weight**2).sum(1).mean() + 1)) * 0.3 * (read.qmax - read.qmin) * scale

    @property
    def nodes_by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def grids_of(self, name: str) -> QParams:
        while name not in self.grids:
            name = self.nodes_by_name[name].inputs[0]
        return self.grids[name]

    def _weigh(self, name: str, x: str, shape: tuple[int, ...], per_channel: bool, channels: int | None = None) -> None:
        limit = 2 ** (self.bits - 1 - (REDUCED and self.bits == 8))
        weight = self.rng.integers(-limit + 1, limit, shape).astype(np.int8)
        channels = shape[0] if channels is None else channels
        scale = np.asarray(np.exp(self.rng.uniform(-7, -4, channels if per_channel else ())), np.float32)
        bias = self.rng.integers(-2000, 2000, channels).astype(np.int32)
        dead = self.rng.random(channels) < 0.1
        if channels == shape[0]:
            weight[dead] = 0
        if per_channel:
            scale[dead] = np.finfo(np.float32).eps
        zero_point = np.zeros(scale.shape, np.int32)
        own = QParams(scale=np.asarray(scale), zero_point=zero_point, qmin=-limit, qmax=limit - 1)
        self.layers[name] = Layer(weight=weight, grid=own, bias=bias if self.rng.random() < 0.8 else None)

    def finished(self, *outputs: str, profile: str = "onnxruntime", storage: str = "u8") -> QuantizedGraph:
        return QuantizedGraph(
            graph=Graph(tuple(self.nodes), outputs),
            grids=self.grids,
            layers=self.layers,
            shapes={"input.0": (-1, *self.shape)},
            profile=profile,
            storage=storage,
        )


KINDS = ("conv", "conv", "depthwise", "residual", "scale", "max_pool", "avg_pool", "concat")


recipes = st.tuples(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
"""What `network` is drawn from. Nothing is built inside a strategy: type checks draw random numbers of their own."""


def network(seed: int, kinds: Sequence[str], signed_share: float = 0.0, bits: int = 8) -> QuantizedGraph:
    """A network of several blocks, a global average pool and a linear layer, quantised throughout."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([5, 8, 9]))
    net = Builder(rng, (int(rng.integers(1, 5)), size, size), signed_share, bits)
    x = net.quantize(net.input(), 3.0)
    for kind in kinds:
        x = block(net, x, kind)
    pooled = net.add("mean", (x,), net.shapes[x][:1], axes=(2, 3), keep=False)
    spread = float(net.grids_of(x).scale) * (net.grids_of(x).qmax - net.grids_of(x).qmin) / 2
    x = net.quantize(pooled, spread)
    logits = net.linear(x, int(rng.integers(1, 12)))
    if rng.random() < 0.5:
        logits = net.quantize(logits, net.spread(logits))
    return net.finished(logits)


def block(net: Builder, x: str, kind: str) -> str:
    channels, height, _ = net.shapes[x]
    if kind in ("conv", "depthwise"):
        return convolution(net, x, kind)
    if kind == "residual":
        other = net.quantize(same := net.conv(x, channels, 3, 1, 1, 1), net.spread(same))
        return joined(net, "add", other, x)
    if kind == "scale":
        other = net.quantize(same := net.conv(x, channels, 1, 1, 0, 1), net.spread(same))
        return joined(net, "mul", x, other)
    if kind == "concat":
        other = convolution(net, x, "same")
        y = net.add("concat", (x, other), (channels + net.shapes[other][0], *net.shapes[x][1:]), axis=1)
        return net.quantize(y, 1.2 * spread_of(net, x))
    kernel = int(net.rng.integers(2, 4))
    if height < kernel:
        return x
    padding, stride = int(net.rng.integers(0, 2)), int(net.rng.integers(1, 3))
    size = ((height + 2 * padding - kernel) // stride + 1,) * 2
    named = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (padding,) * 2, "ceil": False}
    if kind == "max_pool":
        return net.add("max_pool", (x,), (channels, *size), dilation=(1, 1), **named)
    y = net.add("avg_pool", (x,), (channels, *size), count_padding=bool(net.rng.random() < 0.5), **named)
    return net.quantize(y, spread_of(net, x))


def convolution(net: Builder, x: str, kind: str) -> str:
    channels, height, _ = net.shapes[x]
    kernel = int(net.rng.choice([k for k in (1, 3, 5) if k <= height + 2 * (k // 2)]))
    groups = channels if kind == "depthwise" else int(net.rng.choice([g for g in (1, 2, 4) if channels % g == 0]))
    out = groups * int(net.rng.integers(1, 4))
    stride, padding = (
        (1, kernel // 2) if kind == "same" else (int(net.rng.integers(1, 3)), int(net.rng.integers(0, kernel // 2 + 1)))
    )
    if height + 2 * padding < kernel:
        padding = kernel // 2
    y = net.conv(x, out, kernel, stride, padding, groups, bool(net.rng.random() < 0.5))
    spread = net.spread(y)
    return clipped(net, y, spread)


def clipped(net: Builder, y: str, spread: float) -> str:
    kind = net.rng.choice(["none", "relu", "clip"])
    shape = net.shapes[y]
    if kind == "relu":
        return net.quantize(net.add("relu", (y,), shape), spread, rectified=True)
    if kind == "clip":
        return net.quantize(
            net.add("clip", (y,), shape, low=0.0, high=spread * 0.7), spread, rectified=bool(net.rng.random() < 0.5)
        )
    return net.quantize(y, spread)


def joined(net: Builder, op: str, one: str, other: str) -> str:
    y = net.add(op, (one, other), net.shapes[one])
    spreads = spread_of(net, one), spread_of(net, other)
    return clipped(net, y, sum(spreads) if op == "add" else 0.3 * spreads[0] * spreads[1])


def spread_of(net: Builder, name: str) -> float:
    own = net.grids_of(name)
    return float(own.scale) * max(own.qmax - int(own.zero_point), int(own.zero_point) - own.qmin)
