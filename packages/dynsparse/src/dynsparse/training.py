"""Training a network to a sparsity: temperature, thresholds and learning rates in step, and the exact end."""

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
from core_utils.training import History, Loader, Stateful, cosine, evaluate_classifier, fit, world_size
from dynsparse.converting import unwrapped
from dynsparse.errors import check_sparsity
from dynsparse.layers import SDConvNd
from dynsparse.parameters import param_groups
from dynsparse.schedules import TemperatureSchedule
from dynsparse.sparsity import SparsityController
from dynsparse.sparsity_report import SparsityReport


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the miniature's.

    Attributes:
        epochs: passes over the training data.
        batch_size: images a step.
        optimizer: "sgd" with Nesterov's momentum 0.9, or "adamw".
        learning_rate: the highest.
        schedule: "one-cycle" rises for `warm_up` of the steps and falls to 0 along half a cosine; "cosine" only falls;
            "steps" falls by 10 after 30, 60 and 90 % of the steps.
        warm_up: fraction of the steps.
        weight_decay: of weights; biases, norms and thresholds do not decay.
        threshold_rate: learning rate of the thresholds.
        kernel_rates: "auto" gives kernels under SGD K times the learning rate (see `param_groups`), "same" does not.
        target_sparsity: fraction of zeros that masks end at, in [0, 1); networks without masks ignore it.
        sparsity_mode: as of `SparsityController`.
        ramp: fraction of the steps until the goal is the target.
        freeze_at: fraction of the steps after which masks are exact and frozen; 1 freezes them at the end.
        temperature: of the routers at the start.
        annealing: fraction of the steps until the temperature is 1.
        label_smoothing: in [0, 1).
        seed: decides data, initial weights and order, for whoever makes these.
        precision: "32-true", "bf16-mixed" or "16-mixed"; masks are made in float32.
    """

    epochs: int = 4
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.2
    schedule: Literal["one-cycle", "cosine", "steps"] = "one-cycle"
    warm_up: float = 0.15
    weight_decay: float = 1e-4
    threshold_rate: float = 0.1
    kernel_rates: Literal["auto", "same"] = "auto"
    target_sparsity: float = 0.75
    sparsity_mode: Literal["penalty", "global", "alpha", "quantile"] = "penalty"
    ramp: float = 0.5
    freeze_at: float = 0.6
    temperature: float = 30.0
    annealing: float = 0.25
    label_smoothing: float = 0.0
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "temperature"):
            if not getattr(self, name) >= 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "threshold_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("warm_up", "ramp", "freeze_at", "annealing", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        check_sparsity(self.target_sparsity)


@dataclass(frozen=True)
class Training:
    """What a training left beside the model.

    Attributes:
        history: the record of every epoch; `density` is that of all masks.
        sparsity: what the masks keep; None for a network without.
    """

    history: History
    sparsity: SparsityReport | None


def train(
    model: nn.Module,
    loader: Loader,
    config: TrainConfig,
    *,
    validation: Iterable[Any] | None = None,
    run: Run | None = None,
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
    strict: bool = False,
) -> Training:
    """Trains a network in place; its masks end at exactly the sparsity asked for. Goes on where `run` stopped.

    Args:
        model: from images [B, C, H, W] to logits [B, K]; any network, converted or not.
        loader: batches (images, labels) for training.
        config: optimiser, length and sparsity.
        validation: what the accuracy of every epoch is measured on. No epoch is selected by it: a better one from before
            the ramp's end would be that of a denser network.
        run: where state and log are kept.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.
        strict: refuse a sparsity that a layer cannot reach, instead of warning.

    Raises:
        UserError: a device that is not there.
        SparsityError: `strict`, and a layer cannot be as sparse.
        CheckFailed: the loss became NaN or infinite.
    """
    steps = config.epochs * loader.steps(world_size())
    # Of the bare model: a wrapper that `fit` makes shares its layers.
    layers = [layer for layer in unwrapped(model).modules() if isinstance(layer, SDConvNd)]
    learning = any(layer.threshold is not None for layer in layers)
    ramp_steps = round(config.ramp * steps)
    controller = (
        SparsityController(model, config.target_sparsity, config.sparsity_mode, ramp_steps=ramp_steps)
        if learning
        else None
    )
    cooling = TemperatureSchedule(t0=config.temperature, steps=round(config.annealing * steps))
    optimizer = make_optimizer(model, config)
    frozen_after = math.ceil(config.freeze_at * steps)

    def prepare(_: nn.Module, step: int) -> None:
        if layers:
            cooling.apply(model, step)
        if controller is not None:
            if step >= frozen_after:
                controller.finalize(optimizer, strict=strict)
            controller.step(step)

    def loss(network: nn.Module, batch: Any, _: int) -> Tensor:
        images, labels = batch
        main = functional.cross_entropy(network(images), labels, label_smoothing=config.label_smoothing)
        return main if controller is None else main + controller.loss()

    def measure(network: nn.Module) -> dict[str, float]:
        figures = {} if validation is None else {f"validation_{k}": v for k, v in evaluate(network, validation).items()}
        return figures if controller is None else {**figures, "density": controller.report().density}

    history = fit(
        model,
        loss,
        loader,
        optimizer=optimizer,
        schedule=_schedule(config),
        epochs=config.epochs,
        evaluate=measure,
        before_step=prepare,
        run=run,
        state={**(state or {}), **({} if controller is None else {"sparsity": controller})},
        device=device,
        precision=config.precision,
        unused_parameters=learning,  # thresholds leave the network when its masks are frozen
        progress=progress,
    )
    if layers:
        cooling.apply(model, steps)
    return Training(history, None if controller is None else controller.finalize(optimizer, strict=strict))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration, over the groups of `param_groups`."""
    scale: float | str = "auto" if config.kernel_rates == "auto" and config.optimizer == "sgd" else 1.0
    groups = param_groups(model, config.learning_rate, config.weight_decay, config.threshold_rate, scale)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)


def evaluate(model: nn.Module, loader: Iterable[Any]) -> dict[str, float]:
    """Accuracy and mean cross-entropy of a network.

    Args:
        model: from images [B, C, H, W] to logits [B, K]; put into evaluation mode for the call.
        loader: batches (images, labels).

    Returns:
        `accuracy`, a fraction of all images, and `loss`, nats an image, whatever the sizes of the batches.

    Raises:
        UserError: there is no batch.
    """
    return evaluate_classifier(model, loader)


def one_cycle(progress: float, warm_up: float) -> float:
    """Factor on the learning rate: from 1/25 to 1 along half a cosine for `warm_up`, then to 0 along another.

    Reference: Smith and Topin, arXiv:1708.07120, as torch's OneCycleLR has it.
    """
    if progress < warm_up:
        return 1 - 0.96 * cosine(progress / warm_up)
    return cosine((progress - warm_up) / (1 - warm_up)) if warm_up < 1 else 1.0


def _schedule(config: TrainConfig) -> Callable[[float], float]:
    if config.schedule == "cosine":
        return cosine
    if config.schedule == "steps":
        return lambda progress: 0.1 ** sum(progress >= each for each in (0.3, 0.6, 0.9))
    return lambda progress: one_cycle(progress, config.warm_up)
