"""Augmentation inside a training: which recording is moved how follows from (seed, epoch, index) and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from core_utils.training import Loader
from snn_nda.functional import cutmix, mixup
from snn_nda.nda import NDA

Frames: TypeAlias = Float[Tensor, "B T C H W"]
Labels: TypeAlias = Shaped[Tensor, "B ..."]


@dataclass(frozen=True)
class Draw:
    """Which lot belongs to each recording of a batch.

    Attributes:
        seed: of the loader.
        epoch: number of the epoch.
        indices: of the recordings within their data set, [B].
    """

    seed: int
    epoch: int
    indices: tuple[int, ...]

    def generators(self) -> list[np.random.Generator]:
        """A generator for each recording, the one that `Loader` gives to its `transform`."""
        return [np.random.default_rng([self.seed, self.epoch, index]) for index in self.indices]

    def batch_generator(self) -> torch.Generator:
        """A generator for what is drawn once for the batch."""
        number = np.random.default_rng([self.seed, self.epoch, *self.indices]).integers(2**63)
        return torch.Generator().manual_seed(int(number))


Augmentation = Callable[[Frames, Labels, Draw], tuple[Frames, Labels]]
"""Frames, labels and lots to augmented frames and labels, whole or as shares; the same lots give the same."""


@dataclass(frozen=True)
class Geometric:
    """Moves every recording of a batch by the operations that `nda` draws for it.

    Attributes:
        nda: whose policy is drawn from; its own generator is not used.
        label_map: what the label of a mirrored recording becomes, where it changes.
    """

    nda: NDA
    label_map: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, frames: Frames, labels: Labels, draw: Draw) -> tuple[Frames, Labels]:
        """One grid and one sampling for the batch."""
        size = (frames.shape[-2], frames.shape[-1])
        params = self.nda.params_at(draw.seed, draw.epoch, draw.indices, size)
        if self.label_map:
            pairs = zip(labels.tolist(), params, strict=True)
            mirrored = [self.label_map.get(label, label) if each.flipped else label for label, each in pairs]
            labels = torch.tensor(mirrored, dtype=labels.dtype, device=labels.device)
        return self.nda.apply(frames, params), labels


@dataclass(frozen=True)
class Mixed:
    """Mixes each recording of a batch and its label with another of the batch, after another augmentation.

    Attributes:
        how: "cutmix" pastes a box, "mixup" blends.
        num_classes: K.
        first: done before; None does nothing.
        alpha: of the Beta distribution that the share is drawn from.
    """

    how: Literal["cutmix", "mixup"]
    num_classes: int
    first: Augmentation | None = None
    alpha: float = 1.0

    def __call__(self, frames: Frames, labels: Labels, draw: Draw) -> tuple[Frames, Labels]:
        """Labels become shares of classes, [B, K]."""
        if self.first is not None:
            frames, labels = self.first(frames, labels, draw)
        mix = cutmix if self.how == "cutmix" else mixup
        return mix(frames, labels, self.alpha, draw.batch_generator(), self.num_classes)


@dataclass(frozen=True)
class Photometric:
    """What helps images and not events: a brightness for each recording, or noise added to every pixel.

    An event says that light changed, not how much there is: the first batch normalisation undoes most of a brightness,
    and noise makes activity where there was none.

    Attributes:
        brightness: largest part by which counts are made larger or smaller; uniform.
        noise: standard deviation of what is added; half of the recordings get this instead of a brightness.
    """

    brightness: float = 0.5
    noise: float = 0.1

    def __call__(self, frames: Frames, labels: Labels, draw: Draw) -> tuple[Frames, Labels]:
        """Counts may become fractions, and with noise negative."""
        changed = frames.clone()
        for row, rng in enumerate(draw.generators()):
            if rng.random() < 0.5:
                changed[row] *= 1 + rng.uniform(-self.brightness, self.brightness)
            else:
                noise = torch.from_numpy(rng.standard_normal(tuple(frames.shape[1:]), dtype=np.float32))
                changed[row] += self.noise * noise.to(frames)
        return changed, labels


def indexed(loader: Loader) -> Loader:
    """The loader, with its index behind every item."""
    return replace(loader, dataset=_Indexed(loader.dataset), transform=_first_parts(loader.transform))


@dataclass(frozen=True)
class _Indexed:
    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index], index


@dataclass(frozen=True)
class _FirstParts:
    """The user's own transform, which knows of no index."""

    transform: Callable[[Any, np.random.Generator], Any]

    def __call__(self, item: Any, rng: np.random.Generator) -> Any:
        return self.transform(item[0], rng), item[1]


def _first_parts(transform: Callable[[Any, np.random.Generator], Any] | None) -> _FirstParts | None:
    return None if transform is None else _FirstParts(transform)
