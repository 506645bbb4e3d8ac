"""What a spiking network does on data: how often its neurons fire, and what that costs.

Costs are counts, not measurements. A spike into a layer costs one accumulation for every synapse it reaches; borders
count as they are, so a spike in a corner reaches fewer. Every input value of a layer without spikes before it costs one
multiplication a synapse and step. Batch normalisation costs nothing, as it becomes part of the convolution before it
(`fuse_conv_bn`), and neither do biases and the neurons' own update.

An average pool between spikes and a layer is folded into that layer: the pooled values are k / n for n pooled pixels,
and stand for k spikes, each of which reaches the synapses of its square. Where blocks add spikes up, a value of k
stands for k spikes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.spiking.networks import LIF

DEAD = 1e-4
"""A layer that fires less, in spikes a neuron and step, passes nothing on."""
SATURATED = 0.9
"""A layer that fires more passes on hardly more than a constant."""
E_MAC = 4.6e-12
"""Energy of a 32-bit floating-point multiplication and addition at 45 nm, J (Horowitz, ISSCC 2014)."""
E_AC = 0.9e-12
"""Energy of a 32-bit floating-point addition at 45 nm, J (Horowitz, ISSCC 2014)."""

POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
SYNAPSES = (nn.Conv2d, nn.Linear)
Look = Callable[[str, Any, Tensor, Tensor], None]
"""At a layer's name, the layer, its input and its output."""


def firing_rates(model: nn.Module, x_seq: Float[Tensor, "T B *shape"]) -> dict[str, float]:
    """How often the neurons of each layer fire.

    Args:
        model: its `LIF` layers are looked at, in evaluation mode.
        x_seq: input, shape [T, B, ...].

    Returns:
        Spikes a neuron and step, 0 to 1, by the layer's name; of the layers that ran.
    """
    fired: dict[str, float] = {}
    chances: dict[str, int] = {}

    def count(name: str, _: Any, __: Tensor, spikes: Tensor) -> None:
        fired[name] = fired.get(name, 0) + spikes.sum(dtype=torch.float64).item()
        chances[name] = chances.get(name, 0) + spikes.numel()

    with _watching(model, (LIF,), count):
        model(x_seq)
    return {name: fired[name] / max(chances[name], 1) for name in fired}


def silent_or_saturated(rates: Mapping[str, float]) -> dict[str, Literal["dead", "saturated"]]:
    """The layers that fire hardly ever or nearly always, by name; what `firing_rates` gives is looked at."""
    return {
        name: "dead" if rate < DEAD else "saturated" for name, rate in rates.items() if not DEAD <= rate <= SATURATED
    }


@dataclass(frozen=True)
class LayerOperations:
    """What a convolution or linear layer does for one sample, on average.

    Attributes:
        accumulates: additions that spikes cause, over all steps.
        multiplies: multiplications with additions, over all steps, where the input is no spikes.
        dense: multiplications with additions of one pass without regard to zeros, as an artificial network does.
    """

    accumulates: float = 0.0
    multiplies: float = 0.0
    dense: float = 0.0

    def __add__(self, other: LayerOperations) -> LayerOperations:
        return LayerOperations(
            self.accumulates + other.accumulates, self.multiplies + other.multiplies, self.dense + other.dense
        )

    def __truediv__(self, samples: int) -> LayerOperations:
        return LayerOperations(self.accumulates / samples, self.multiplies / samples, self.dense / samples)


@dataclass(frozen=True)
class SynapticOperations:
    """What a network does for one sample, on average.

    Attributes:
        layers: by name, in the order in which they ran.
        samples: how many were looked at.
    """

    layers: Mapping[str, LayerOperations]
    samples: int

    @property
    def total(self) -> LayerOperations:
        """Of all layers."""
        return sum(self.layers.values(), LayerOperations())

    def theoretical_energy(self, *, mac: float = E_MAC, ac: float = E_AC) -> float:
        """Energy of the arithmetic for one sample, J: theoretical, without memory and traffic, which cost more.

        Args:
            mac: energy of a multiplication with addition, J.
            ac: energy of an addition, J.
        """
        return self.total.multiplies * mac + self.total.accumulates * ac

    def theoretical_energy_of_artificial_network(self, *, mac: float = E_MAC) -> float:
        """Energy of the same layers in one pass with real-valued activity, J; theoretical."""
        return self.total.dense * mac


def synaptic_ops(model: nn.Module, batches: Iterable[Tensor]) -> SynapticOperations:
    """Counts a network's operations.

    Args:
        model: its `nn.Conv2d` and `nn.Linear` layers are looked at, in evaluation mode. Those that run before the first
            `LIF` layer multiply, whatever their input.
        batches: inputs, each of shape [T, B, ...]; a still image counts at every step.

    Returns:
        Operations for one sample of T steps.

    Raises:
        UserError: no sample, or a convolution whose padding is not zeros.
    """
    layers: dict[str, LayerOperations] = {}
    pooled: dict[int, tuple[int, Tensor]] = {}  # by address; holding the output keeps the address its own
    spiking, samples = False, 0

    def count(name: str, layer: Any, x: Tensor, output: Tensor) -> None:
        nonlocal spiking
        pixels, _ = pooled.get(_address(x), (1, x))
        if isinstance(layer, LIF):
            spiking = True
        elif isinstance(layer, POOLS):
            pooled[_address(output)] = pixels * _pooled_pixels(layer, x), output
        else:
            dense = len(x) * _reached(layer, torch.ones_like(x[:1]))
            spikes = _whole(x * pixels) if spiking else None
            accumulates, multiplies = (0.0, dense) if spikes is None else (_reached(layer, spikes), 0.0)
            found = LayerOperations(accumulates, multiplies, dense / steps)
            layers[name] = layers.get(name, LayerOperations()) + found

    with _watching(model, (LIF, *POOLS, *SYNAPSES), count):
        for x_seq in batches:
            spiking, steps = False, len(x_seq)
            samples += x_seq.shape[1]
            model(x_seq.contiguous())
            pooled.clear()
    if samples == 0:
        raise UserError("there is nothing to count operations on: no batch holds a sample")
    return SynapticOperations({name: found / samples for name, found in layers.items()}, samples)


def _address(x: Tensor) -> int:
    """The same for all views of a tensor."""
    return x.untyped_storage().data_ptr()


def _pooled_pixels(pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d, x: Tensor) -> int:
    """The pixels of each pooled square; 1 if squares overlap or differ, so that the pool does not fold."""
    height, width = x.shape[-2:]
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        rows, columns = (size or have for have, size in zip((height, width), _pair(pool.output_size), strict=True))
        return height // rows * (width // columns) if height % rows == width % columns == 0 else 1
    side = _pair(pool.kernel_size)
    plain = _pair(pool.padding) == (0, 0) and not pool.ceil_mode and pool.divisor_override is None
    return math.prod(side) if plain and side == _pair(pool.stride) else 1


def _whole(spikes: Tensor) -> Tensor | None:
    """Spikes as whole numbers, or None if they are none but for rounding."""
    whole = spikes.round()
    return whole if torch.allclose(spikes, whole, rtol=0, atol=1e-3) else None


def _reached(layer: nn.Conv2d | nn.Linear, spikes: Tensor) -> float:
    """Input spikes times the synapses that each reaches."""
    if isinstance(layer, nn.Linear):
        return spikes.sum(dtype=torch.float64).item() * layer.out_features
    if layer.padding_mode != "zeros":
        raise UserError(f"operations are counted of convolutions that pad with zeros, not {layer.padding_mode!r}")
    activity = spikes.sum((0, 1), dtype=torch.float64)  # channels reach alike
    ones = torch.ones(1, 1, *layer.kernel_size, dtype=activity.dtype, device=activity.device)
    outputs = functional.conv2d(activity[None, None], ones, None, layer.stride, layer.padding, layer.dilation)
    return outputs.sum().item() * layer.out_channels / layer.groups


def _pair(size: Any) -> tuple[Any, Any]:
    return size if isinstance(size, tuple) else (size, size)


@contextmanager
def _watching(model: nn.Module, kinds: tuple[type[nn.Module], ...], look: Look) -> Iterator[None]:
    """Looks at every layer of some kinds after it ran; the model is in evaluation mode, and afterwards as it was."""
    training = {module: module.training for module in model.modules()}
    handles = [
        module.register_forward_hook(lambda layer, inputs, output, name=name: look(name, layer, inputs[0], output))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
