"""Calibration samples shared among the ranks of `torch.distributed`; one process alone is the group of size 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Who holds which samples: rank r those from offset r on, in the order of the ranks.

    Args:
        rank: this process.
        counts: samples that each rank tunes on.
    """

    rank: int
    counts: tuple[int, ...]

    @classmethod
    def gather(cls, samples: int) -> Ranks:
        """Tells all ranks how many samples each holds."""
        if not _together():
            return cls(0, (samples,))
        counts: list[int | None] = [None] * dist.get_world_size()
        dist.all_gather_object(counts, samples)
        return cls(dist.get_rank(), tuple(count or 0 for count in counts))

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.counts)

    @property
    def samples(self) -> int:
        """Samples of all ranks."""
        return sum(self.counts)

    @property
    def offset(self) -> int:
        """Number of this rank's first sample among all."""
        return sum(self.counts[: self.rank])

    def local(self, index: Int64[Tensor, " batch"]) -> tuple[Int64[Tensor, " rows"], Int64[Tensor, " rows"] | None]:
        """Of a batch drawn from all samples: this rank's samples, and their rows in the batch (None: all of them).

        A rank without any takes its first sample, in no row, so that all ranks go through the same steps.
        """
        if self.size == 1:
            return index, None
        rows = ((index >= self.offset) & (index < self.offset + self.counts[self.rank])).nonzero().flatten()
        return index[rows] - self.offset, rows


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of this tensor over all ranks; the tensor itself where there is one."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


def max_over_ranks(tensor: Tensor) -> Tensor:
    """The element-wise largest of this tensor over all ranks."""
    if _together():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def all_ranks_agree(holds: bool) -> bool:
    """Whether something holds on every rank."""
    return not bool(max_over_ranks(torch.tensor(int(not holds))))


def sum_gradients(tensors: Iterable[Tensor]) -> None:
    """Adds up the gradients of all ranks, in one message."""
    if not _together():
        return
    tensors = list(tensors)
    flat = torch.cat([torch.zeros_like(t).flatten() if t.grad is None else t.grad.flatten() for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.grad = part.view_as(tensor).clone()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
