"""Training a spiking network on augmented frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.spiking.layout import time_first
from core_utils.spiking.networks import class_scores
from core_utils.training import History, Loader, Stateful, cosine, evaluate_classifier, fit
from snn_nda.augment import Augmentation, Draw, indexed


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the miniature's.

    Attributes:
        epochs: passes over the training data.
        batch_size: recordings a step.
        learning_rate: of Adam; falls to 0 along half a cosine. The paper takes 1e-3 * batch_size / 256.
        falls: the learning rate falls at every "step", or at every "epoch" as in the released code.
        weight_decay: of Adam.
        watch_last: measure the watched data after each of the last so many epochs; None measures every one.
        seed: decides data, initial weights, order and augmentation.
        precision: "32-true", "bf16-mixed" or "16-mixed"; the membrane stays float32.
    """

    epochs: int = 40
    batch_size: int = 50
    learning_rate: float = 2e-3
    falls: Literal["step", "epoch"] = "step"
    weight_decay: float = 1e-4
    watch_last: int | None = None
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.watch_last is not None and self.watch_last < 0:
            raise UserError(f"watch_last must not be negative, got {self.watch_last}")


def train(
    model: nn.Module,
    loader: Loader,
    config: TrainConfig,
    *,
    augment: Augmentation | None = None,
    watch: Mapping[str, Iterable[Any]] | None = None,
    run: Run | None = None,
    stage: str = "fit",
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> History:
    """Trains a network in place by cross-entropy of its mean output; goes on where `run` stopped.

    Args:
        model: from frames [T, B, C, H, W] to outputs [T, B, K].
        loader: batches (frames [B, T, C, H, W], labels [B]) for training.
        config: optimiser and length.
        augment: applied to every batch on the device that trains, by lots that follow from the loader's seed, the
            epoch and the recording, whatever the number of workers; None trains on the recordings as they are.
        watch: data whose accuracy and loss are logged after an epoch, by name, as `train_accuracy`, `train_loss`...
            No epoch is selected by it: the model is that of the last epoch.
        run: where state and log are kept.
        stage: name of this training within the run.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.

    Returns:
        The record of every epoch.

    Raises:
        UserError: a device that is not there.
        CheckFailed: the loss became NaN or infinite.

    Reference: arXiv 2203.06145, section 5, and its released code.
    """
    watched, place = watch or {}, Place(loader)

    def loss(network: nn.Module, batch: Any, step: int) -> Tensor:
        (frames, labels), indices = batch
        if augment is not None:
            frames, labels = augment(frames, labels, place.draw(step, indices))
        return functional.cross_entropy(class_scores(network(time_first(frames))), labels)

    def measure(network: nn.Module) -> dict[str, float]:
        if config.watch_last is not None and place.epoch < config.epochs - config.watch_last:
            return {}
        figures = {name: evaluate(network, batches) for name, batches in watched.items()}
        return {f"{name}_{key}": value for name, each in figures.items() for key, value in each.items()}

    return fit(
        model,
        loss,
        indexed(loader),
        optimizer=torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay),
        schedule=cosine if config.falls == "step" else by_epoch(config.epochs),
        epochs=config.epochs,
        evaluate=measure if watched else None,
        after_step=place,
        run=run,
        stage=stage,
        state=state,
        device=device,
        precision=config.precision,
        progress=progress,
    )


def evaluate(model: nn.Module, loader: Iterable[Any]) -> dict[str, float]:
    """Accuracy and mean cross-entropy of a network, without augmentation.

    Args:
        model: from frames [T, B, C, H, W] to outputs [T, B, K]; put into evaluation mode for the call.
        loader: batches (frames [B, T, C, H, W], labels [B]).

    Returns:
        `accuracy`, a fraction of all recordings, and `loss`, nats a recording, whatever the sizes of the batches.

    Raises:
        UserError: there is no batch.
    """
    return evaluate_classifier(model, loader, lambda frames: class_scores(model(time_first(frames))))


def by_epoch(epochs: int) -> Callable[[float], float]:
    """`cosine` that stays as it is within each of so many epochs."""
    return lambda progress: cosine(math.floor(progress * epochs + 1e-9) / epochs)


class Place:
    """Where a training is, for what depends on the epoch.

    Args:
        loader: of the training.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.epoch = 0

    def __call__(self, _: nn.Module, step: int) -> None:
        """Takes note of a step that was done."""
        self.epoch = step // self._per_epoch()

    def draw(self, step: int, indices: Tensor) -> Draw:
        """The lots of a batch."""
        return Draw(self._loader.seed, step // self._per_epoch(), tuple(indices.tolist()))

    def _per_epoch(self) -> int:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return self._loader.steps(torch.distributed.get_world_size() if together else 1)
