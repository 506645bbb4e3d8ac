"""Batches whose order and augmentation derive from (seed, epoch, index) and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from core_utils.errors import UserError


@dataclass(frozen=True)
class Arrays:
    """Arrays of equal length as a data set; an item is the tuple of their rows.

    Attributes:
        columns: arrays or tensors, each [n, ...].
    """

    columns: tuple[Any, ...]

    def __init__(self, *columns: Any) -> None:
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise UserError(f"arrays of a data set must have one length, got {sorted(lengths)}")
        object.__setattr__(self, "columns", tuple(torch.as_tensor(column) for column in columns))

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(column[index] for column in self.columns)


@dataclass(frozen=True)
class Loader:
    """What to load, and how; `fit` asks it for the batches of an epoch.

    Attributes:
        dataset: anything with a length and items that PyTorch can stack.
        batch_size: items per process and step.
        seed: decides the order of every epoch, and the generator that `transform` gets.
        shuffle: a new order every epoch, or always that of the data set.
        drop_last: leave out an incomplete last batch.
        transform: `transform(item, rng)`, with `rng` seeded by (seed, epoch, index of the item).
        workers: loading processes; their number changes nothing but speed.
    """

    dataset: Any
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    transform: Callable[[Any, np.random.Generator], Any] | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if len(self.dataset) == 0:
            raise UserError("the data set is empty")
        if self.steps() == 0:
            raise UserError(f"batch_size {self.batch_size} exceeds the {len(self.dataset)} items of the data set")

    def __iter__(self) -> Iterator[Any]:
        """The batches of epoch 0, as evaluation wants them."""
        return iter(self.batches(0))

    def steps(self, world_size: int = 1) -> int:
        """Steps of one epoch with so many processes."""
        count, together = len(self.dataset), self.batch_size * world_size
        if self.drop_last:
            return count // together
        return math.ceil((count - count % world_size) / together)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the epoch's items, int64 [n]."""
        count = len(self.dataset)
        return np.random.default_rng([self.seed, epoch]).permutation(count) if self.shuffle else np.arange(count)

    def batches(self, epoch: int, *, start: int = 0, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """The epoch's batches from number `start` on, as one of `world_size` processes sees them.

        Together the processes see what one process with `world_size` times the batch sees; a remainder that cannot be
        shared evenly is left out.
        """
        order, together = self.order(epoch), self.batch_size * world_size
        chunks = []
        for step in range(start, self.steps(world_size)):
            chunk = order[step * together : (step + 1) * together]
            share = len(chunk) // world_size
            chunks.append(chunk[rank * share : (rank + 1) * share].tolist())
        return DataLoader(
            _Epoch(self.dataset, self.transform, self.seed, epoch),
            batch_sampler=chunks,
            num_workers=self.workers,
            generator=torch.Generator(),  # else making an iterator draws from the global generator
        )


@dataclass(frozen=True)
class _Epoch(Dataset[Any]):
    """One epoch's view of a data set: every item with the augmentation that belongs to it."""

    dataset: Any
    transform: Callable[[Any, np.random.Generator], Any] | None
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if self.transform is None:
            return item
        return self.transform(item, np.random.default_rng([self.seed, self.epoch, index]))
