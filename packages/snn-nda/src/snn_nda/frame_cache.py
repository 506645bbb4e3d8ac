"""Recordings as frames of counts, kept by `core_utils.spiking.events.cache`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.spiking.events import cache_frames, cache_key
from snn_nda.adapters import EventFrames
from snn_nda.folders import Recordings

FORMAT = 1
"""Changes when the same options give other frames."""


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """How events become frames.

    Attributes:
        time_steps: T.
        size: height and width of the frames, pixels.
        by: steps of equal "number" of events, or of equal "time".
        method: how frames are made smaller: "nearest" as in the paper, which loses most events, "sum" or "area".

    Raises:
        UserError: a number below 1.
    """

    time_steps: int = 10
    size: int = 48
    by: Literal["time", "number"] = "number"
    method: Literal["nearest", "area", "sum"] = "sum"

    def __post_init__(self) -> None:
        for name in ("time_steps", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one recording's frames."""
        return (self.time_steps, 2, self.size, self.size)

    @property
    def dtype(self) -> np.dtype:
        """How frames are kept: "nearest" leaves counts whole."""
        return np.dtype("<u2" if self.method == "nearest" else "<f4")


def cached_frames(
    recordings: Recordings,
    options: FrameOptions,
    cache: Path,
    *,
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
) -> Path:
    """The file with the frames of all recordings; made where it is missing or damaged.

    Recordings become frames in jobs of `SHARD` each; jobs that an interruption left finished are not repeated. Two
    processes that want the same file wait for each other.

    Args:
        recordings: what to prepare.
        options: how.
        cache: the folder of the file; made if missing.
        workers: processes on this machine.
        cluster: a Dask scheduler's address instead; its workers see the same folders.
        progress: show progress on stderr.

    Returns:
        A `.npy` file of `options.dtype`, shape [n, T, 2, size, size], in the order of the recordings.

    Raises:
        DataError: a recording that cannot be used; names the file.
        FileError: the cache's folder is not writable, or the disk is full.
    """
    name = f"frames-{options.time_steps}x{options.size}-{options.by}-{options.method}"
    how = {"sensor": recordings.sensor_size, "sort": recordings.sort, "spans": recordings.spans}
    facts = {"format": FORMAT, "options": asdict(options)}
    return cache_frames(
        partial(_frames, options=options),
        [recordings.subset([index]) for index in range(len(recordings))],
        cache / f"{name}-{cache_key(recordings.paths, {**facts, **how})}.npy",
        shape=options.shape,
        dtype=options.dtype,
        facts=facts,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )


def _frames(recording: Recordings, options: FrameOptions) -> np.ndarray:
    """The frames of the only recording."""
    path = recording.paths[0]
    try:
        counts, _ = EventFrames(dataset=recording, **asdict(options))[0]
    except UserError as error:
        named = "" if str(path) in error.message else f"{path}: "
        raise DataError(named + error.message, error.hint) from None
    if counts.max(initial=0) > np.iinfo(np.uint16).max:
        raise DataError(
            f"{path} has {counts.max():g} events in one pixel and step", "it is damaged, or take more steps"
        )
    return counts.astype(options.dtype)
