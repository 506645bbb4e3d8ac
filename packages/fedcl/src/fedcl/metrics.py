"""What a federation that learns task after task is judged by.

Accuracies are a matrix [T, T]: row p is after phase p, column t is task t. `seen[p, t]` says whether any client had
trained task t by the end of phase p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seen_tasks(orders: np.ndarray) -> np.ndarray:
    """Which tasks any client has trained by the end of each phase: bool [T, T] from orders int [K, T]."""
    tasks = orders.shape[1]
    first = np.array([np.min(np.where(orders == task)[1]) for task in range(tasks)])
    return first[None, :] <= np.arange(tasks)[:, None]


def average_accuracy(accuracy: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """Mean accuracy over the tasks seen by each phase, [T]; over all tasks without `seen`."""
    counted = np.ones_like(accuracy, bool) if seen is None else seen
    return np.asarray(accuracy.mean(1, where=counted))


def forgetting(accuracy: np.ndarray, seen: np.ndarray) -> float:
    """Mean over tasks of the best accuracy before the last phase minus the last one; can be negative.

    A task that nobody had trained before the last phase does not count. NaN if no task does.

    Reference: Chaudhry et al., ECCV 2018, eq. 3.
    """
    before = np.where(seen[:-1], accuracy[:-1], -np.inf)
    counted = seen[:-1].any(0)
    return float((before.max(0)[counted] - accuracy[-1][counted]).mean()) if counted.any() else float("nan")


def backward_transfer(accuracy: np.ndarray, seen: np.ndarray) -> float:
    """Mean change from the first phase in which a task was seen to the last, over tasks seen before the last.

    Reference: Lopez-Paz and Ranzato, NeurIPS 2017, where each task is first seen in its own phase.
    """
    counted = np.flatnonzero(seen[:-1].any(0))
    first = seen.argmax(0)
    return float(np.mean([accuracy[-1, t] - accuracy[first[t], t] for t in counted])) if len(counted) else float("nan")


def forward_transfer(accuracy: np.ndarray, seen: np.ndarray, untrained: np.ndarray) -> float:
    """Mean lead over an untrained model in the phase before a task is first seen; over tasks not seen in phase 0.

    Args:
        accuracy: [T, T].
        seen: bool [T, T].
        untrained: accuracy of the initial model on each task, [T].
    """
    first = seen.argmax(0)
    later = np.flatnonzero(first > 0)
    return float(np.mean([accuracy[first[t] - 1, t] - untrained[t] for t in later])) if len(later) else float("nan")


def drift(deltas: Sequence[Tensor], weights: Sequence[float] | None = None) -> float:
    """How far updates lie from their mean: mean of ||delta_i - Delta||^2 over ||Delta||^2; 0 for equal updates.

    Args:
        deltas: updates, [P] each.
        weights: of the mean Delta; by default equal.
    """
    spread = Spread()
    for delta, weight in zip(deltas, weights or [1.0] * len(deltas), strict=True):
        spread.add(delta, weight)
    return spread.drift


class Spread:
    """Drift and mean pairwise cosine of updates that pass by one at a time: memory of three vectors, not of K."""

    def __init__(self) -> None:
        self.count, self.weight = 0, 0.0
        self._weighted: Any = None
        self._plain: Any = None
        self._units: Any = None
        self._squares = 0.0

    def add(self, delta: Tensor, weight: float = 1.0) -> None:
        """Takes one update, [P]; a weight of 0 counts for the drift but not for the mean."""
        square = float(delta.dot(delta))
        unit = 1 / square**0.5 if square > 0 else 0.0
        if self.count == 0:
            self._weighted, self._plain, self._units = weight * delta, delta.clone(), unit * delta
        else:
            self._weighted.add_(delta, alpha=weight)
            self._plain.add_(delta)
            self._units.add_(delta, alpha=unit)
        self.count, self.weight, self._squares = self.count + 1, self.weight + weight, self._squares + square

    @property
    def mean(self) -> Tensor:
        """The weighted mean, [P]; the weights must not all be 0."""
        mean: Tensor = self._weighted / self.weight
        return mean

    @property
    def drift(self) -> float:
        """As of `drift`; NaN where the mean is zero and the updates are not."""
        mean = self.mean.double()
        size = float(mean.dot(mean))
        cross = float(self._plain.double().dot(mean))
        above = max(self._squares / self.count - 2 * cross / self.count + size, 0.0)
        if self.count == 1 or above <= 16 * torch.finfo(self._plain.dtype).eps * self._squares / self.count:
            return 0.0
        return above / size if size > 0 else float("nan")

    @property
    def cosine(self) -> float:
        """Mean cosine over all pairs; NaN with fewer than two updates."""
        if self.count < 2:
            return float("nan")
        return (float(self._units.dot(self._units)) - self.count) / (self.count * (self.count - 1))
