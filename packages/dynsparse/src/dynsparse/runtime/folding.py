"""What follows a layer and can be done by it: batch normalisation in inference mode, and limits of the outputs.

A symbolic trace of the model says which modules see only that layer's output. The model's code is not changed: folded
modules become identities.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynsparse.layers import SDConvNd

FOLDING = (SDConvNd, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that batch norms are folded into."""


@dataclass(frozen=True, eq=False)
class Follower:
    """y * scale + shift within limits, in place of the modules of these names."""

    names: tuple[str, ...] = ()
    scale: Float[Tensor, " c_o"] | None = None
    shift: Float[Tensor, " c_o"] | None = None
    low: float = -inf
    high: float = inf


def followers(model: nn.Module) -> tuple[dict[str, Follower], str | None]:
    """What each dynamic layer and each static convolution of a model can do in place of its followers.

    Returns:
        By the layer's name; and why the model could not be traced, if so.
    """
    if isinstance(model, SDConvNd):
        return {}, None
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        return {}, f"{type(error).__name__}: {error}".splitlines()[0]
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    once = {name for name, count in calls.items() if count == 1}
    found = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], FOLDING) and node.target in once:
            found[node.target] = _follower(node, modules, once)
    return found, None


@torch.no_grad()
def absorb(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, scale: Float[Tensor, " c_o"], shift: Float[Tensor, " c_o"]) -> None:
    """Changes a static convolution into one followed by y * scale + shift."""
    weight = conv.weight * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    bias = shift if conv.bias is None else shift + conv.bias * scale
    conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)


class _Tracer(fx.Tracer):
    """Takes our layers as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SDConvNd) or super().is_leaf_module(m, module_qualified_name)


def _follower(node: fx.Node, modules: dict[str, nn.Module], once: set[str]) -> Follower:
    names: list[str] = []
    scale, shift, limits = None, None, (-inf, inf)
    after = _only_user(node, once)
    norm = modules[str(after.target)] if after is not None else None
    if after is not None and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        scale, shift = _affine(norm)
        names.append(str(after.target))
        after = _only_user(after, once)
    if after is not None:
        limits = _limits(modules[str(after.target)])
        if limits != (-inf, inf):
            names.append(str(after.target))
    return Follower(tuple(names), scale, shift, *limits)


def _only_user(node: fx.Node, once: set[str]) -> fx.Node | None:
    """The one module that sees the node's value and is called nowhere else."""
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_module" and users[0].target in once:
        return users[0]
    return None


@torch.no_grad()
def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A batch norm with fixed statistics as factors and summands."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # noqa: S101 -- of statistics that are tracked
    assert variance is not None  # noqa: S101
    scale = torch.rsqrt(variance + norm.eps)
    shift = -mean * scale
    return (scale, shift) if norm.weight is None else (scale * norm.weight, shift * norm.weight + norm.bias)


def _limits(module: nn.Module) -> tuple[float, float]:
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    return (0.0, inf) if isinstance(module, nn.ReLU) else (-inf, inf)
