"""Operations in float32, as far as their results do not lie on grids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- its usual name
from torch import Tensor

from mqbench_lite.errors import UnsupportedOpError
from mqbench_lite.graph import Node


def evaluate(node: Node, inputs: Sequence[Any], constants: Mapping[str, np.ndarray]) -> Any:
    """The result of any node without a quantised weight: a tensor, or a number where a function gives one.

    Raises:
        UnsupportedOpError: the operation has no meaning of its own.
    """
    attributes = node.attributes
    if node.op in _UNARY or node.op in _BINARY:
        return (_UNARY | _BINARY)[node.op](*inputs)
    if node.op not in _WITH_ATTRIBUTES:
        if node.op in ("batch_norm", "layer_norm"):
            return _normalize(node, inputs[0], constants)
        raise UnsupportedOpError(f"{node.op} ({node.name})", "integer execution")
    return _WITH_ATTRIBUTES[node.op](inputs, attributes)


def _normalize(node: Node, x: Tensor, constants: Mapping[str, np.ndarray]) -> Tensor:
    def constant(name: str) -> Tensor:
        return torch.tensor(constants[f"{node.name}.{name}"]).to(x.device)

    if node.op == "layer_norm":
        shape = tuple(node.attributes["shape"])
        return F.layer_norm(x, shape, constant("weight"), constant("bias"), node.attributes["eps"])
    numbers = (constant("mean"), constant("var"), constant("weight"), constant("bias"))
    return F.batch_norm(x, *numbers, eps=node.attributes["eps"])


def _pool(kind: str) -> Callable[[Sequence[Tensor], Mapping[str, Any]], Tensor]:
    def pool(inputs: Sequence[Tensor], a: Mapping[str, Any]) -> Tensor:
        x = inputs[0]
        named = {"kernel_size": tuple(a["kernel"]), "stride": tuple(a["stride"]), "padding": tuple(a["padding"])}
        named |= {"ceil_mode": a["ceil"]}
        named |= {"dilation": tuple(a["dilation"])} if kind == "max" else {"count_include_pad": a["count_padding"]}
        return getattr(F, f"{kind}_pool{x.dim() - 2}d")(x, **named)  # type: ignore[no-any-return]

    return pool


def _slice(inputs: Sequence[Tensor], a: Mapping[str, Any]) -> Tensor:
    spots = [slice(None)] * inputs[0].dim()
    spots[a["axis"]] = slice(a["start"], a["stop"], a["step"])
    return inputs[0][tuple(spots)]


def _resize(inputs: Sequence[Tensor], a: Mapping[str, Any]) -> Tensor:
    size = None if a["size"] is None else tuple(a["size"])
    factors = None if a["factors"] is None else tuple(float(factor) for factor in a["factors"])
    corners = a["align_corners"] if a["mode"] not in ("nearest", "nearest-exact", "area") else None
    return F.interpolate(inputs[0], size, factors, mode=a["mode"], align_corners=corners)


def _squeeze(inputs: Sequence[Tensor], a: Mapping[str, Any]) -> Tensor:
    return inputs[0].squeeze(tuple(a["axes"]))


def _unsqueeze(inputs: Sequence[Tensor], a: Mapping[str, Any]) -> Tensor:
    x = inputs[0]
    for axis in sorted(axis % (x.dim() + len(a["axes"])) for axis in a["axes"]):
        x = x.unsqueeze(axis)
    return x


def _hardsigmoid(x: Tensor) -> Tensor:
    """By a float32 slope, as engines have it, where torch divides by 6."""
    return (x * float(np.float32(1 / 6)) + 0.5).clamp(0, 1)


_UNARY: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda x: _hardsigmoid(x) * x,
}
_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "matmul": torch.matmul,
}
_WITH_ATTRIBUTES: dict[str, Callable[[Sequence[Tensor], Mapping[str, Any]], Tensor]] = {
    "clip": lambda x, a: x[0].clamp(a["low"], a["high"]),
    "gelu": lambda x, a: F.gelu(x[0], approximate=a["approximate"]),
    "softmax": lambda x, a: F.softmax(x[0], a["axis"]),
    "concat": lambda x, a: torch.cat(list(x), a["axis"]),
    "max_pool": _pool("max"),
    "avg_pool": _pool("avg"),
    "mean": lambda x, a: x[0].mean(tuple(a["axes"]), a["keep"]),
    "flatten": lambda x, a: x[0].flatten(a["start"], a["stop"]),
    "reshape": lambda x, a: x[0].reshape(tuple(a["shape"])),
    "permute": lambda x, a: x[0].permute(tuple(a["axes"])),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "pad": lambda x, a: F.pad(x[0], tuple(a["pads"]), value=a["value"]),
    "resize": _resize,
    "call": lambda x, a: a["target"](*x),
}
