"""The compiled kernel: where it is, and a call of it over threads."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from dynsparse.runtime.pattern import SparseKernels
from dynsparse.runtime.plans import InstructionSet, Plan

Run = Callable[[Tensor, Tensor], Tensor]
"""(x [B, C_i, *space], pi [B, K]) to y [B, C_o, *out]."""

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


def prepared(kernels: SparseKernels, plan: Plan, weights: Float[Tensor, " n"] | None = None) -> Run:
    """A convolution by as many threads as torch has; what does not change from call to call is looked up once.

    Args:
        kernels: packed.
        plan: for the size of the inputs.
        weights: of the router that the plan has, so that attention is not looked at; or None.

    Returns:
        From x [B, C_i, *space], float32 on the CPU, padded by what the convolution itself does not pad, and attention
        [B, K] to y [B, C_o, *out].
    """
    kernel = extension()
    if kernel is None:
        raise RuntimeError("dynsparse was installed without its compiled kernel")
    fixed = kernels.values, kernels.bias, kernels.row_starts, plan.offsets
    rows, size, fields, room = kernels.shape[0], (kernels.shape[0], *plan.out), plan.fields, plan.room

    def run(x: Tensor, pi: Tensor) -> Tensor:
        x, pi = x.contiguous(), (pi.contiguous() if weights is None else weights)
        samples = len(x)
        output = x.new_empty((samples, *size))
        addresses = [tensor.data_ptr() for tensor in (x, pi, *fixed)]

        def part(some: tuple[int, int], of_rows: tuple[int, int]) -> None:
            kernel.convolve(fields, *addresses, _room(room).data_ptr(), output.data_ptr(), some, of_rows)

        threads = torch.get_num_threads()
        if threads == 1:
            part((0, samples), (0, rows))
        else:
            parts = _parts(samples, rows, threads)
            list(_pool(os.getpid(), len(parts)).map(part, *zip(*parts, strict=True)))
        return output

    return run


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
