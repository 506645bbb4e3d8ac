"""The paper's data sets in their published layout: CIFAR10-DVS, CIFAR-10 and -100, ImageNet.

Each function reads a folder and returns `DataSets`, whose parts go into a `core_utils.training.Loader`:

    sets = cifar10_dvs("CIFAR10DVS")
    train = Loader(sets.train, 128, seed=0, transform=sets.augment)
    test = Loader(sets.test, 128, shuffle=False)

Nothing is ever selected on `test`; `validation` is held out from the published training part for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from core_utils.errors import UserError
from core_utils.images import DataSets, by_lot, check_classes, cifar, hold_out, imagenet, relative_names
from core_utils.spiking.events import CachedFrames, event_folder
from snn_tet.augmentation import FlipAndRoll
from snn_tet.frame_cache import FrameOptions, cached_frames

__all__ = ["DataSets", "cifar", "cifar10_dvs", "imagenet", "prepare"]


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
    learned, tested = _first_nine_tenths(labels) if split == "index" else by_lot(labels, 0.1, rng, classes)
    check_classes(labels[learned], classes)
    kept, held = hold_out(labels, learned, validation, rng, classes)
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
        split={name: relative_names(recordings.paths, indices, folder) for name, indices in parts.items()},
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


def _first_nine_tenths(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        first[members[: len(members) * 9 // 10]] = True
    return np.flatnonzero(first), np.flatnonzero(~first)


def _cache_of(folder: str | Path) -> Path:
    return Path(folder, ".frames")
