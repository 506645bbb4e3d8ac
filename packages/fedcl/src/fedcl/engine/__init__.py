"""Where clients train: one after the other, stacked into one batched program, or on Flower's nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from fedcl.client import Job, Reply
from fedcl.tensors import Theta


@runtime_checkable
class Engine(Protocol):
    """Runs a round's jobs."""

    def train(self, jobs: Sequence[Job], theta_of: Callable[[int], Theta]) -> Iterable[Reply]:
        """Replies as they come, in any order; a client that fails gives a reply with an error, or none.

        Args:
            jobs: the work, in order of clients.
            theta_of: a task's tensors on the server.
        """
        ...


__all__ = ["Engine"]
