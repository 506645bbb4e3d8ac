"""Training a found cell from scratch, and what it then gets right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.spiking.diagnostics import firing_rates, silent_or_saturated, synaptic_ops
from core_utils.training import History, Loader, Stateful, cosine, evaluate_classifier, fit
from snasnet.networks import Neurons, SNASNet

OPTIMIZERS = ("sgd", "adamw")
NOTE = "45 nm CMOS: 4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate; arithmetic only, no memory traffic"
SPIKES = "spikes per image: the sum over all LIF layers and time steps, averaged over images"


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's.

    Attributes:
        epochs: passes over the training data; or
        steps: optimiser steps, if given.
        batch_size: samples a step.
        optimizer: "sgd" with momentum 0.9, or "adamw".
        learning_rate: falls along half a cosine to `lowest` of itself.
        lowest: what remains of the learning rate at the end, as a share.
        weight_decay: of the optimiser.
        seed: decides initial weights and order, for whoever makes these.
        precision: "32-true", "bf16-mixed" or "16-mixed".

    Raises:
        UserError: a number that must be positive and is not, or an unknown optimiser.

    Reference: arXiv 2201.10355, released code: cosine over 300 epochs, batches of 64.
    """

    epochs: int = 300
    steps: int | None = None
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    lowest: float = 0.01
    weight_decay: float = 5e-4
    seed: int = 1234
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("steps", self.steps), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if not self.learning_rate > 0 or not 0 <= self.lowest <= 1 or not self.weight_decay >= 0:
            raise UserError("learning_rate must be positive, weight_decay not negative, lowest a share in [0, 1]")


def train(
    model: nn.Module,
    loaders: tuple[Loader, Loader | None],
    config: TrainConfig | None = None,
    *,
    run: Run | None = None,
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> History:
    """Trains a network in place with cross-entropy on the mean of its outputs over time.

    Args:
        model: from images [B, C, H, W], or frames [T, B, C, H, W], to class scores [B, K].
        loaders: for training, and for the accuracy that is logged every epoch; batches are (images [B, C, H, W] or
            frames [B, T, C, H, W], labels [B]).
        config: how.
        run: where state and log are kept; a second call goes on from there.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.

    Returns:
        The record of every epoch.

    Raises:
        UserError: a label that is no class of the network.
    """
    config = config or TrainConfig()
    rate, decay = config.learning_rate, config.weight_decay
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay, foreach=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, foreach=True)
    validation = loaders[1]
    return fit(
        model,
        lambda model, batch, _: _loss(model(time_first_if_frames(batch[0])), batch[1]),
        loaders[0],
        optimizer=optimizer,
        schedule=lambda progress: config.lowest + (1 - config.lowest) * cosine(progress),
        epochs=None if config.steps else config.epochs,
        steps=config.steps,
        evaluate=None if validation is None else lambda model: {"accuracy": accuracy(model, validation)},
        run=run,
        state=state,
        device=device,
        precision=config.precision,
        progress=progress,
    )


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    classes = scores.shape[-1]
    if int(labels.max()) >= classes or int(labels.min()) < 0:
        raise UserError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, the network has {classes} classes"
        )
    return functional.cross_entropy(scores, labels)


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Share of the samples whose highest class score is that of their label; in evaluation mode.

    Raises:
        UserError: no sample.
    """
    found = evaluate_classifier(model, batches, lambda images: model(time_first_if_frames(images)))
    return found["accuracy"]


def profile(model: SNASNet, batches: Iterable[Any]) -> dict[str, Any]:
    """Parameters, spikes, synaptic operations and theoretical energy of an inference, averaged over images.

    Args:
        model: trained, or not.
        batches: (images or frames, labels), as of `train`.

    Returns:
        `parameters`, `spikes_per_image`, `spikes` and `rates` by layer of neurons, `unhealthy` (dead or saturated
        layers), `layers` (accumulates and multiplies), `synaptic_operations`, `theoretical_energy_uj`, and `note`.
    """
    device = next(model.parameters()).device
    sequences = [_frames(model, time_first_if_frames(images.to(device))) for images, _ in batches]
    operations = synaptic_ops(model, sequences)
    spikes: dict[str, float] = {}
    rates: dict[str, float] = {}
    for frames in sequences:
        share = frames.shape[1] / operations.samples
        counted = _spikes(model, frames)
        for name, rate in firing_rates(model, frames).items():
            rates[name] = rates.get(name, 0.0) + share * rate
            spikes[name] = spikes.get(name, 0.0) + counted[name] / operations.samples
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "samples": operations.samples,
        "spikes_per_image": sum(spikes.values()),
        "spikes": spikes,
        "rates": rates,
        "unhealthy": silent_or_saturated(rates),
        "layers": [
            {"name": name, "accumulates": layer.accumulates, "multiplies": layer.multiplies}
            for name, layer in operations.layers.items()
        ],
        "synaptic_operations": operations.total.accumulates,
        "theoretical_energy_uj": 1e6 * operations.theoretical_energy(),
        "theoretical_energy_of_artificial_network_uj": 1e6 * operations.theoretical_energy_of_artificial_network(),
        "note": f"{SPIKES}; {NOTE}",
    }


def time_first_if_frames(x: Tensor) -> Tensor:
    """A loader's batch as networks see it: frames [B, T, ...] become [T, B, ...], images stay as they are."""
    return x.transpose(0, 1) if x.ndim == 5 else x


def _frames(model: SNASNet, x: Tensor) -> Tensor:
    """A still image as frames, so that it counts at every step."""
    return x if x.ndim == 5 else x.expand(model.T, *x.shape)


@torch.no_grad()
def _spikes(model: SNASNet, frames: Tensor) -> dict[str, float]:
    """Spikes of all samples by layer of neurons; evaluation mode."""
    counted: dict[str, float] = {}

    def count(name: str, spikes: Tensor) -> None:
        counted[name] = counted.get(name, 0.0) + spikes.sum(dtype=torch.float64).item()

    handles = [
        module.register_forward_hook(lambda _, __, spikes, name=name: count(name, spikes))
        for name, module in model.named_modules()
        if isinstance(module, Neurons)
    ]
    training = model.training
    try:
        model.eval()
        model(frames)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return counted
