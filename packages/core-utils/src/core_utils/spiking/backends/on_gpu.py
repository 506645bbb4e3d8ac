"""Kernels for a GPU in Triton: one launch a pass, in which a program takes its neurons through all time steps.

A neuron's scalars are compiled into the kernels, in the precision of the potential. `enable_fp_fusion` is off: a fused
multiply-add rounds once where the reference rounds twice, and spikes would differ.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from core_utils.spiking.backends.builtin import constants
from core_utils.spiking.dynamics import Neuron, kept

BLOCK = 1024
"""Neurons of a program."""


def takes(x_seq: Tensor) -> bool:
    """Any precision on a GPU; tensors of the CPU in Triton's interpreter (TRITON_INTERPRET=1)."""
    return x_seq.is_cuda or (x_seq.is_cpu and not isinstance(_forward, triton.JITFunction))


def empty_like(x_seq: Tensor) -> Tensor:
    """As `Kernels.empty_like`."""
    return torch.empty_like(x_seq, memory_format=torch.contiguous_format)


def forward(x_seq: Tensor, v: Tensor, spikes: Tensor, neuron: Neuron) -> None:
    """As `Kernels.forward`."""
    _launch(_forward, x_seq, v, spikes, **_dynamics(neuron))


def backward(x_seq: Tensor, v0: Tensor | None, gs: Tensor, gv: Tensor, grad_x: Tensor, neuron: Neuron) -> None:
    """As `Kernels.backward`."""
    name, a, b = constants(neuron.surrogate)  # type: ignore[misc]  # `compiled` asked
    surrogate = {"detach_reset": neuron.detach_reset, "surrogate": name, "a": a, "b": b}
    full = kept(x_seq.dtype)  # half precision would not hold the potentials
    u_seq = grad_x if grad_x.dtype == full else torch.empty_like(grad_x, dtype=full)
    start = gv if v0 is None else v0
    _launch(_backward, x_seq, start, gs, gv, grad_x, u_seq, from_rest=v0 is None, **_dynamics(neuron), **surrogate)


def _dynamics(neuron: Neuron) -> dict[str, Any]:
    return {
        "decay": neuron.decay,
        "input_scale": neuron.input_scale,
        "threshold": neuron.threshold,
        "at_threshold": neuron.compare == ">=",
        "hard": neuron.reset == "hard",
    }


def _launch(kernel: Any, x_seq: Tensor, *tensors: Tensor, **scalars: Any) -> None:
    T, N = x_seq.shape
    with torch.cuda.device_of(x_seq):  # a launch goes to the current device
        kernel[(triton.cdiv(N, BLOCK),)](
            x_seq, x_seq.stride(0), *tensors, T, N, **scalars, BLOCK=BLOCK, enable_fp_fusion=False
        )


# `no_type_check` keeps the tests' shape checks out of what Triton compiles.


@triton.jit
@no_type_check
def _fires(u, threshold: tl.constexpr, at_threshold: tl.constexpr):
    return u >= threshold if at_threshold else u > threshold


@triton.jit
@no_type_check
def _reset(u, fired, threshold: tl.constexpr, hard: tl.constexpr):
    """The potential after the spike; u - u is 0, but NaN of an infinite u, as (1 - s) * u is."""
    return tl.where(fired, u - (u if hard else threshold), u)


@triton.jit
@no_type_check
def _derivative(distance, surrogate: tl.constexpr, a: tl.constexpr, b: tl.constexpr):
    """The surrogate ds/du; `constants` has the formulas."""
    if surrogate == "triangle":
        return tl.maximum(a - tl.abs(distance), 0.0) * b
    elif surrogate == "rectangle":  # noqa: RET505 -- Triton drops the branches it does not take, but not what follows
        return (tl.abs(distance) < a).to(distance.dtype) * b
    elif surrogate == "atan":
        return b / (1 + (a * distance) * (a * distance))
    else:
        p = 1 / (1 + tl.exp(-a * distance))
        return b * p * (1 - p)


@triton.jit
@no_type_check
def _forward(
    x_seq, stride, v_all, spikes, T, N,
    decay: tl.constexpr, input_scale: tl.constexpr, threshold: tl.constexpr,
    at_threshold: tl.constexpr, hard: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`v_all` goes from before the first step to after the last."""
    neurons = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = neurons < N
    v = tl.load(v_all + neurons, valid)
    x_now, s_now = x_seq + neurons, spikes + neurons
    for _ in range(T):
        u = decay * v + input_scale * tl.load(x_now, valid).to(v.dtype)
        fired = _fires(u, threshold, at_threshold)
        tl.store(s_now, fired.to(v.dtype), valid)
        v = _reset(u, fired, threshold, hard)
        x_now += stride
        s_now += N
    tl.store(v_all + neurons, v, valid)


@triton.jit
@no_type_check
def _backward(
    x_seq, stride, v0, grad_spikes, gv_all, grad_x, u_seq, T, N, from_rest: tl.constexpr,
    decay: tl.constexpr, input_scale: tl.constexpr, threshold: tl.constexpr,
    at_threshold: tl.constexpr, hard: tl.constexpr, detach_reset: tl.constexpr,
    surrogate: tl.constexpr, a: tl.constexpr, b: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`gv_all` goes from after the last step to before the first; `u_seq` may be `grad_x`."""
    neurons = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = neurons < N
    gv = tl.load(gv_all + neurons, valid)
    v = tl.zeros_like(gv) if from_rest else tl.load(v0 + neurons, valid)
    x_now, u_now, gs_now, gx_now = x_seq + neurons, u_seq + neurons, grad_spikes + neurons, grad_x + neurons
    for _ in range(T):
        u = decay * v + input_scale * tl.load(x_now, valid).to(v.dtype)
        tl.store(u_now, u, valid)
        v = _reset(u, _fires(u, threshold, at_threshold), threshold, hard)
        x_now += stride
        u_now += N
        gs_now += N
        gx_now += N
    for _ in range(T):
        u_now -= N
        gs_now -= N
        gx_now -= N
        u = tl.load(u_now, valid)
        reaching = tl.load(gs_now, valid).to(gv.dtype)  # the gradient of the spike
        if not detach_reset:
            reaching -= gv * (u if hard else threshold)  # what a spike takes from the potential
        passing = tl.where(_fires(u, threshold, at_threshold), gv - gv, gv) if hard else gv  # and that beside it
        gu = reaching * _derivative(u - threshold, surrogate, a, b) + passing
        tl.store(gx_now, input_scale * gu, valid)
        gv = decay * gu
    tl.store(gv_all + neurons, gv, valid)
