"""Recordings of CIFAR10-DVS as the frames that the paper trains on, kept by `core_utils.spiking.events.cache`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.spiking.events import (
    EventFolder,
    cache_frames,
    cache_key,
    events_to_frames,
    read_events,
    resize_frames,
)

SENSOR = (128, 128)
"""Width and height of CIFAR10-DVS, pixels."""
FORMAT = 1
"""Changes when the same options give other frames."""


@dataclass(frozen=True)
class FrameOptions:
    """How events become frames.

    Attributes:
        time_steps: T, slices of equal numbers of events.
        size: height and width of the frames, pixels.
        sort: put the events of a recording in order of time first; otherwise times that decrease are an error.

    Raises:
        UserError: a number below 1.
    """

    time_steps: int = 10
    size: int = 48
    sort: bool = False

    def __post_init__(self) -> None:
        for name in ("time_steps", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one recording's frames."""
        return (self.time_steps, 2, self.size, self.size)


def recording_frames(path: Path, options: FrameOptions) -> np.ndarray:
    """The frames of one recording as the paper prepares them.

    T slices of n // T events each, the last n mod T events dropped; counts divided by the largest of their frame;
    bilinear with antialiasing to the wanted size. The released code resizes through 8-bit images; this does not.

    Args:
        path: the recording.
        options: T and size.

    Returns:
        float32 in [0, 1], shape [T, 2, size, size]; axis 1 is darker, brighter.

    Raises:
        DataError: the recording cannot be read, has fewer than T events, or pixels outside 128 x 128; names the file.
    """
    events = read_events(path, sort=options.sort)
    try:
        counts = events_to_frames(events, options.time_steps, SENSOR, by="number", remainder="drop")
    except UserError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from None
    largest = counts.max(axis=(1, 2, 3), keepdims=True)
    return resize_frames(counts / np.maximum(largest, 1), options.size, "bilinear")


def cached_frames(
    recordings: EventFolder,
    options: FrameOptions,
    cache: Path,
    *,
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
) -> Path:
    """The file with the frames of all recordings; made where it is missing or damaged, see `cache_frames`.

    Args:
        recordings: what to prepare.
        options: how.
        cache: the folder of the file; made if missing.
        workers: processes on this machine.
        cluster: a Dask scheduler's address instead; its workers see the same folders.
        progress: show progress on stderr.

    Returns:
        A `.npy` file, float32, shape [n, T, 2, size, size], in the order of the recordings.

    Raises:
        DataError: a recording that cannot be used; names the file.
        FileError: the cache's folder is not writable, or the disk is full.
    """
    facts = {"format": FORMAT, "options": asdict(options)}
    return cache_frames(
        partial(recording_frames, options=options),
        recordings.paths,
        cache / f"frames-{options.time_steps}x{options.size}-{cache_key(recordings.paths, facts)}.npy",
        shape=options.shape,
        facts=facts,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )
