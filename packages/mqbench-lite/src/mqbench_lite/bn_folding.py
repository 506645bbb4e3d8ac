"""Batch normalisation folded into the layer before it, by one of six strategies of training.

With weight w, bias b, factor gamma, summand beta, running mean mu and deviation sigma, and those of the batch mu_B, sigma_B,
every strategy from 0 on gives conv(x, Q(w gamma / sigma)) + beta + (b - mu) gamma / sigma in evaluation. In training:

-1: not folded: conv(x, Q(w)), then the normalisation as a module of its own.
 0: merged once; there is no normalisation left.
 1: as in evaluation; the running statistics stay, gamma and beta learn.
 2: mu_B and sigma_B of a convolution in float take the place of mu and sigma.
 3: conv(x, Q(w gamma / sigma)) sigma / sigma_B + beta + (b - mu_B) gamma / sigma_B, statistics as in 2.
 4: the result of conv(x, Q(w gamma / sigma)) divided by gamma / sigma is normalised: one convolution.

Reference: MQBench, arXiv:2111.03759, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mqbench_lite.errors import ProfileError
from mqbench_lite.graph import LAYERS, Graph, Node
from mqbench_lite.operators import run_layer
from mqbench_lite.placement import home_of

STRATEGIES = (-1, 0, 1, 2, 3, 4)
_TINY = 1e-12
"""Least |gamma / sigma| that is divided by under strategy 4."""


class BatchNorm(_BatchNorm):
    """A batch normalisation for any number of spatial axes."""

    def _check_input_dim(self, _: Tensor) -> None:
        pass


@dataclass(frozen=True)
class Folding:
    """Which normalisation goes into which layer.

    Attributes:
        graph: without the normalisations that are folded.
        norms: by the name of a layer's module, that of its normalisation's.
    """

    graph: Graph
    norms: Mapping[str, str]


def fold(graph: Graph, sizes: Mapping[str, tuple[int, ...]], strategy: int) -> Folding:
    """Takes every normalisation out of a graph whose only input is a layer's result that nothing else reads.

    Args:
        graph: as captured.
        sizes: shapes of its tensors.
        strategy: -1 leaves the graph as it is.

    Raises:
        ProfileError: there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise ProfileError(f"bn_fold is {strategy}", "give -1 to 4")
    if strategy == -1:
        return Folding(graph, {})
    norms = _pairs(graph, sizes)
    gone = {
        node.name: node.inputs[0] for node in graph if node.op == "batch_norm" and home_of(node.name) in norms.values()
    }
    nodes = tuple(
        replace(node, inputs=tuple(gone.get(name, name) for name in node.inputs))
        for node in graph
        if node.name not in gone
    )
    return Folding(Graph(nodes, tuple(gone.get(name, name) for name in graph.outputs)), norms)


def _pairs(graph: Graph, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Modules of layers with those of their normalisations, if every call of either belongs to a call of the other."""
    nodes = {node.name: node for node in graph}
    calls: dict[str, list[Node]] = {}
    for node in graph:
        calls.setdefault(home_of(node.name), []).append(node)
    found = {}
    for home, norm_calls in calls.items():
        if norm_calls[0].op != "batch_norm":
            continue
        layers = [nodes[call.inputs[0]] for call in norm_calls]
        layer = home_of(layers[0].name)
        if any(each.op not in LAYERS or home_of(each.name) != layer for each in layers):
            continue
        if len(calls[layer]) != len(layers) or any(
            len(graph.readers(each.name)) != 1 or each.name in graph.outputs for each in layers
        ):
            continue
        if any(each.op == "linear" and len(sizes[each.name]) != 2 for each in layers):  # it normalises another axis
            continue
        found[layer] = home
    return found


class QuantLayer(nn.Module):
    """A convolution or linear layer whose weight passes a quantiser; `layer_of` makes one.

    Attributes:
        node: its operation.
        weight_quantizer: or None for a weight that stays in float; under strategy 0 to 4 it is given the folded weight.
        folded_norm: the normalisation that is folded in, under strategies 1 to 4.
        strategy: of the folding.
        rounds_bias: whether biases are rounded to multiples of the product of the two step sizes.
        statistics_frozen: training uses the running statistics from now on, as strategy 1 does.
    """

    node: Node
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_quantizer: Any
    folded_norm: BatchNorm | None
    strategy: int
    rounds_bias: bool
    statistics_frozen: bool

    @property
    def axis(self) -> int:
        """Axis of the weight along which the output channels lie."""
        return 1 if self.node.op == "conv_transpose" else 0

    def forward(
        self, x: Float[Tensor, "n ..."], input_scale: Float[Tensor, ""] | None = None
    ) -> Float[Tensor, "n ..."]:
        """The layer's result.

        Args:
            x: its input.
            input_scale: the input's step size, to which the bias is rounded; None leaves the bias.
        """
        if self.folded_norm is None or not self.training or self.strategy == 1 or self.statistics_frozen:
            return self._quantised(x, *self.folded(), input_scale)
        return (self._of_batch, self._rescaled, self._unscaled)[self.strategy - 2](x, input_scale)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the normalisation by running statistics in them."""
        if self.folded_norm is None:
            return self.weight, self.bias
        mean, deviation = self._running()
        return self._folded_by(mean, deviation)

    def channelwise(self, step: Tensor) -> Tensor:
        """Step sizes of the weight as [out]: a transposed convolution's groups share theirs."""
        if step.dim() == 0 or self.node.op != "conv_transpose":
            return step
        return step.repeat(self.node.attributes["groups"])

    def _quantised(self, x: Tensor, weight: Tensor, bias: Tensor | None, input_scale: Tensor | None) -> Tensor:
        weight = self._on_grid(weight)
        if bias is not None and input_scale is not None and self.rounds_bias and quantises(self.weight_quantizer):
            step = input_scale.detach() * self.channelwise(self.weight_quantizer.scale.detach())
            bias = bias + (torch.round(bias.detach() / step) * step - bias.detach())
        return run_layer(self.node, x, weight, bias)

    def _of_batch(self, x: Tensor, input_scale: Tensor | None) -> Tensor:
        mean, deviation = self._statistics(x)
        return self._quantised(x, *self._folded_by(mean, deviation), input_scale)

    def _rescaled(self, x: Tensor, _: Tensor | None) -> Tensor:
        assert self.folded_norm is not None  # noqa: S101 -- the caller's case
        running = self._running()
        mean, deviation = self._statistics(x)
        weight, _unused = self._folded_by(*running)
        result = run_layer(self.node, x, self._on_grid(weight), None)
        _unused, bias = self._folded_by(mean, deviation)
        return result * _over_channels(running[1] / deviation, result) + _over_channels(bias, result)

    def _unscaled(self, x: Tensor, _: Tensor | None) -> Tensor:
        assert self.folded_norm is not None  # noqa: S101 -- the caller's case
        _mean, deviation = self._running()
        factor = _away_from_zero(self._gamma() / deviation)
        result = run_layer(self.node, x, self._on_grid(self._scaled(factor)), None)
        result = result / _over_channels(factor, result)
        return self.folded_norm(result if self.bias is None else result + _over_channels(self.bias, result))

    def _on_grid(self, weight: Tensor) -> Tensor:
        return weight if self.weight_quantizer is None else self.weight_quantizer(weight)

    def _running(self) -> tuple[Tensor, Tensor]:
        """Running mean and deviation."""
        bn: Any = self.folded_norm
        return bn.running_mean, torch.sqrt(bn.running_var + bn.eps)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the batch, as a layer in float has them; the running ones follow."""
        bn: Any = self.folded_norm
        result = run_layer(self.node, x, self.weight, self.bias)
        with torch.no_grad():
            bn(result)
        axes = [axis for axis in range(result.dim()) if axis != 1]
        return result.mean(axes), torch.sqrt(result.var(axes, unbiased=False) + bn.eps)

    def _folded_by(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        bn: Any = self.folded_norm
        factor = self._gamma() / deviation
        shift = mean if self.bias is None else mean - self.bias
        return self._scaled(factor), -shift * factor if bn.bias is None else bn.bias - shift * factor

    def _gamma(self) -> Tensor:
        bn: Any = self.folded_norm
        return torch.ones_like(bn.running_mean) if bn.weight is None else bn.weight

    def _scaled(self, factor: Tensor) -> Tensor:
        """The weight times a factor for each output channel."""
        if self.node.op != "conv_transpose":
            return self.weight * factor.reshape(-1, *[1] * (self.weight.dim() - 1))
        groups = self.node.attributes["groups"]
        parts = self.weight.unflatten(0, (groups, -1))  # [groups, in / groups, out / groups, ...]
        return (parts * factor.reshape(groups, 1, -1, *[1] * (self.weight.dim() - 2))).flatten(0, 1)


class QuantConv1d(QuantLayer, nn.Conv1d):  # type: ignore[misc]  # torch declares no optional bias
    """A convolution over one axis."""


class QuantConv2d(QuantLayer, nn.Conv2d):  # type: ignore[misc]  # torch declares no optional bias
    """A convolution over two axes."""


class QuantConv3d(QuantLayer, nn.Conv3d):  # type: ignore[misc]  # torch declares no optional bias
    """A convolution over three axes."""


class QuantConvTranspose1d(QuantLayer, nn.ConvTranspose1d):  # type: ignore[misc]  # torch declares no optional bias
    """A transposed convolution over one axis."""


class QuantConvTranspose2d(QuantLayer, nn.ConvTranspose2d):  # type: ignore[misc]  # torch declares no optional bias
    """A transposed convolution over two axes."""


class QuantConvTranspose3d(QuantLayer, nn.ConvTranspose3d):  # type: ignore[misc]  # torch declares no optional bias
    """A transposed convolution over three axes."""


class QuantLinear(QuantLayer, nn.Linear):  # type: ignore[misc]  # torch declares no optional bias
    """A linear layer."""


_CONVOLUTIONS: Mapping[tuple[str, int], Any] = {
    ("conv", 1): QuantConv1d,
    ("conv", 2): QuantConv2d,
    ("conv", 3): QuantConv3d,
    ("conv_transpose", 1): QuantConvTranspose1d,
    ("conv_transpose", 2): QuantConvTranspose2d,
    ("conv_transpose", 3): QuantConvTranspose3d,
}


def layer_of(
    node: Node,
    weight: Tensor,
    bias: Tensor | None,
    *,
    bn: BatchNorm | None = None,
    strategy: int = 4,
    rounds_bias: bool = True,
) -> QuantLayer:
    """A layer without its weight's quantiser, which is set afterwards.

    Args:
        node: of `LAYERS`.
        weight: as torch lays it out; a parameter is taken over as it is.
        bias: [out] or None, likewise.
        bn: what is folded in.
        strategy: 0 merges `bn` into the weight and the bias here.
        rounds_bias: as the profile's `bias` says.
    """
    layer = _empty(node, weight, bias is not None)
    layer.node, layer.strategy, layer.rounds_bias, layer.statistics_frozen = node, strategy, rounds_bias, False
    layer.weight, layer.bias = _parameter(weight), None if bias is None else _parameter(bias)
    layer.weight_quantizer, layer.folded_norm = None, bn
    if bn is not None and strategy == 0:
        with torch.no_grad():
            merged, shift = layer.folded()
        layer.weight, layer.bias, layer.folded_norm = nn.Parameter(merged), nn.Parameter(shift), None  # type: ignore[arg-type]
    return layer


def quantises(quantizer: Any) -> bool:
    """Whether a quantiser gives tensors of its grid now."""
    if quantizer is None or not quantizer.enabled:
        return False
    return getattr(quantizer, "state", "ready") in ("ready", "frozen")


def _empty(node: Node, weight: Tensor, with_bias: bool) -> QuantLayer:
    """A layer of the right sizes whose numbers are still to be set."""
    with torch.device("meta"):
        if node.op == "linear":
            return QuantLinear(weight.shape[1], weight.shape[0], with_bias)
        of = node.attributes
        axes, groups = weight.dim() - 2, of["groups"]
        kind = _CONVOLUTIONS[node.op, axes]
        common = {"stride": of["stride"], "padding": of["padding"], "dilation": of["dilation"], "bias": with_bias}
        if node.op == "conv":
            return kind(weight.shape[1] * groups, weight.shape[0], weight.shape[2:], groups=groups, **common)
        return kind(
            weight.shape[0],
            weight.shape[1] * groups,
            weight.shape[2:],
            groups=groups,
            output_padding=of["output_padding"],
            **common,
        )


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())


def _over_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


def _away_from_zero(factor: Tensor) -> Tensor:
    """A channel whose gamma is 0 gets its beta, not 0 / 0."""
    return torch.where(factor.abs() < _TINY, torch.full_like(factor, _TINY), factor)
