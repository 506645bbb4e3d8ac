"""One node of the graph whose two passes are compiled kernels: numba's in `on_cpu`, Triton's in `on_gpu`.

As `fused` it keeps its inputs alone and computes u anew in backward.
"""

import importlib
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core_utils.spiking.backends.builtin import constants
from core_utils.spiking.backends.fused import fused
from core_utils.spiking.dynamics import Neuron, rest


@runtime_checkable
class Kernels(Protocol):
    """A module with both passes over x_seq [T, N], in which neighbours along N are neighbours in memory."""

    def takes(self, x_seq: Tensor) -> bool:
        """Whether the kernels run on this device and in this precision."""

    def empty_like(self, x_seq: Tensor) -> Tensor:
        """Contiguous room for the spikes, or for the gradient of the input."""

    def forward(self, x_seq: Tensor, v: Tensor, spikes: Tensor, neuron: Neuron) -> None:
        """Writes the spikes, and takes the potential `v` [N] from before the first step to after the last."""

    def backward(
        self, x_seq: Tensor, v0: Tensor | None, grad_spikes: Tensor, gv: Tensor, grad_x: Tensor, neuron: Neuron
    ) -> None:
        """Writes the gradient of the input, and takes that of the potential, `gv` [N], from the end to the start."""


def load(name: str) -> Kernels:
    """The module of that name; numba compiles its kernels here, or finds them in its cache."""
    return cast(Kernels, importlib.import_module(f"{__package__}.{name}"))


def compiled(kernels: Kernels, x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """All time steps at once; what the kernels cannot do is left to `fused`."""
    if constants(neuron.surrogate) is None or x_seq.numel() == 0 or not kernels.takes(x_seq):
        return fused(x_seq, v0, neuron)
    rows = x_seq.flatten(1)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    spikes, v = _Compiled.apply(rows, v0 if v0 is None else v0.flatten().contiguous(), neuron, kernels)
    return spikes.view(x_seq.shape), v.view(x_seq.shape[1:])


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_seq: Tensor, v0: Tensor | None, neuron: Neuron, kernels: Kernels) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x_seq, v0)
        ctx.set_materialize_grads(False)
        ctx.neuron, ctx.kernels = neuron, kernels
        spikes, v = kernels.empty_like(x_seq), rest(x_seq[0]) if v0 is None else v0.clone()
        kernels.forward(x_seq, v, spikes, neuron)
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None) -> tuple[Tensor | None, ...]:
        x_seq, v0 = ctx.saved_tensors
        grad_x = ctx.kernels.empty_like(x_seq)
        gs = torch.zeros_like(grad_x) if grad_spikes is None else grad_spikes.contiguous()
        gv = rest(x_seq[0]) if grad_v is None else grad_v.clone(memory_format=torch.contiguous_format)
        ctx.kernels.backward(x_seq, v0, gs, gv, grad_x, ctx.neuron)
        return grad_x, None if v0 is None else gv, None, None
