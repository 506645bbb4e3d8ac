"""Training a spiking network with TET or SDT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.training import History, Loader, Stateful, cosine, fit
from snn_tet.encoding import Encoding, sequence
from snn_tet.evaluation import accuracy_vs_steps
from snn_tet.losses import TETLoss, sdt_loss


class Loaders(NamedTuple):
    """Batches (frames [B, T, ...], labels [B]) for training, and for the accuracy that is logged every epoch."""

    train: Loader
    validation: Loader | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the miniature's.

    Attributes:
        loss: "tet" or "sdt".
        lam: lambda of TET, in [0, 1].
        phi: where TET's second term pulls the outputs; the neuron's threshold.
        time_steps: T.
        encoding: "frames" where the data has T frames, "direct" where still images are shown at every step.
        epochs: passes over the training data.
        batch_size: recordings a step.
        optimizer: "adam", or "sgd" with momentum 0.9.
        learning_rate: falls to 0 along half a cosine.
        weight_decay: of the optimiser.
        seed: decides data, initial weights and order, for whoever makes these.
        precision: "32-true", "bf16-mixed" or "16-mixed"; the membrane stays float32.
    """

    loss: Literal["tet", "sdt"] = "tet"
    lam: float = 0.05
    phi: float = 1.0
    time_steps: int = 5
    encoding: Encoding = "frames"
    epochs: int = 40
    batch_size: int = 50
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        for name in ("time_steps", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.lam <= 1:
            raise UserError(f"lam must lie in [0, 1], got {self.lam}")


@dataclass(frozen=True)
class Stage:
    """A part of time inheritance training.

    Attributes:
        time_steps: T of this stage.
        epochs: passes over the training data.
        learning_rate: of a new Adam, falling to 0 along half a cosine.
    """

    time_steps: int
    epochs: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.time_steps < 1 or self.epochs < 1 or not self.learning_rate > 0:
            raise UserError(f"a stage needs steps, epochs and a learning rate above 0, got {self}")


def time_inheritance(
    model: nn.Module,
    stages: Sequence[Stage],
    loaders: Callable[[int], Loaders],
    config: TrainConfig,
    *,
    run: Run | None = None,
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[History]:
    """Trains for few time steps first, then goes on for more with the weights that were found.

    No weight depends on T, so each stage takes over weights and running averages as they are; the optimiser starts anew.

    Args:
        model: trained in place.
        stages: one after the other; few steps for many epochs first.
        loaders: the data for a number of time steps.
        config: everything that a stage does not say.
        run: where state and log are kept; each stage is one of its own.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.

    Returns:
        The history of every stage.

    Raises:
        UserError: no stage.

    Reference: arXiv 2202.11946, section 3.4 (time inheritance training).
    """
    if not stages:
        raise UserError("time inheritance training needs at least one stage")
    histories = []
    for index, stage in enumerate(stages):
        settings = replace(config, time_steps=stage.time_steps, epochs=stage.epochs, learning_rate=stage.learning_rate)
        name = f"stage-{index}-{stage.time_steps}-steps"
        data = loaders(stage.time_steps)
        histories.append(
            train(model, data, settings, run=run, stage=name, state=state, device=device, progress=progress)
        )
    return histories


def train(
    model: nn.Module,
    loaders: Loaders,
    config: TrainConfig,
    *,
    run: Run | None = None,
    stage: str = "fit",
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> History:
    """Trains a spiking network in place; goes on where `run` stopped.

    Args:
        model: from frames [T, B, ...] to outputs [T, B, K].
        loaders: training data, and what the accuracy of every epoch is measured on. No epoch is selected by it: the
            model is that of the last epoch.
        config: loss, encoding, optimiser and length.
        run: where state and log are kept.
        stage: name of this training within the run.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.

    Returns:
        The record of every epoch.

    Raises:
        UserError: a device that is not there, frames of another number than `time_steps`.
        CheckFailed: the loss became NaN or infinite.

    Reference: arXiv 2202.11946, algorithm 1.
    """
    criterion = TETLoss(lam=config.lam, phi=config.phi) if config.loss == "tet" else sdt_loss
    rates: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), **rates)
    else:
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **rates)

    def loss(network: nn.Module, batch: Any, _: int) -> Tensor:
        frames, labels = batch
        if config.encoding == "frames" and frames.shape[1] != config.time_steps:
            raise UserError(f"time_steps is {config.time_steps}, the data has {frames.shape[1]} frames")
        return criterion(network(sequence(frames, config.encoding, config.time_steps)), labels)

    def evaluate(network: nn.Module) -> dict[str, float]:
        validation = loaders.validation or ()
        accuracy = accuracy_vs_steps(network, validation, config.time_steps, encoding=config.encoding)["prefix"]
        return {"validation_accuracy": accuracy[-1], "validation_accuracy_one_step": accuracy[0]}

    return fit(
        model,
        loss,
        loaders.train,
        optimizer=optimizer,
        schedule=cosine,
        epochs=config.epochs,
        evaluate=None if loaders.validation is None else evaluate,
        run=run,
        stage=stage,
        state=state,
        device=device,
        precision=config.precision,
        progress=progress,
    )
