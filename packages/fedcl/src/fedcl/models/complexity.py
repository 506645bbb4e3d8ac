"""What a student costs: multiply-adds of its parts, and their expectation under its gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedcl.errors import ConfigError


@dataclass
class Costs:
    """Multiply-adds for one image.

    Attributes:
        stem: of the stem.
        reference_stem: of the stem as the released code counts it.
        paths: of each layer, its block's and then its proxies'.
        head: of the classifier.
    """

    stem: int
    reference_stem: int
    paths: list[list[int]] = field(default_factory=list)
    head: int = 0


def counted(module: nn.Module, shape: Sequence[int], name: str = "a layer") -> tuple[tuple[int, ...], int]:
    """Output shape and multiply-adds of a module for one input of a shape.

    A convolution costs its weights times its output's pixels, batch normalisation two a value, a linear layer its
    weights and biases.

    Raises:
        ConfigError: the module does not take such an input.
    """
    total = 0

    def add(layer: Any, _: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += layer.weight.numel() * math.prod(output.shape[2:])
        elif isinstance(layer, nn.BatchNorm2d):
            total += 2 * output.numel()
        else:
            total += layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel())

    # Zeros are run through the module itself: on torch's meta device it would take seconds to load.
    like = next(module.parameters(), torch.empty(0))
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    hooks, training = [layer.register_forward_hook(add) for layer in layers], module.training
    try:
        with torch.no_grad():
            output = module.eval()(torch.zeros((1, *shape), device=like.device, dtype=like.dtype))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} does not take features of shape {list(shape)}: {error}") from None
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    return tuple(output.shape[1:]), total


def reference_stem(image: Sequence[int], stem_output: Sequence[int]) -> int:
    """What the released code takes the stem to cost: a 7 x 7 convolution and normalisation at the output's size."""
    channels, *sides = stem_output
    return math.prod(sides) * channels * (49 * image[0] + 2)


def expected_complexity(
    gates: Sequence[Float[Tensor, "*K _"]], costs: Costs, mode: Literal["exact", "reference"] = "exact"
) -> Float[Tensor, "*K"]:
    """E = sum of c_lj (a_lj - in_q - out_l), where q is the layer that path (l, j) reads.

    c are multiply-adds over those of stem and blocks; in_q is the probability-like product of 1 - a over the paths into
    q, out_l that over the paths that read x_l: what is cut off need not be computed. The stem is always there
    (in_0 = 0) and the last layer always read (out_L = 0).

    Args:
        gates: a_l of each layer.
        costs: of its paths.
        mode: "reference" is the released code's: in_{l-1} whatever a path reads, in = 1 before the first layer,
            out = 1 after the last, and its own cost of the stem.

    Reference: Morgado and Vasconcelos, CVPR 2019, section 3.3; the released code's values by our specification.
    """
    exact = mode == "exact"
    whole = (costs.stem if exact else costs.reference_stem) + sum(paths[0] for paths in costs.paths)
    one = torch.ones_like(gates[0][..., 0])
    last = len(gates)
    inputs = [one * (0 if exact else 1)] + [torch.prod(1 - gate, -1) for gate in gates]
    outputs = [one] * (last + 1)
    for layer, gate in enumerate(gates, start=1):
        for j in range(gate.shape[-1]):
            source = layer - max(j, 1)
            outputs[source] = outputs[source] * (1 - gate[..., j])
    outputs[last] = one * (0 if exact else 1)
    total = 0 * one
    for layer, (gate, paths) in enumerate(zip(gates, costs.paths, strict=True), start=1):
        for j, cost in enumerate(paths):
            source = layer - max(j, 1) if exact else layer - 1
            total = total + cost / whole * (gate[..., j] - inputs[source] - outputs[layer])
    return total
