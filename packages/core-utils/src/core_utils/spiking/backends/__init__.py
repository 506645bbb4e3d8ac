"""Ways to compute a layer of neurons; they differ in speed and memory, never in spikes."""

import logging
from collections.abc import Callable

from torch import Tensor

from core_utils.spiking.backends.compiled import compiled, load
from core_utils.spiking.backends.fused import fused
from core_utils.spiking.backends.reference import reference
from core_utils.spiking.dynamics import Neuron

Backend = Callable[[Tensor, Tensor | None, Neuron], tuple[Tensor, Tensor]]
"""From x_seq [T, B, ...], v0 [B, ...] or None for rest, and the neuron, to the spikes and the last membrane potential.

`v0` and the last potential have the precision `kept(x_seq.dtype)`; gradients flow to `x_seq` and `v0`.
"""

_log = logging.getLogger(__name__)


def numba(x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """Compiled for the CPU; half precision and surrogates of the user's own are left to `fused`."""
    return compiled(load("on_cpu"), x_seq, v0, neuron)


def triton(x_seq: Tensor, v0: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """Compiled for the GPU; surrogates of the user's own are left to `fused`."""
    return compiled(load("on_gpu"), x_seq, v0, neuron)


BACKENDS: dict[str, Backend] = {"reference": reference, "fused": fused, "numba": numba, "triton": triton}


_FASTEST: dict[str, Backend] = {}  # not functools.cache, at which torch.compile warns


def fastest(device: str) -> Backend:
    """The backend that "auto" means on a type of device; found once."""
    if device not in _FASTEST:
        _FASTEST[device] = _find(device)
    return _FASTEST[device]


def _find(device: str) -> Backend:
    """Numba on a CPU and Triton on CUDA; `fused` elsewhere, and, after one line in the log, where they cannot be loaded."""
    if device not in ("cpu", "cuda"):
        return fused
    backend, kernels = (numba, "on_cpu") if device == "cpu" else (triton, "on_gpu")
    try:
        load(kernels)
    except Exception as error:  # a compiler has many ways to fail, and none may stop a network
        _log.warning("%s is not usable, fused takes its place: %s", backend.__name__, error)
        return fused
    return backend
