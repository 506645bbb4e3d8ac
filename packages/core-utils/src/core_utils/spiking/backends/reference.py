"""The plain loop under autograd: slow, hungry, and the oracle of every other backend."""

from typing import Any

import torch
from torch import Tensor

from core_utils.spiking.dynamics import Neuron, rest


def reference(x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """All time steps, one after the other."""
    v = rest(x_seq[0]) if v0 is None else v0
    spikes = []
    for x in x_seq:
        s, v = step(x, v, neuron)
        spikes.append(s)
    return torch.stack(spikes), v


def step(x: Tensor, v: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """Spikes of one time step, and the membrane potential after it."""
    u = neuron.decay * v + neuron.input_scale * x.to(v.dtype)
    s = _Spike.apply(u, neuron)
    resetting = s.detach() if neuron.detach_reset else s
    v = (1 - resetting) * u if neuron.reset == "hard" else u - neuron.threshold * resetting
    return s.to(x.dtype), v


class _Spike(torch.autograd.Function):
    """The step at the threshold, with the surrogate for its derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(u)
        ctx.neuron = neuron
        return neuron.fires(u, neuron.threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.neuron.surrogate(u - ctx.neuron.threshold), None
