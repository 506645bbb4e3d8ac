"""Pre-training without labels: SimSiam on two differently augmented views of each recording.

    L = -1/2 cos(p1, sg(z2)) - 1/2 cos(p2, sg(z1))      z = projector(features(x)), p = predictor(z)

sg stops the gradient; without it everything would collapse to one point.

Reference: Chen and He, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566), which arXiv 2203.06145
takes over for spiking networks; that part is not in its released code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.spiking.layout import time_first
from core_utils.training import History, Loader, Stateful, cosine, fit
from snn_nda.augment import Augmentation, Draw, indexed
from snn_nda.networks import feature_size, features
from snn_nda.training import Place

COLLAPSED = 0.1
"""A spread below this part of 1 / sqrt(d) is a collapse."""


class CollapseWarning(UserWarning):
    """All recordings have nearly the same projection."""


class SimSiam(nn.Module):
    """An encoder with a projector of three layers and a predictor of two.

    Args:
        encoder: from frames [T, B, C, H, W] to activity [T, B, ...], such as the `blocks` of a network.
        dim: d of the projections; 2048 in the original, 512 suffices for small data.
        pred_dim: width of the predictor's inner layer; a quarter of `dim` by default.
        channels: C of the frames.
        size: height and width of the frames, pixels.

    Raises:
        UserError: a dimension below 1.
    """

    def __init__(
        self, encoder: nn.Module, dim: int = 512, pred_dim: int | None = None, *, channels: int = 2, size: int = 48
    ) -> None:
        super().__init__()
        inner = max(dim // 4, 1) if pred_dim is None else pred_dim
        if min(dim, inner) < 1:
            raise UserError(f"dim and pred_dim must be at least 1, got {dim} and {inner}")
        self.encoder = encoder
        self.dim = dim
        wide = feature_size(encoder, channels, size)
        self.projector = nn.Sequential(
            *(nn.Linear(wide, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()),
            *(nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()),
            *(nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False)),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, inner, bias=False), nn.BatchNorm1d(inner), nn.ReLU(), nn.Linear(inner, dim)
        )

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d"]]:
        """Projections z and predictions p of one view.

        Raises:
            UserError: a batch of one in training, of which no variance can be taken.
        """
        if self.training and x_seq.shape[1] < 2:
            raise UserError("batch_size must be at least 2: one recording has no variance to normalise by")
        z = self.projector(features(self.encoder, x_seq))
        return z, self.predictor(z)


def simsiam_loss(
    p1: Float[Tensor, "B d"], p2: Float[Tensor, "B d"], z1: Float[Tensor, "B d"], z2: Float[Tensor, "B d"]
) -> Float[Tensor, ""]:
    """Half the negative cosine of each prediction and the other view's projection, which gets no gradient; -1 to 1."""
    first = functional.cosine_similarity(p1, z2.detach(), dim=-1).mean()
    second = functional.cosine_similarity(p2, z1.detach(), dim=-1).mean()
    return -0.5 * (first + second)


def spread(z: Float[Tensor, "B d"]) -> float:
    """Standard deviation of a channel of the normalised projections, averaged over channels.

    About 1 / sqrt(d) when projections point everywhere, 0 when all are one.
    """
    return float(functional.normalize(z.float(), dim=-1).std(0, unbiased=False).mean())


@dataclass(frozen=True)
class PretrainConfig:
    """How an encoder is pre-trained.

    Attributes:
        epochs: passes over the recordings.
        batch_size: recordings a step, at least 2; the last incomplete batch of an epoch is left out.
        base_rate: the learning rate is base_rate * batch_size / 256, falling to 0 along half a cosine.
        momentum: of stochastic gradient descent.
        weight_decay: of stochastic gradient descent.
        dim: d of the projections.
        pred_dim: width of the predictor's inner layer; None takes a quarter of `dim`.
        seed: decides initial weights, order and views.
        precision: "32-true", "bf16-mixed" or "16-mixed".
    """

    epochs: int = 100
    batch_size: int = 64
    base_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dim: int = 512
    pred_dim: int | None = None
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("dim", 1), ("pred_dim", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.base_rate > 0:
            raise UserError(f"base_rate must be positive, got {self.base_rate}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must lie in [0, 1), got {self.momentum}")
        for name in ("weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")


def pretrain(
    model: SimSiam,
    loader: Loader,
    config: PretrainConfig,
    *,
    augment: Augmentation,
    run: Run | None = None,
    stage: str = "pretrain",
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> History:
    """Pre-trains a SimSiam model in place, without labels; goes on where `run` stopped.

    Args:
        model: whose encoder is wanted.
        loader: batches (frames [B, T, C, H, W], labels [B]); the labels are not looked at.
        config: optimiser and length.
        augment: makes two views of each batch, by lots that follow from the loader's seed, the epoch and the recording.
        run: where state and log are kept.
        stage: name of this training within the run.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.

    Returns:
        The record of every epoch, with `spread` of the epoch's last batch and the `healthy_spread` 1 / sqrt(d).

    Raises:
        UserError: fewer than two recordings a step, a device that is not there.
        CheckFailed: the loss became NaN or infinite.

    Warns:
        CollapseWarning: an epoch's spread is below a tenth of the healthy one.
    """
    whole = Loader(
        loader.dataset, loader.batch_size, loader.seed, loader.shuffle, True, loader.transform, loader.workers
    )
    place, latest = Place(whole), [0.0]

    def loss(network: nn.Module, batch: Any, step: int) -> Tensor:
        (frames, labels), indices = batch
        (z1, p1), (z2, p2) = (
            network(time_first(augment(frames, labels, view)[0])) for view in two_views(place.draw(step, indices))
        )
        latest[0] = spread(z1.detach())
        return simsiam_loss(p1, p2, z1, z2)

    def monitor(_: nn.Module) -> dict[str, float]:
        healthy = model.dim**-0.5
        if latest[0] < COLLAPSED * healthy:
            message = f"the projections collapse: spread {latest[0]:.2g}, healthy is {healthy:.2g}"
            warnings.warn(message, CollapseWarning, stacklevel=2)
        return {"spread": latest[0], "healthy_spread": healthy}

    rate = config.base_rate * config.batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=config.momentum, weight_decay=config.weight_decay)
    return fit(
        model,
        loss,
        indexed(whole),
        optimizer=optimizer,
        schedule=cosine,
        epochs=config.epochs,
        evaluate=monitor,
        after_step=place,
        run=run,
        stage=stage,
        state=state,
        device=device,
        precision=config.precision,
        progress=progress,
    )


def two_views(draw: Draw) -> tuple[Draw, Draw]:
    """Two lots for each recording: no epoch's views are those of another."""
    return Draw(draw.seed, 2 * draw.epoch, draw.indices), Draw(draw.seed, 2 * draw.epoch + 1, draw.indices)
