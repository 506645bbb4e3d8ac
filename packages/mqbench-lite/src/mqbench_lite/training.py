"""Quantisation-aware training with the settings that are the same for all algorithms and libraries.

Reference: MQBench, arXiv:2111.03759, section 3 and the released configurations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- its name everywhere
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, default_collate

from core_utils.runs import Run
from core_utils.training import History, Loader, Stateful, cosine, fit, resolve_device
from mqbench_lite.calibration import quantizers_of, reestimate_batch_norm
from mqbench_lite.errors import NotCalibratedError, TrainingError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """SGD with Nesterov's momentum, a warm-up and half a cosine to 0.

    Attributes:
        lr: learning rate at the end of the warm-up.
        weight_decay: of weights and of PACT's ends; biases, normalisation and step sizes have none.
        momentum: of SGD.
        label_smoothing: of the cross-entropy.
        warmup_lr: learning rate at the first step.
        warmup_steps: linear from `warmup_lr` to `lr`; None: one step in a hundred, as the published settings have it.
        batch_size: per process, for whoever makes the loader.
        steps: of the published training.
    """

    lr: float = 4e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    label_smoothing: float = 0.1
    warmup_lr: float = 1e-4
    warmup_steps: int | None = None
    batch_size: int = 64
    steps: int = 250_000

    def __post_init__(self) -> None:
        for name in ("lr", "warmup_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1 or not 0 <= self.label_smoothing < 1 or not self.weight_decay >= 0:
            raise TrainingError(f"momentum and label smoothing lie in [0, 1), weight decay is not negative, got {self}")

    def schedule(self, steps: int) -> Callable[[float], float]:
        """The factor on `lr` from the fraction of so many steps that is done.

        Raises:
            TrainingError: nothing is left after the warm-up.
        """
        warmup = steps // 100 if self.warmup_steps is None else self.warmup_steps
        if warmup >= steps:
            raise TrainingError(f"{warmup} steps of warm-up leave none of {steps}", "set warmup_steps")
        start = self.warmup_lr / self.lr

        def factor(done: float) -> float:
            step = done * steps
            if step < warmup:
                return start + (1 - start) * step / warmup
            return cosine((step - warmup) / (steps - warmup))

        return factor


_LIGHT = TrainSettings(lr=0.01, weight_decay=1e-5, warmup_steps=2_500, batch_size=32)
PRESETS: Mapping[str, TrainSettings] = MappingProxyType(
    {
        "resnet18": TrainSettings(warmup_steps=2_500),
        "resnet50": TrainSettings(warmup_steps=5_000, batch_size=16, steps=500_000),
        "resnet50-tensorrt": TrainSettings(warmup_steps=5_000, steps=500_000),
        "regnet_x_600mf": TrainSettings(warmup_steps=2_500, batch_size=32),
        "mobilenet_v2": _LIGHT,
        "efficientnet_lite0": _LIGHT,
    }
)
"""The published settings by network."""


def train(
    qm: nn.Module,
    loader: Loader | DataLoader[Any],
    epochs: int | None = None,
    lr: float | None = None,
    *,
    steps: int | None = None,
    settings: TrainSettings | None = None,
    loss: Callable[[nn.Module, Any, int], Tensor] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    bn_batches: int = 8,
    run: Run | None = None,
    stage: str = "qat",
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    precision: str = "32-true",
    progress: bool = True,
) -> History:
    """Trains a calibrated model in place; goes on where `run` stopped, on a CPU to the same bits.

    Args:
        qm: calibrated.
        loader: batches (images, labels); a plain `DataLoader` is read in an order that the epoch decides.
        epochs: passes over the data; 1 where neither this nor `steps` is given.
        lr: learning rate at the end of the warm-up, instead of that of `settings`.
        steps: instead of `epochs`.
        settings: of the optimiser and the schedule.
        loss: `loss(model, batch, step)` instead of the smoothed cross-entropy.
        evaluate: figures to log after every epoch. No epoch is selected by them: the model is that of the last.
        bn_batches: batches from which the statistics of batch normalisation are estimated anew first; 0 leaves them.
        run: where state and log are kept.
        stage: name of this training within the run.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        precision: Fabric's.
        progress: show progress on stderr.

    Returns:
        The record of every epoch.

    Raises:
        NotCalibratedError: a quantiser has no range, or still observes.
        TrainingError: labels that do not fit the outputs, a loader that cannot be read again in the same order.
        CheckFailed: the loss became NaN or infinite.
        KeyboardInterrupt: a signal arrived; the step under way was finished and saved.
    """
    settings = settings or TrainSettings()
    settings = settings if lr is None else replace(settings, lr=lr)
    _check_ready(qm)
    loader = _repeatable(loader)
    if epochs is None and steps is None:
        epochs = 1
    per_epoch = loader.steps(_world_size())
    total = steps if steps is not None else (epochs or 0) * per_epoch
    if total < 1:
        raise TrainingError(f"training needs at least one step, got epochs={epochs}, steps={steps}")
    schedule = settings.schedule(total)
    qm.to(resolve_device(device))
    if bn_batches and (run is None or run.load_state(stage) is None):
        reestimate_batch_norm(qm, loader, bn_batches)

    def smoothed(model: nn.Module, batch: Any, _: int) -> Tensor:
        images, labels = _images_and_labels(batch)
        logits = model(images)
        _check_labels(logits, labels)
        return F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)

    return fit(
        qm,
        loss or smoothed,
        loader,
        optimizer=optimizer_of(qm, settings),
        schedule=schedule,
        epochs=epochs,
        steps=steps,
        evaluate=evaluate,
        run=run,
        stage=stage,
        state=state,
        device=device,
        precision=precision,
        progress=progress,
    )


def optimizer_of(qm: nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    """SGD in two groups: weights and PACT's ends decay; biases, normalisation and step sizes do not."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in qm.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() > 1 or name.rpartition(".")[2] in ("alpha", "low_alpha")
            (decayed if decays else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    if not filled:
        raise TrainingError("the model has nothing to train", "a frozen model cannot be trained")
    return torch.optim.SGD(filled, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def _check_ready(qm: nn.Module) -> None:
    for name, quantizer in quantizers_of(qm):
        if quantizer.state in ("idle", "observing"):
            raise NotCalibratedError(f"{quantizer.label or name} is {quantizer.state}", "calibrate before training")


def _repeatable(loader: Any) -> Loader:
    """A loader whose order an epoch decides, so that a resumed training sees the same batches."""
    if isinstance(loader, Loader):
        return loader
    plain = (
        isinstance(loader, DataLoader)
        and isinstance(loader.sampler, RandomSampler | SequentialSampler)
        and loader.batch_size is not None
        and loader.collate_fn is default_collate
    )
    if not plain:
        raise TrainingError("the loader's order cannot be repeated", "give a core_utils.training.Loader")
    shuffle = isinstance(loader.sampler, RandomSampler)
    settings = {"shuffle": shuffle, "drop_last": loader.drop_last, "workers": loader.num_workers}
    return Loader(loader.dataset, loader.batch_size, **settings)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _images_and_labels(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise TrainingError("a batch must be images and labels", "give a loss of your own for other data")
    return batch[0], batch[1]


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    """Refuses what the cross-entropy would read as something else."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise TrainingError(f"outputs must be [batch, classes >= 2], got {list(logits.shape)}")
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise TrainingError(f"labels must be {logits.shape[0]} class numbers, got {labels.dtype} {list(labels.shape)}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise TrainingError(
            f"labels must lie in [0, {logits.shape[1]}), got {int(labels.min())} to {int(labels.max())}"
        )
