"""The data of a training: recordings in their published layout, or the embedded miniature.

    sets = event_data("n-caltech101", "Caltech101")
    train = Loader(sets.train, 256, seed=0)
    test = Loader(sets.test, 256, shuffle=False)

Nothing is ever selected on `test`; `validation` is held out from the training part for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.spiking.events import CachedFrames
from core_utils.training import Arrays
from snn_nda.adapters import Items
from snn_nda.folders import Recordings, published_parts
from snn_nda.frame_cache import FrameOptions, cached_frames
from snn_nda.miniature import CLASSES, SIZE, posed_miniature

CACHE = ".frames"
"""Folder of the frame caches, within that of the recordings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSets:
    """The parts of a data set; an item is (frames float32 [T, 2, H, W], label).

    Attributes:
        train: what is learned from.
        validation: held out from the training part; None if nothing was.
        test: the test part.
        num_classes: labels are 0 to num_classes - 1.
        size: height and width, pixels.
        label_safe_flip: a mirrored recording has the same label; None if unknown.
        label_map: what labels become when mirrored; others stay.
        split: names of the recordings of each part, for the run's folder.
    """

    train: Items
    validation: Items | None
    test: Items
    num_classes: int
    size: int
    label_safe_flip: bool | None
    label_map: Mapping[int, int] = field(default_factory=dict)
    split: Mapping[str, Sequence[str]] = field(default_factory=dict)


def event_data(
    name: str | None,
    folder: str | Path,
    options: FrameOptions | None = None,
    *,
    validation: float | int = 0.1,
    seed: int = 0,
    sort: bool = False,
    sensor_size: tuple[int, int] | None = None,
    label_safe_flip: bool | None = None,
    cache: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
) -> DataSets:
    """Recordings in a folder, with their published parts, or 9 to 1 in every class by the numbers in their names.

    Args:
        name: of the data set in `snn_nda.labels.FACTS`, which then says the sensor and whether mirroring keeps labels;
            None for any other.
        folder: where it lies, extracted.
        options: how events become frames.
        validation: share of every class's training part that is held out; 0 holds out nothing.
        seed: decides which.
        sort: accept recordings whose times decrease, by sorting their events.
        sensor_size: (width, height), pixels, of an unnamed data set.
        label_safe_flip: mirrored recordings of an unnamed data set keep their labels.
        cache: folder for the frames; by default `.frames` in `folder`.
        workers: processes that make the frames.
        cluster: a Dask scheduler's address instead.
        progress: show progress on stderr.

    Raises:
        UserError: a folder, recording or option that cannot be used; names it.
    """
    parts = recording_parts(name, folder, sort=sort, sensor_size=sensor_size, label_safe_flip=label_safe_flip)
    train, test = parts
    kept, held = _held_out(train, validation, np.random.default_rng(seed))
    files = prepared(parts, folder, options, cache=cache, workers=workers, cluster=cluster, progress=progress)
    members = {"train": (train, kept), "validation": (train, held), "test": (test, np.arange(len(test)))}
    return DataSets(
        train=CachedFrames(files[0], train.labels, kept),
        validation=CachedFrames(files[0], train.labels, held) if len(held) else None,
        test=CachedFrames(files[1], test.labels, members["test"][1]),
        num_classes=len(train.classes),
        size=(options or FrameOptions()).size,
        label_safe_flip=train.label_safe_flip,
        label_map=train.label_map,
        split={part: _names(recordings, indices, folder) for part, (recordings, indices) in members.items()},
    )


def recording_parts(
    name: str | None,
    folder: str | Path,
    *,
    sort: bool = False,
    sensor_size: tuple[int, int] | None = None,
    label_safe_flip: bool | None = None,
) -> tuple[Recordings, Recordings]:
    """The recordings of training and test part; arguments as in `event_data`."""
    train, test = published_parts(folder, name, sort=sort)
    if name is not None:
        return train, test
    facts: dict[str, Any] = {"sensor_size": sensor_size, "label_safe_flip": label_safe_flip}
    return replace(train, **facts), replace(test, **facts)


def prepared(
    parts: Sequence[Recordings],
    folder: str | Path,
    options: FrameOptions | None = None,
    *,
    cache: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """The frame caches of training and test part."""
    where = Path(folder, CACHE) if cache is None else cache
    more: dict[str, Any] = {"workers": workers, "cluster": cluster, "progress": progress}
    return [cached_frames(part, options or FrameOptions(), where, **more) for part in parts]


def miniature_data(
    seed: int, *, train_per_class: int = 20, test_per_class: int = 100, time_steps: int = 5, data: Path | None = None
) -> DataSets:
    """`posed_miniature` as the parts of a data set; it holds nothing out."""
    counts = {"train_per_class": train_per_class, "test_per_class": test_per_class}
    split = posed_miniature(seed, **counts, time_steps=time_steps, data=data)
    return DataSets(
        train=Arrays(split.x_train, split.y_train),
        validation=None,
        test=Arrays(split.x_test, split.y_test),
        num_classes=CLASSES,
        size=SIZE,
        label_safe_flip=True,
    )


def _held_out(recordings: Recordings, share: float | int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Parts recordings by lot, class by class, into what is kept and what is held out."""
    if not 0 <= share < 1:
        raise UserError(f"validation must lie in [0, 1), got {share}")
    held = np.zeros(len(recordings), bool)
    for label, name in enumerate(recordings.classes):
        members = np.flatnonzero(recordings.labels == label)
        count = round(share * len(members))
        if not len(members) - count:
            raise DataError(f"class {name} has no training recording left", f"it had {len(members)}; hold out fewer")
        held[rng.choice(members, count, replace=False)] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _names(recordings: Recordings, indices: np.ndarray, folder: str | Path) -> list[str]:
    names = [recordings.paths[index].relative_to(folder).as_posix() for index in indices]
    if recordings.spans is None:
        return names
    spans = [recordings.spans[index] for index in indices]
    return [f"{name}, {start} to {stop} us" for name, (start, stop) in zip(names, spans, strict=True)]
