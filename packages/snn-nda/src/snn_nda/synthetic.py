"""Recordings made here: real images in random poses before the simulated event camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from core_utils.data import Split, digits, fashion_mnist_small, idx_folder
from core_utils.spiking.events import EventCamera, random_pose, simulate_events, simulate_frames
from snn_nda.errors import EventsError


@dataclass(frozen=True, eq=False)
class SyntheticEventDataset:
    """Simulated recordings; an item is (counts float32 [T, 2, size, size], or events, label).

    Attributes:
        source: "fashion-mnist" (embedded), "digits" (scikit-learn's), or a folder of MNIST-like IDX files.
        n: number of recordings, the same of every class but for a remainder of less than one each.
        T: time bins.
        size: height and width of the sensor, pixels; images are scaled to it.
        seed: decides which images, their poses and their noise.
        part: "train" or "test" images.
        output: "frames" are counts, "events" are arrays of dtype `core_utils.spiking.events.EVENT`.
        pose: give every image a random pose; mirrors only what keeps its label.
        label_safe_flip: a mirrored recording has the same label; known for the two named sources.
    """

    source: str | Path = "fashion-mnist"
    n: int = 200
    T: int = 5
    size: int = 24
    seed: int = 0
    part: Literal["train", "test"] = "train"
    output: Literal["frames", "events"] = "frames"
    pose: bool = True
    label_safe_flip: bool | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    samples: list[np.ndarray] | np.ndarray = field(init=False, repr=False)
    labels: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.label_safe_flip is None:
            object.__setattr__(self, "label_safe_flip", {"fashion-mnist": True, "digits": False}.get(str(self.source)))
        images, labels = _images(self.source, self.part)
        rng = np.random.default_rng(self.seed)
        chosen = _balanced(labels, self.n, rng, f"{self.source} ({self.part})")
        mirror = 0.5 if self.pose and self.label_safe_flip else 0.0
        turn, shift = (20.0, 3.0) if self.pose else (0.0, 0.0)
        posed = random_pose(images[chosen], rng, size=self.size, mirror=mirror, rotation=turn, shift=shift)
        simulate = simulate_frames if self.output == "frames" else simulate_events
        object.__setattr__(self, "samples", simulate(posed, rng, EventCamera(time_steps=self.T)))
        object.__setattr__(self, "labels", labels[chosen])

    @property
    def sensor_size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.size, self.size

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.samples[index], int(self.labels[index])


def _images(source: str | Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 or floating in [0, 1], [n, height, width], and their labels."""
    split: Split
    if source == "fashion-mnist":
        split = fashion_mnist_small()
    elif source == "digits":
        split = digits()
    elif Path(source).is_dir():
        split = idx_folder(source)
    else:
        raise EventsError(f"source {str(source)!r} is no folder", "or one of fashion-mnist and digits")
    images, labels = (split.x_train, split.y_train) if part == "train" else (split.x_test, split.y_test)
    return (images.astype(np.float32) / 16 if source == "digits" else images), labels


def _balanced(labels: np.ndarray, n: int, rng: np.random.Generator, what: str) -> np.ndarray:
    """Indices of n images, as many of every class but for a remainder, in a random order."""
    classes, counts = np.unique(labels, return_counts=True)
    each = -(-n // len(classes))
    if n < 1 or each > counts.min():
        raise EventsError(f"n must lie between 1 and {len(classes) * counts.min()} for {what}, got {n}")
    members = [rng.choice(np.flatnonzero(labels == label), each, replace=False) for label in classes]
    return rng.permutation(np.stack(members, axis=1).ravel()[:n])
