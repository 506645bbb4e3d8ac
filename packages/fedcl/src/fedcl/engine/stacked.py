"""Clients stacked into one batched program: many small models train in the time of a few."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fedcl.client import Job, LocalTraining, Reply, Trainer, after_minus, batch_indices, decay_mask
from fedcl.engine.programs import program
from fedcl.errors import ConfigError
from fedcl.tensors import Layout, Theta


class StackedEngine:
    """Trains clients whose models and batches have equal shapes together, as of `fedcl.engine.programs`.

    Replies equal the local engine's up to rounding, except where a model draws random numbers (dropout).

    Args:
        trainer: whose data and models.
        max_stack: most clients at once; bounds memory.
    """

    def __init__(self, trainer: Trainer, max_stack: int = 128) -> None:
        if max_stack < 1:
            raise ConfigError(f"max_stack must be at least 1, got {max_stack}")
        self.trainer, self.max_stack = trainer, max_stack
        self._programs = {
            classes: _Stacked(model, trainer.layouts[classes], trainer.training)
            for classes, model in trainer.models.items()
        }

    def train(self, jobs: Sequence[Job], theta_of: Callable[[int], Theta]) -> Iterator[Reply]:
        """One reply a job, in the order of the stacks."""
        stacks: dict[tuple[int, int, int], list[Job]] = defaultdict(list)
        for job in jobs:
            images = len(self.trainer.images(job.client, job.task)[1])
            size = min(self.trainer.training.batch_size, images)
            stacks[self.trainer.scenario.classes(job.task), size, job.steps].append(job)
        for (classes, *_), members in stacks.items():
            for start in range(0, len(members), self.max_stack):
                yield from self._train(members[start : start + self.max_stack], classes, theta_of)

    def _train(self, jobs: list[Job], classes: int, theta_of: Callable[[int], Theta]) -> Iterator[Reply]:
        trainer = self.trainer
        before = [theta_of(job.task) for job in jobs]
        data = [trainer.images(job.client, job.task) for job in jobs]
        batches = [
            batch_indices(len(y), trainer.training.batch_size, job) for job, (_, y) in zip(jobs, data, strict=True)
        ]
        stack = Theta(*(torch.stack(list(vectors)) for vectors in zip(*before, strict=True)))
        losses = self._programs[classes].train(stack, data, torch.stack(batches).to(trainer.device))
        for index, (job, start) in enumerate(zip(jobs, before, strict=True)):
            after = Theta(stack.trained[index], stack.averaged[index], stack.counted[index])
            metrics = {"loss": float(losses[index])}
            if job.evaluate:
                metrics["accuracy"] = trainer.accuracy(job.task, after)
            yield Reply(job.client, job.task, job.round, after_minus(after, start), len(data[index][1]), metrics)


class _Stacked:
    """SGD on a stack; the arithmetic is that of a single client's."""

    def __init__(self, model: nn.Module, layout: Layout, training: LocalTraining) -> None:
        self.training = training
        self.program = program(model, layout, training.gamma_complexity)
        self.decays = decay_mask(model, layout, training.weight_decay)

    def train(self, stack: Theta, data: list[tuple[Tensor, Tensor]], batches: Tensor) -> Tensor:
        """Trains the stack in place; mean loss of each client, [K]."""
        weights, momentum = self.program.bind(stack), self.training.momentum
        velocity: list[Tensor] | None = None
        losses = []
        for step in range(batches.shape[1]):
            x = torch.stack([images[rows[step]] for (images, _), rows in zip(data, batches, strict=True)])
            y = torch.stack([labels[rows[step]] for (_, labels), rows in zip(data, batches, strict=True)])
            gradients, loss = self.program.gradients(x, y)
            with torch.no_grad():
                if self.decays is not None:
                    gradients = [g + d * w for g, d, w in zip(gradients, self.decays, weights, strict=True)]
                if momentum:
                    if velocity is not None:
                        torch._foreach_add_(gradients, velocity, alpha=momentum)
                    velocity = gradients
                torch._foreach_add_(weights, gradients, alpha=-self.training.lr)
            losses.append(loss)
        self.program.release(stack)
        return torch.stack(losses).mean(0)
