"""The paper's data sets in their published layout: CIFAR10-DVS, CIFAR-10 and -100, ImageNet.

Each function reads a folder and returns `DataSets`, whose parts go into a `core_utils.training.Loader`:

    sets = cifar10_dvs("CIFAR10DVS")
    train = Loader(sets.train, 128, seed=0, transform=sets.augment)
    test = Loader(sets.test, 128, shuffle=False)

Nothing is ever selected on `test`; `validation` is held out from the published training part for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from core_utils.data import DataError, cifar_folder, image_folder
from core_utils.errors import UserError
from core_utils.spiking.events import CachedFrames, event_folder
from snn_tet.augmentation import CropAndFlip, FlipAndRoll, RandomResizedCrop
from snn_tet.frame_cache import FrameOptions, cached_frames
from snn_tet.images import (
    CIFAR10_NORMAL,
    CIFAR100_NORMAL,
    IMAGENET_NORMAL,
    CentralCrops,
    Item,
    NormalImages,
    WholeImages,
    normalised,
)


@runtime_checkable
class Items(Protocol):
    """A data set: a length, and items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class DataSets:
    """The parts of a data set; an item is (frames float32 [T, 2, H, W] or image float32 [C, H, W], label).

    Attributes:
        train: what is learned from.
        validation: held out from the training part; None if nothing was.
        test: the test part.
        num_classes: labels are 0 to num_classes - 1.
        channels: C, or 2 polarities.
        size: height and width, pixels.
        augment: `transform` of a `Loader` of `train`. Items of ImageNet's `train` get their shape only by it.
        split: what was decided here and is worth keeping with a run: the members of "validation", and where no test
            part is published those of "train" and "test", as file names or as numbers within the published part.
    """

    train: Items
    validation: Items | None
    test: Items
    num_classes: int
    channels: int
    size: int
    augment: Callable[[Item, np.random.Generator], Item]
    split: dict[str, list[Any]]


def cifar10_dvs(
    folder: str | Path,
    *,
    time_steps: int = 10,
    size: int = 48,
    split: Literal["index", "random"] = "index",
    validation: float = 0.1,
    seed: int = 0,
    sort: bool = False,
    cache: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
) -> DataSets:
    """CIFAR10-DVS: a folder a class, 1000 recordings each, `.aedat` or `.aedat4`; other class folders will do.

    Args:
        folder: where the class folders lie.
        time_steps: T, slices of equal numbers of events.
        size: height and width of the frames, pixels.
        split: "index" takes the first 90 % of every class, by the numbers in their names, for training and the rest
            for testing, as the paper does (900 and 100); "random" takes as many by lot. There is no official split.
        validation: share of every class's training part that is held out; 0 holds out nothing.
        seed: decides the lots.
        sort: accept recordings whose times decrease, by sorting their events.
        cache: folder for the frames; by default `.frames` in `folder`.
        workers: processes that make the frames.
        cluster: a Dask scheduler's address instead.
        progress: show progress on stderr.

    Returns:
        Frames of `frame_cache.recording_frames`, read from the cache as they are asked for.

    Raises:
        UserError: a folder, recording or option that cannot be used; names it.
    """
    if split not in ("index", "random"):
        raise UserError(f"split must be index or random, got {split!r}")
    recordings, rng = event_folder(folder), np.random.default_rng(seed)
    labels, classes = recordings.labels, recordings.classes
    learned, tested = _first_nine_tenths(labels) if split == "index" else _by_lot(labels, 0.1, rng, classes)
    _check_classes(labels[learned], classes)
    kept, held = _hold_out(labels, learned, validation, rng, classes)
    file = cached_frames(
        recordings,
        FrameOptions(time_steps, size, sort),
        _cache_of(folder) if cache is None else cache,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )
    parts = {"train": kept, "validation": held, "test": tested}
    return DataSets(
        train=CachedFrames(file, labels, kept),
        validation=CachedFrames(file, labels, held) if len(held) else None,
        test=CachedFrames(file, labels, tested),
        num_classes=len(classes),
        channels=2,
        size=size,
        augment=FlipAndRoll(),
        split={name: _names(recordings.paths, indices, folder) for name, indices in parts.items()},
    )


def prepare(
    folder: str | Path,
    *,
    time_steps: int = 10,
    size: int = 48,
    sort: bool = False,
    cache: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
) -> Path:
    """Makes the frames that `cifar10_dvs` reads, with the same arguments, and returns their file."""
    return cached_frames(
        event_folder(folder),
        FrameOptions(time_steps, size, sort),
        _cache_of(folder) if cache is None else cache,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )


def cifar(folder: str | Path, *, validation: float = 0.1, seed: int = 0) -> DataSets:
    """CIFAR-10 or CIFAR-100 as published, binary or pickled, normalised.

    Args:
        folder: where the batches lie.
        validation: share of every class's training part that is held out; 0 holds out nothing.
        seed: decides which.

    Raises:
        UserError: a folder or file that cannot be used, or a class without training images.
    """
    images = cifar_folder(folder)
    classes = range(max(images.y_train.max(), images.y_test.max()) + 1)
    _check_classes(images.y_train, classes)
    mean, deviation = CIFAR10_NORMAL if len(classes) <= 10 else CIFAR100_NORMAL
    everything = np.arange(len(images.y_train))
    kept, held = _hold_out(images.y_train, everything, validation, np.random.default_rng(seed), classes)

    def normal(pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> NormalImages:
        return NormalImages(pixels[indices], labels[indices], mean, deviation)

    black = normalised(np.zeros((1, 1, 3), np.uint8), mean, deviation)
    return DataSets(
        train=normal(images.x_train, images.y_train, kept),
        validation=normal(images.x_train, images.y_train, held) if len(held) else None,
        test=normal(images.x_test, images.y_test, np.arange(len(images.y_test))),
        num_classes=10 if len(classes) <= 10 else 100,
        channels=3,
        size=32,
        augment=CropAndFlip(tuple(black.ravel().tolist())),
        split={"validation": held.tolist()},
    )


def imagenet(folder: str | Path, *, size: int = 224, validation: float = 0.01, seed: int = 0) -> DataSets:
    """ImageNet, or any images in its layout: `train/<class>/<image>` and `val/<class>/<image>`.

    `val/` is the test part. Validation and test images have their shorter side scaled to 8/7 of `size` and are cropped
    around the centre (256 and 224); training images are uint8 [height, width, 3] until `augment` crops them.

    Args:
        folder: where `train` and `val` lie.
        size: height and width of the images that the network sees, pixels.
        validation: share of every class's training part that is held out; 0 holds out nothing.
        seed: decides which.

    Raises:
        UserError: a folder that cannot be used, or classes that differ between `train` and `val`.
    """
    learned, tested = (image_folder(Path(folder, part)) for part in ("train", "val"))
    if difference := sorted(set(learned.classes) ^ set(tested.classes)):
        part = "train" if difference[0] in tested.classes else "val"
        raise DataError(
            f"{Path(folder, part)} has no class folder {difference[0]}", "train and val share their classes"
        )
    everything = np.arange(len(learned))
    kept, held = _hold_out(learned.labels, everything, validation, np.random.default_rng(seed), learned.classes)
    return DataSets(
        train=WholeImages(learned, kept),
        validation=CentralCrops(learned, held, size) if len(held) else None,
        test=CentralCrops(tested, np.arange(len(tested)), size),
        num_classes=len(learned.classes),
        channels=3,
        size=size,
        augment=RandomResizedCrop(*IMAGENET_NORMAL, size),
        split={"validation": _names(learned.paths, held, folder)},
    )


def _first_nine_tenths(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        first[members[: len(members) * 9 // 10]] = True
    return np.flatnonzero(first), np.flatnonzero(~first)


def _hold_out(
    labels: np.ndarray, learned: np.ndarray, share: float, rng: np.random.Generator, classes: Sequence[object]
) -> tuple[np.ndarray, np.ndarray]:
    """Parts the training items by lot into what is kept and what is held out."""
    if not 0 <= share < 1:
        raise UserError(f"validation must lie in [0, 1), got {share}")
    if share == 0:
        return learned, learned[:0]
    kept, held = _by_lot(labels[learned], share, rng, classes)
    return learned[kept], learned[held]


def _by_lot(
    labels: np.ndarray, share: float, rng: np.random.Generator, classes: Sequence[object]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the others and of a share of every class, at least one of each."""
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(share * len(members)))
        if count == len(members):
            raise DataError(f"class {classes[label]} has {count} items, too few to hold out {share:.0%} of them")
        drawn[rng.choice(members, count, replace=False)] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def _check_classes(labels: np.ndarray, classes: Sequence[object]) -> None:
    missing = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(missing):
        raise DataError(f"class {classes[missing[0]]} has no training item")


def _cache_of(folder: str | Path) -> Path:
    return Path(folder, ".frames")


def _names(paths: Sequence[Path], indices: np.ndarray, folder: str | Path) -> list[str]:
    return [paths[index].relative_to(folder).as_posix() for index in indices]
