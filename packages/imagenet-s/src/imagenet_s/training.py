"""Trains a classifier on one decoder and resizer, on a mix of many, or against their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from core_utils.runs import Run
from core_utils.training import History, Loader, cosine, fit
from imagenet_s.errors import DecodeError, ImagenetSError, ModelError, SampleError
from imagenet_s.grids import PAPER_DECODERS, PAPER_RESIZERS
from imagenet_s.mixing import ConsistencyLoss, MixTransform, WorstOf
from imagenet_s.pipelines import PAPER, Pipeline
from imagenet_s.samples import Samples

_RAISED = "imagenet_s.errors.SampleError: "

Method = Literal["mix", "worst", "consistency"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        method: "mix" takes one random view of each image and epoch; "worst" the worst of `views` by the loss;
            "consistency" one view, and a price for saying something else about a second one.
        decoders: to draw from; one decoder and one resizer train on one pipeline.
        resizers: to draw from.
        pipeline: everything else.
        crop: "rrc" trains on random pieces as the authors do, "eval" on what the pipeline makes.
        views: of each image, for "worst".
        lam: weight of the consistency.
        epochs: passes over the data.
        batch_size: images a step and process.
        lr: peak learning rate of SGD with Nesterov momentum, reached after `warmup` and left along a cosine.
        warmup: share of the steps.
        momentum: of SGD.
        weight_decay: of SGD.
        label_smoothing: of the cross entropy of "mix".
        seed: of order, views and crops.
    """

    method: Method = "mix"
    decoders: tuple[str, ...] = PAPER_DECODERS
    resizers: tuple[str, ...] = PAPER_RESIZERS
    pipeline: Pipeline = field(default_factory=lambda: PAPER)
    crop: Literal["rrc", "eval"] = "rrc"
    views: int = 3
    lam: float = 1.0
    epochs: int = 100
    batch_size: int = 64
    lr: float = 0.1
    warmup: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.views < 2 or not self.lr > 0 or not 0 <= self.warmup < 1:
            raise ImagenetSError("epochs must be at least 1, views at least 2, lr positive, and warmup in 0..1")
        if self.method not in ("mix", "worst", "consistency"):
            raise ImagenetSError(f"method must be mix, worst or consistency, got {self.method!r}")


def train(
    model: nn.Module,
    samples: Samples,
    config: TrainConfig,
    *,
    device: str = "cpu",
    workers: int = 0,
    run: Run | None = None,
    progress: bool = True,
) -> History:
    """Trains a model in place; an interrupted run goes on to the same weights.

    Args:
        model: gives logits.
        samples: labelled image files.
        config: how.
        device: "cpu", "cuda", ... or "auto".
        workers: processes that make views; their number changes nothing else.
        run: keeps state and log.
        progress: show progress on stderr.

    Raises:
        SampleError: an image has no label or cannot be read, or a label is none of the model's classes.
    """
    if None in samples.labels:
        raise SampleError(f"{samples.source}: {samples.names[samples.labels.index(None)]} has no label")
    transform = MixTransform(
        config.decoders, config.resizers, config.pipeline.size, config.crop, config.seed, config.pipeline
    )
    count = {"mix": 1, "worst": config.views, "consistency": 2}[config.method]
    loader = Loader(samples, config.batch_size, seed=config.seed, transform=_Draw(transform, count), workers=workers)
    rates: dict[str, Any] = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    try:
        return fit(
            model,
            _Loss(config, max(label or 0 for label in samples.labels)),
            loader,
            optimizer=torch.optim.SGD(model.parameters(), config.lr, nesterov=config.momentum > 0, **rates),
            schedule=_Schedule(config.warmup),
            epochs=config.epochs,
            run=run,
            device=device,
            progress=progress,
        )
    except SampleError as error:  # a loading process hands it on below its own traceback
        raise SampleError(str(error).strip().splitlines()[-1].removeprefix(_RAISED)) from None


@dataclass(frozen=True)
class _Draw:
    """The views of one sample and epoch, as the loader's generator decides."""

    transform: MixTransform
    count: int

    def __call__(self, sample: Any, rng: np.random.Generator) -> tuple[Tensor, int]:
        try:
            views = self.transform.views(sample.data, index=int(rng.integers(2**62)), epoch=0, count=self.count)
        except DecodeError as error:
            raise SampleError(f"{sample.name}: {error}", "take it out of the data set") from None
        return torch.from_numpy(views.astype(np.float32, copy=False)), int(sample.label)


@dataclass(frozen=True)
class _Loss:
    config: TrainConfig
    last_label: int

    def __call__(self, model: nn.Module, batch: Sequence[Tensor], _: int) -> Tensor:
        views, labels = batch
        if self.config.method == "worst":
            return WorstOf(self.config.views)(model, views, labels)
        first = model(views[:, 0])
        if first.ndim != 2 or first.shape[1] <= self.last_label:
            raise ModelError(f"the model gives {list(first.shape)} for a batch", f"labels go up to {self.last_label}")
        if self.config.method == "consistency":
            return ConsistencyLoss(self.config.lam)(first, model(views[:, 1]), labels)
        return nn.functional.cross_entropy(first, labels, label_smoothing=self.config.label_smoothing)


@dataclass(frozen=True)
class _Schedule:
    warmup: float

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return cosine((progress - self.warmup) / (1 - self.warmup))
