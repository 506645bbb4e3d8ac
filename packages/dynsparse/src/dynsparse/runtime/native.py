"""The compiled kernel: where it is, and a call of it over threads."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from dynsparse.runtime.pattern import SparseKernels
from dynsparse.runtime.plans import InstructionSet, Plan

_rooms = threading.local()


@functools.cache
def extension() -> ModuleType | None:
    """The extension module; None in an installation without it."""
    try:
        from dynsparse import _kernel
    except ImportError:
        return None
    return _kernel


@functools.cache
def instruction_sets() -> tuple[InstructionSet, ...]:
    """Those that this processor has and the kernel knows, the best one last; none without the extension."""
    kernel = extension()
    found = kernel.instruction_sets() if kernel else ()
    return tuple(InstructionSet(index, *each) for index, each in enumerate(found))


def convolve(
    kernels: SparseKernels, plan: Plan, x: Float[Tensor, "b c_i *space"], pi: Float[Tensor, " *pi"]
) -> Float[Tensor, "b c_o *out"]:
    """y_b of every sample, by as many threads as torch has.

    Args:
        kernels: packed.
        plan: for the size of x.
        x: float32, on the CPU, padded by what the convolution itself does not pad.
        pi: attention [B, K]; or the weights of the router that the plan has.
    """
    kernel = extension()
    if kernel is None:
        raise RuntimeError("dynsparse was installed without its compiled kernel")
    x, pi = x.contiguous(), pi.contiguous()
    output = x.new_empty(len(x), kernels.shape[0], *plan.out)
    tensors = (x, pi, kernels.values, kernels.bias, kernels.row_starts, plan.offsets)
    addresses = [tensor.data_ptr() for tensor in tensors]

    def part(samples: tuple[int, int], rows: tuple[int, int]) -> None:
        kernel.convolve(plan.fields, *addresses, _room(plan.room).data_ptr(), output.data_ptr(), samples, rows)

    parts = _parts(len(x), kernels.shape[0], torch.get_num_threads())
    if len(parts) == 1:
        part(*parts[0])
    else:
        list(_pool(os.getpid(), len(parts)).map(part, *zip(*parts, strict=True)))
    return output


def _parts(samples: int, rows: int, threads: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of samples and rows for each thread; samples are shared out first, as every part packs its input."""
    across = min(samples, threads)
    down = min(rows, threads // across)
    return [(a, b) for a in _ranges(samples, across) for b in _ranges(rows, down)]


def _ranges(count: int, parts: int) -> list[tuple[int, int]]:
    cuts = [count * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(cuts))


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, f"dynsparse-{process}")


def _room(floats: int) -> Tensor:
    """This thread's scratch memory, shared by all layers."""
    room = getattr(_rooms, "room", None)
    if room is None or len(room) < floats:
        room = _rooms.room = torch.zeros(floats)
    return room
