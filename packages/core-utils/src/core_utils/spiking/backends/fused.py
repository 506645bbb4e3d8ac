"""One node of the graph for all time steps, on any device: it keeps its inputs alone and computes u anew in backward."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core_utils.spiking.dynamics import Neuron, kept, rest

BLOCK = 2**17
"""Neurons a thread takes at a time on a CPU: few enough for its cache, enough that threads seldom wait for each other."""


def fused(x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """All time steps at once."""
    spikes, v = _Fused.apply(x_seq.flatten(1), v0 if v0 is None else v0.flatten(), neuron)
    return spikes.view(x_seq.shape), v.view(x_seq.shape[1:])


class _Fused(torch.autograd.Function):
    """Takes the neurons, x_seq [T, N] and v0 [N], in blocks that stay in cache over all time steps."""

    @staticmethod
    def forward(ctx: Any, x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x_seq, v0)
        ctx.set_materialize_grads(False)
        ctx.neuron = neuron
        spikes = torch.empty_like(x_seq)
        v_end = rest(x_seq[0]) if v0 is None else v0.clone()
        for block in _blocks(v_end):
            v = v_end[block]
            for x, s in zip(x_seq[:, block], spikes[:, block], strict=True):
                _integrate_(v, x, neuron)
                neuron.fires(v, neuron.threshold, out=s)
                _reset_(v, neuron)
        return spikes, v_end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None) -> tuple[Tensor, Tensor | None, None]:
        x_seq, v0 = ctx.saved_tensors
        neuron: Neuron = ctx.neuron
        hard = neuron.reset == "hard"
        grad_x = torch.empty_like(x_seq, dtype=kept(x_seq.dtype))
        grad_v0 = None if v0 is None else torch.empty_like(v0)
        for block in _blocks(x_seq[0]):
            u_seq = grad_x[:, block]  # the potential, until its gradient takes its place
            v = torch.zeros_like(u_seq[0]) if v0 is None else v0[block].clone()
            for x, u in zip(x_seq[:, block], u_seq, strict=True):
                u.copy_(_integrate_(v, x, neuron))
                _reset_(v, neuron)
            gv = torch.zeros_like(v) if grad_v is None else grad_v[block].clone()
            for t in reversed(range(len(u_seq))):
                u = u_seq[t]
                gs = 0 if grad_spikes is None else grad_spikes[t, block]
                if not neuron.detach_reset:
                    gs = gs - gv * (u if hard else neuron.threshold)  # what a spike takes from the potential
                slope = neuron.surrogate(u - neuron.threshold)
                if hard:
                    gv.mul_(neuron.silent(u, neuron.threshold, out=v))
                gu = gv.add_(slope * gs)
                torch.mul(gu, neuron.input_scale, out=u)
                gv = gu.mul_(neuron.decay)
            if grad_v0 is not None:
                grad_v0[block] = gv
        return grad_x.to(x_seq.dtype), grad_v0, None


def _integrate_(v: Tensor, x: Tensor, neuron: Neuron) -> Tensor:
    """The potential before the spike, in place of that before the step.

    Not `add_(alpha=)`, which rounds once where the reference rounds twice: spikes would differ.
    """
    return v.mul_(neuron.decay).add_(x if neuron.input_scale == 1 else x.to(v.dtype) * neuron.input_scale)


def _reset_(u: Tensor, neuron: Neuron) -> Tensor:
    """The potential after the spike, in place of that before it."""
    if neuron.reset == "hard":
        return u.mul_(neuron.silent(u, neuron.threshold, out=torch.empty_like(u)))
    return u.sub_(neuron.fires(u, neuron.threshold, out=torch.empty_like(u)), alpha=neuron.threshold)


def _blocks(neurons: Tensor) -> Iterator[slice]:
    """Slices of the axis of neurons, [N], that are worked on one after the other; a single one on a GPU."""
    count = len(neurons)
    size = BLOCK * torch.get_num_threads() if neurons.is_cpu else max(count, 1)
    return (slice(start, start + size) for start in range(0, count, size))
