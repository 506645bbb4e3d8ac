"""What one client does in one round, wherever it runs: some steps of SGD on its own images, from the server's tensors."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fedcl.errors import ConfigError
from fedcl.scenario import Scenario
from fedcl.tensors import Layout, Theta, views

ModelFn = Callable[[int], nn.Module]
"""From a number of classes to a network; its frozen parameters must not depend on that number."""

EVALUATED = 500
"""Test images of a batch."""


@dataclass(frozen=True)
class LocalTraining:
    """Settings of a client's training.

    Attributes:
        local_steps: SGD steps in a round.
        local_epochs: passes over the client's images instead.
        batch_size: images of a step; fewer where a client has fewer.
        lr: client learning rate.
        momentum: of SGD; begins anew each round.
        weight_decay: on all trained tensors but gates.
        gamma_complexity: weight of the expected complexity in a student's loss.

    Raises:
        ConfigError: a value outside its range.
    """

    local_steps: int = 10
    local_epochs: int | None = None
    batch_size: int = 32
    lr: float = 0.02
    momentum: float = 0.0
    weight_decay: float = 0.0
    gamma_complexity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("local_steps", "local_epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must lie in [0, 1), got {self.momentum}")
        for name in ("weight_decay", "gamma_complexity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    def steps(self, images: int, share: float = 1.0) -> int:
        """Steps of a client with so many images that gets through a share of its work; at least one."""
        epochs = self.local_epochs
        whole = self.local_steps if epochs is None else epochs * math.ceil(images / self.batch_size)
        return max(1, math.ceil(share * whole))


class Job(NamedTuple):
    """One client's work in one round.

    Attributes:
        client: index.
        task: what it learns now.
        round: counted from 0 over all phases.
        steps: of SGD.
        seed: of the federation; batches come from (seed, round, client).
        evaluate: test the client's own model right after training.
    """

    client: int
    task: int
    round: int
    steps: int
    seed: int = 0
    evaluate: bool = False


@dataclass(eq=False)
class Reply:
    """What a client sends back.

    Attributes:
        client: index.
        task: what it learned.
        round: that it belongs to.
        update: the difference that training made to `trained`; `averaged` and `counted` as they are after it.
        examples: images that it learned from.
        metrics: mean loss of its steps; accuracy on the task's test images if that was asked for.
        error: why there is no update.
    """

    client: int
    task: int
    round: int
    update: Theta | None
    examples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class Objective(nn.Module):
    """A model with its loss, so that both can be called as one function of tensors.

    Args:
        model: from images to logits; a student adds its complexity.
        gamma_complexity: weight of that.
    """

    def __init__(self, model: nn.Module, gamma_complexity: float) -> None:
        super().__init__()
        self.model, self.gamma = model, gamma_complexity

    def forward(self, x: Float[Tensor, "*K B *features"], y: Int[Tensor, "*K B"]) -> Float[Tensor, "*K"]:
        """The mean loss of a batch, of which a student gets what its stem makes of images; of a stack, each client's."""
        logits = self.model.tailored(x) if hasattr(self.model, "tailored") else self.model(x)  # type: ignore[operator]
        if y.ndim == 1:
            loss = functional.cross_entropy(logits, y)
        else:
            loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(-1)
        return loss + self.gamma * self.model.complexity() if self.gamma else loss  # type: ignore[operator]


class Trainer:
    """Trains any client of a scenario, one after the other, in one model.

    Args:
        scenario: whose clients.
        model_fn: makes the model of a number of classes.
        training: settings.
        device: where.
        seed: of the models' initial weights.
        cache_bytes: images kept as tensors between rounds.
    """

    def __init__(
        self,
        scenario: Scenario,
        model_fn: ModelFn,
        training: LocalTraining,
        *,
        device: str = "cpu",
        seed: int = 0,
        cache_bytes: int = 2**28,
    ) -> None:
        self.scenario, self.training, self.device = scenario, training, torch.device(device)
        self.models: dict[int, nn.Module] = {}
        for count in sorted({scenario.classes(task) for task in range(scenario.num_tasks)}):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.models[count] = model_fn(count).to(self.device)
        self.layouts = {count: Layout.of(model) for count, model in self.models.items()}
        self.initial = {count: self.layouts[count].read(model) for count, model in self.models.items()}
        self.dtype = next(iter(self.initial.values())).trained.dtype
        self._working = {count: _Working(model, self.layouts[count], training) for count, model in self.models.items()}
        self._cache: OrderedDict[tuple[Any, ...], tuple[Tensor, Tensor]] = OrderedDict()
        self._room = cache_bytes

    def layout(self, task: int) -> Layout:
        """Of a task's model."""
        return self.layouts[self.scenario.classes(task)]

    def model(self, task: int, theta: Theta) -> nn.Module:
        """The model of a task with the given tensors in it, in evaluation mode; the next call overwrites it."""
        model = self.models[self.scenario.classes(task)]
        self.layout(task).write(model, theta)
        return model.eval()

    def images(self, client: int, task: int) -> tuple[Tensor, Tensor]:
        """A client's images and labels of a task; of a student, what its frozen stem makes of the images."""
        return self._held(("train", client, task), lambda: self.scenario.client(client, task))

    def train(self, job: Job, theta: Theta) -> Reply:
        """One client's round: the same job and tensors give the same reply."""
        after, examples, metrics = self.fit(job, theta)
        return Reply(job.client, job.task, job.round, after_minus(after, theta), examples, metrics)

    def fit(self, job: Job, theta: Theta) -> tuple[Theta, int, dict[str, float]]:
        """The tensors after a client's round, how many images it has, and its metrics."""
        x, y = self.images(job.client, job.task)
        batches = batch_indices(len(y), self.training.batch_size, job)
        working = self._working[self.scenario.classes(job.task)]
        loss = working.train(theta, x, y, batches, job)
        after = working.read()
        metrics = {"loss": loss}
        if job.evaluate:
            metrics["accuracy"] = self.accuracy(job.task, after)
        return after, len(y), metrics

    def accuracy(self, task: int, theta: Theta) -> float:
        """Share of the task's test images that are classified right, the task being known."""
        model: Any = self.model(task, theta)
        x, y = self._held(("test", task), lambda: self.scenario.test(task))
        classify = getattr(model, "tailored", model)
        with torch.inference_mode():
            right = sum(
                int((classify(some).argmax(1) == labels).sum())
                for some, labels in zip(x.split(EVALUATED), y.split(EVALUATED), strict=True)
            )
        return right / len(y)

    def _held(self, key: tuple[Any, ...], make: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        subset = make()
        x, y = torch.from_numpy(subset.x).to(self.dtype), torch.from_numpy(subset.y).to(self.device)
        model: Any = self.models[self.scenario.classes(key[-1])]
        embed = getattr(model, "embed", lambda some: some)
        with torch.no_grad():
            tensors = torch.cat([embed(some.to(self.device)) for some in x.split(EVALUATED)]), y
        self._cache[key] = tensors
        self._room -= _bytes(tensors)
        while self._room < 0 and len(self._cache) > 1:
            self._room += _bytes(self._cache.popitem(last=False)[1])
        return tensors


class _Working:
    """A model whose trained parameters are views of one vector, so that tensors go in and out by one copy."""

    def __init__(self, model: nn.Module, layout: Layout, training: LocalTraining) -> None:
        self.layout, self.training = layout, training
        self.objective = Objective(model, training.gamma_complexity)
        named = dict(model.named_parameters())
        self.parameters = [named[entry.name] for entry in layout.trained]
        self.vector = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        for parameter, view in zip(self.parameters, views(self.vector, layout.trained).values(), strict=True):
            parameter.data = view
        buffers = dict(model.named_buffers())
        self.averaged = [buffers[entry.name] for entry in layout.averaged]
        self.counted = [buffers[entry.name] for entry in layout.counted]
        self.draws = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())
        self.decays = decay_mask(model, layout, training.weight_decay)

    def train(self, theta: Theta, x: Tensor, y: Tensor, batches: Tensor, job: Job) -> float:
        with torch.no_grad():
            self.vector.copy_(theta.trained)
            _spread(theta.averaged, self.averaged)
            _spread(theta.counted, self.counted)
        self.objective.train()
        if self.draws:
            torch.manual_seed(int(np.random.SeedSequence([job.seed, job.round, job.client]).generate_state(1)[0]))
        settings, losses = self.training, []
        velocity: list[Tensor] | None = None
        for rows in batches.to(x.device):
            loss = self.objective(x[rows], y[rows])
            gradients = list(torch.autograd.grad(loss, self.parameters))
            losses.append(loss.detach())
            with torch.no_grad():
                if self.decays is not None:
                    torch._foreach_addcmul_(gradients, self.decays, self.parameters)
                if settings.momentum:
                    if velocity is None:
                        velocity = [gradient.clone() for gradient in gradients]
                    else:
                        torch._foreach_mul_(velocity, settings.momentum)
                        torch._foreach_add_(velocity, gradients)
                    gradients = velocity
                torch._foreach_add_(self.parameters, gradients, alpha=-settings.lr)
        return float(torch.stack(losses).mean())

    def read(self) -> Theta:
        """A copy of the tensors as they are now."""

        def gathered(tensors: list[Tensor], like: torch.dtype) -> Tensor:
            return torch.cat([each.reshape(-1) for each in tensors]) if tensors else torch.empty(0, dtype=like)

        return Theta(self.vector.clone(), gathered(self.averaged, torch.float32), gathered(self.counted, torch.int64))


def after_minus(after: Theta, before: Theta) -> Theta:
    """An update: the difference of what is trained, the rest as it is after training."""
    return Theta(after.trained - before.trained, after.averaged, after.counted)


def batch_indices(images: int, batch_size: int, job: Job) -> Int[Tensor, "steps b"]:
    """Which images each step sees: shuffled passes one after the other, cut into batches of min(batch_size, images).

    No image is dropped at the end of a pass, and no batch is short of the others.
    """
    size = min(batch_size, images)
    rng = np.random.default_rng([job.seed, job.round, job.client])
    passes = -(-job.steps * size // images)
    order = np.concatenate([rng.permutation(images) for _ in range(passes)])
    return torch.from_numpy(order[: job.steps * size].reshape(job.steps, size))


def decay_mask(model: nn.Module, layout: Layout, weight_decay: float) -> list[Tensor] | None:
    """The decay of each trained tensor, 0 for gates; None without decay."""
    if not weight_decay:
        return None
    spared: tuple[str, ...] = tuple(f"{name}." for name in getattr(model, "no_decay", ()))
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
    return [
        torch.full((), 0.0 if entry.name.startswith(spared) else weight_decay, dtype=dtype).expand(entry.shape)
        for entry in layout.trained
    ]


def _spread(vector: Tensor, tensors: list[Tensor]) -> None:
    if tensors:
        for tensor, piece in zip(tensors, vector.split([each.numel() for each in tensors]), strict=True):
            tensor.copy_(piece.view_as(tensor))


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
