"""What a reconstruction costs: bytes of cached inputs and outputs, and time."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from qdrop.config import QDropConfig
from qdrop.passes import Trace

if TYPE_CHECKING:
    from qdrop.planning import PlannedUnit


def batch_size(inputs: Any) -> int:
    """Samples in the example inputs: a list has one each, tensors hold them along their first axis."""
    if isinstance(inputs, list):
        return max(len(inputs), 1)
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    tensors = [leaf for leaf in tree_iter(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    return max(len(tensors[0]), 1) if tensors else 1


def bytes_per_sample(traced: Trace, values: Sequence[int], batch: int) -> int:
    """Bytes per sample of those values that hold one part per sample."""
    total = 0
    for value in dict.fromkeys(values):
        found = traced.values[value]
        if found.shape and found.shape[0] % batch == 0 and found.origin not in ("parameter", "constant"):
            total += math.prod(found.shape) // batch * found.itemsize
    return total


def cache_bytes(units: Sequence[PlannedUnit], samples: int) -> int:
    """Quantised and floating-point inputs, and outputs; the model's own inputs are the same in both."""
    each = (u.input_bytes * (2 if u.frontier else 1) + u.output_bytes for u in units)
    return samples * max(each, default=0)


def seconds(units: Sequence[PlannedUnit], config: QDropConfig) -> float:
    """Forward and backward are three forwards."""
    if config.method == "nearest":
        return 0.0
    return sum(u.macs for u in units) * config.batch_size * 3.0 * config.iters / _macs_per_second()


@functools.cache
def _macs_per_second() -> float:
    """Rate of a matrix product on this processor, best of three."""
    n, best = 384, float("inf")
    one = torch.ones(n, n)
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            one @ one
            best = min(best, time.perf_counter() - start)
    return n**3 / max(best, 1e-6)
