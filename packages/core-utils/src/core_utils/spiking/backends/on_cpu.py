"""Kernels for a CPU, compiled by numba when this module is first imported; later processes find them in its cache.

Neurons are taken in blocks, so that their potentials of all time steps stay in a core's cache. No `fastmath`: a fused
multiply-add rounds once where the reference rounds twice, and spikes would differ.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from core_utils.spiking.backends.builtin import constants
from core_utils.spiking.dynamics import Neuron

BLOCK = 2048
"""Neurons of a block: 8 KiB of potentials a time step in float32."""

PARALLEL_FROM = 2**20
"""Elements of the input below which starting threads costs more than they save."""

TRIANGLE, RECTANGLE, ATAN, SIGMOID = range(4)
KINDS = {"triangle": TRIANGLE, "rectangle": RECTANGLE, "atan": ATAN, "sigmoid": SIGMOID}


def takes(x_seq: Tensor) -> bool:
    """Single and double precision on a CPU; half is not numba's."""
    return x_seq.is_cpu and x_seq.dtype in (torch.float32, torch.float64)


def empty_like(x_seq: Tensor) -> Tensor:
    """NumPy's memory, which comes in huge pages: page faults on torch's would take as long as the kernel."""
    return torch.from_numpy(np.empty(x_seq.shape, _array(x_seq).dtype))


def forward(x_seq: Tensor, v: Tensor, spikes: Tensor, neuron: Neuron) -> None:
    """As `Kernels.forward`."""
    arrays = _rows(x_seq), x_seq.stride(0), _array(v), _array(spikes)
    dtype = arrays[-1].dtype
    _in_threads(_forward(dtype), x_seq.shape, *arrays, *_dynamics(neuron, dtype))


def backward(x_seq: Tensor, v0: Tensor | None, gs: Tensor, gv: Tensor, grad_x: Tensor, neuron: Neuron) -> None:
    """As `Kernels.backward`."""
    arrays = _rows(x_seq), x_seq.stride(0), _array(gv[:0] if v0 is None else v0), _array(gs), _array(gv), _array(grad_x)
    dtype = arrays[-1].dtype
    name, a, b = constants(neuron.surrogate)  # type: ignore[misc]  # `compiled` asked
    surrogate = KINDS[name], dtype.type(a), dtype.type(b)
    _in_threads(_backward(dtype), x_seq.shape, *arrays, *_dynamics(neuron, dtype), neuron.detach_reset, *surrogate)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _rows(x_seq: Tensor) -> np.ndarray:
    """The memory of [T, N] on one axis, from which row t is [t * stride : t * stride + N]; an expanded T costs none."""
    (T, N), stride = x_seq.shape, x_seq.stride(0)
    return _array(x_seq.as_strided(((T - 1) * stride + N,), (1,)))


def _dynamics(neuron: Neuron, dtype: np.dtype) -> tuple[Any, ...]:
    """The scalars of both kernels, in the precision of the potential as torch would round them."""
    scalars = dtype.type(neuron.decay), dtype.type(neuron.input_scale), dtype.type(neuron.threshold)
    return *scalars, neuron.compare == ">=", neuron.reset == "hard"


def _in_threads(kernel: Callable[..., None], shape: torch.Size, *arguments: Any) -> None:
    """Shares the neurons among as many threads as torch uses. Each result is of one neuron, so sharing changes none.

    Not numba's own threads: its default layer must not be entered by two Python threads at once.
    """
    T, N = shape
    threads = torch.get_num_threads() if T * N >= PARALLEL_FROM else 1
    if threads == 1:
        return kernel(0, N, *arguments)
    shares = pairwise(N * share // threads for share in range(threads + 1))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *share, *arguments) for share in shares]:
            done.result()
    return None


def _compile(signature: str) -> Callable[[Callable[..., None]], Callable[[np.dtype], Callable[..., None]]]:
    """Makes of a kernel a function of the precision, which R stands for; double is compiled when it is asked for."""

    def of_kernel(kernel: Callable[..., None]) -> Callable[[np.dtype], Callable[..., None]]:
        @functools.cache
        def of_precision(dtype: np.dtype) -> Callable[..., None]:
            return numba.njit([signature.replace("R", dtype.name)], cache=True, nogil=True, error_model="numpy")(kernel)

        of_precision(np.dtype(np.float32))  # a compiler that fails is to fail here, where `fused` can take its place
        return of_precision

    return of_kernel


# What follows is compiled; `no_type_check` keeps the tests' shape checks out of it. A loop over a block is a function of
# its own, because LLVM vectorises it there and gives up on it amid the others.


@numba.njit
@no_type_check
def _fires(u, threshold, at_threshold):
    return u >= threshold if at_threshold else u > threshold


@numba.njit
@no_type_check
def _reset(u, fired, threshold, hard):
    """The potential after the spike; u - u is 0, but NaN of an infinite u, as (1 - s) * u is."""
    return u - (u if hard else threshold) if fired else u


@numba.njit
@no_type_check
def _spike(v, x, s, decay, input_scale, threshold, at_threshold, hard):
    """One time step forward, v in place."""
    for i in range(len(v)):
        u = decay * v[i] + input_scale * x[i]
        fired = _fires(u, threshold, at_threshold)
        s[i] = fired
        v[i] = _reset(u, fired, threshold, hard)


@numba.njit
@no_type_check
def _integrate(v, x, u_now, decay, input_scale, threshold, at_threshold, hard):
    """The same step for its potential before the spike."""
    for i in range(len(v)):
        u = decay * v[i] + input_scale * x[i]
        u_now[i] = u
        v[i] = _reset(u, _fires(u, threshold, at_threshold), threshold, hard)


@numba.njit(error_model="numpy")
@no_type_check
def _differentiate(u, slope, threshold, kind, a, b):
    """The surrogate ds/du at every potential; `constants` has the formulas."""
    one, zero = slope.dtype.type(1), slope.dtype.type(0)
    if kind == TRIANGLE:
        for i in range(len(slope)):
            slope[i] = max(a - abs(u[i] - threshold), zero) * b
    elif kind == RECTANGLE:
        for i in range(len(slope)):
            slope[i] = b if abs(u[i] - threshold) < a else zero
    elif kind == ATAN:
        for i in range(len(slope)):
            scaled = a * (u[i] - threshold)
            slope[i] = b / (one + scaled * scaled)
    else:
        for i in range(len(slope)):
            p = one / (one + np.exp(-a * (u[i] - threshold)))
            slope[i] = b * p * (one - p)


@numba.njit
@no_type_check
def _backpropagate(gv, u, slope, gs, gx, decay, input_scale, threshold, at_threshold, hard, detach_reset):
    """One time step backward, gv in place."""
    for i in range(len(gv)):
        reaching = gs[i]  # the gradient of the spike
        if not detach_reset:
            reaching -= gv[i] * (u[i] if hard else threshold)  # what a spike takes from the potential
        passing = gv[i]  # and that of the potential beside it
        if hard and _fires(u[i], threshold, at_threshold):
            passing -= gv[i]
        gu = reaching * slope[i] + passing
        gx[i] = input_scale * gu
        gv[i] = decay * gu


@_compile("void(int64, int64, R[::1], int64, R[::1], R[:, ::1], R, R, R, boolean, boolean)")
@no_type_check
def _forward(start, stop, x_rows, stride, v_all, spikes, decay, input_scale, threshold, at_threshold, hard):
    """Neurons from `start` to `stop`; `v_all` goes from before the first step to after the last."""
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        for t in range(len(spikes)):
            x = x_rows[t * stride + low : t * stride + high]
            _spike(v_all[low:high], x, spikes[t, low:high], decay, input_scale, threshold, at_threshold, hard)


@_compile(
    "void(int64, int64, R[::1], int64, R[::1], R[:, ::1], R[::1], R[:, ::1],"
    " R, R, R, boolean, boolean, boolean, int64, R, R)"
)
@no_type_check
def _backward(
    start, stop, x_rows, stride, v0, grad_spikes, gv_all, grad_x,
    decay, input_scale, threshold, at_threshold, hard, detach_reset, kind, a, b,
):  # fmt: skip
    """Neurons from `start` to `stop`; `v0` is empty for rest, `gv_all` goes from after the last step to before the first."""
    T = len(grad_x)
    u_seq = np.empty((T, BLOCK), grad_x.dtype)
    v_block, slope_block = np.empty(BLOCK, grad_x.dtype), np.empty(BLOCK, grad_x.dtype)
    for low in range(start, stop, BLOCK):
        high = min(low + BLOCK, stop)
        v, slope, gv = v_block[: high - low], slope_block[: high - low], gv_all[low:high]
        v[:] = 0
        if len(v0):
            v[:] = v0[low:high]
        for t in range(T):
            x = x_rows[t * stride + low : t * stride + high]
            _integrate(v, x, u_seq[t], decay, input_scale, threshold, at_threshold, hard)
        for t in range(T - 1, -1, -1):
            gs, gx = grad_spikes[t, low:high], grad_x[t, low:high]
            _differentiate(u_seq[t], slope, threshold, kind, a, b)
            _backpropagate(gv, u_seq[t], slope, gs, gx, decay, input_scale, threshold, at_threshold, hard, detach_reset)
