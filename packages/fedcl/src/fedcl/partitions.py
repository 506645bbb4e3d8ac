"""How the images of one task are dealt to the clients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fedcl.errors import ScenarioError


@runtime_checkable
class Partition(Protocol):
    """Deals indices to clients."""

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Disjoint and complete parts of `arange(len(labels))`, one a client, each in ascending order."""
        ...


@dataclass(frozen=True)
class IID:
    """Every client gets the same number of images of every class, as far as it divides."""

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Deals the shuffled members of each class in turn; whoever got one too many begins later in the next class."""
        _enough(len(labels), clients, 1)
        order = np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
        return [np.sort(order[client::clients]) for client in range(clients)]


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: of each class the clients get shares drawn from Dirichlet(alpha).

    Attributes:
        alpha: concentration, above 0; small is skewed.
        min_size: fewest images of a client; who has fewer gets them from those who have most.

    Raises:
        ScenarioError: a value outside its range.
    """

    alpha: float
    min_size: int = 1

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ScenarioError(f"alpha must be a finite number above 0, got {self.alpha}")
        if self.min_size < 0:
            raise ScenarioError(f"min_size must not be negative, got {self.min_size}")

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Deals by rounding the cumulated shares, so that no image is lost, then evens out what is too small."""
        _enough(len(labels), clients, self.min_size)
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, self.alpha))
            if not np.isfinite(shares).all() or abs(shares.sum() - 1) > 1e-6:
                shares = np.eye(clients)[rng.integers(clients)]  # an alpha so small that all gammas underflow
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        return _evened([np.concatenate(part) for part in parts], self.min_size)


def _evened(parts: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Moves single images from the largest part to those below the least size; ends because enough exist."""
    for client in range(len(parts)):
        while len(parts[client]) < least:
            largest = int(np.argmax([len(part) for part in parts]))
            parts[client] = np.append(parts[client], parts[largest][-1])
            parts[largest] = parts[largest][:-1]
    return [np.sort(part) for part in parts]


def _enough(count: int, clients: int, least: int) -> None:
    if least * clients > count:
        raise ScenarioError(f"{clients} clients with at least {least} images each need more than a task's {count}")
