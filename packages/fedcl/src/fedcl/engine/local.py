"""Clients one after the other in this process: memory of one model and one client, whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fedcl.client import Job, Reply, Trainer
from fedcl.tensors import Theta


class LocalEngine:
    """Trains each client in turn.

    Args:
        trainer: does it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def train(self, jobs: Sequence[Job], theta_of: Callable[[int], Theta]) -> Iterator[Reply]:
        """One reply a job, in the given order; a client whose training raises gives an error."""
        for job in jobs:
            try:
                yield self.trainer.train(job, theta_of(job.task))
            except (RuntimeError, ValueError) as error:  # one client's failure never ends the run
                yield Reply(job.client, job.task, job.round, None, error=f"{type(error).__name__}: {error}")
