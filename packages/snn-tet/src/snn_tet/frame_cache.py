"""Recordings of CIFAR10-DVS as frames, made once and kept in one memory-mapped file.

The file's name holds a hash of the options and of the recordings (names, sizes, times of change), so other options or
other files never meet it. Its SHA-256 lies beside it; a file that is cut or damaged is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.files import TEMPORARY, atomic_file, disk_errors, write_atomically
from core_utils.jobs import map_jobs
from core_utils.spiking.events import EventFolder, events_to_frames, read_events, resize_frames
from snn_tet.images import Item

_log = logging.getLogger(__name__)

SENSOR = (128, 128)
"""Width and height of CIFAR10-DVS, pixels."""
SHARD = 100
"""Recordings that one job turns into frames, and that are lost when it is interrupted."""
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


@dataclass(frozen=True, eq=False)
class Frames:
    """Recordings whose frames lie in a memory-mapped file; each is read when it is asked for.

    Attributes:
        path: `.npy` file, float32 [recordings, T, 2, H, W].
        labels: of all recordings.
        indices: the recordings of this part.
    """

    path: Path
    labels: np.ndarray
    indices: np.ndarray

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        row = self.indices[index]
        return np.array(self._rows[row]), int(self.labels[row])

    def __getstate__(self) -> dict[str, Any]:
        """Without the map: pickling one would copy the file."""
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}


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
        A `.npy` file, float32, shape [n, T, 2, size, size], in the order of the recordings.

    Raises:
        DataError: a recording that cannot be used; names the file.
        FileError: the cache's folder is not writable, or the disk is full.
    """
    target = cache / f"frames-{options.time_steps}x{options.size}-{_key(recordings, options)}.npy"
    if not _is_whole(target):
        with _locked(target):
            if not _is_whole(target):
                _make(target, recordings, options, workers=workers, cluster=cluster, progress=progress)
    return target


def _key(recordings: EventFolder, options: FrameOptions) -> str:
    files = []
    for path in recordings.paths:
        stat = path.stat()
        files.append([path.parent.name, path.name, stat.st_size, stat.st_mtime_ns])
    facts = json.dumps({"format": FORMAT, "options": asdict(options), "files": files})
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _is_whole(target: Path) -> bool:
    """Whether the file is there and has the checksum that was written after it; what is damaged is named."""
    if not target.exists():
        return False
    try:
        expected = json.loads(_checksum(target).read_bytes())["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        expected = None
    if expected == _sha256(target):
        return True
    _log.warning("%s is cut or damaged; its frames are made anew", target)
    return False


def _make(
    target: Path,
    recordings: EventFolder,
    options: FrameOptions,
    *,
    workers: int,
    cluster: str | None,
    progress: bool,
) -> None:
    shards = target.with_suffix("")
    jobs = {
        f"recordings from {start}": (recordings.paths[start : start + SHARD], options, shards / f"{start:07}.npy")
        for start in range(0, len(recordings), SHARD)
    }
    done = {key for key, (paths, _, shard) in jobs.items() if _is_shard(shard, (len(paths), *options.shape))}
    _log.info(
        "making frames of %d recordings in %s; %d of %d jobs are done", len(recordings), target, len(done), len(jobs)
    )
    results = map_jobs(_make_shard, jobs, workers=workers, cluster=cluster, done=done, progress=progress, threads=1)
    with contextlib.closing(results):
        for result in results:
            if result.error is not None:
                error = DataError if result.error.user else RuntimeError
                raise error(result.error.message if result.error.user else f"{result.key}: {result.error}")
    with atomic_file(target) as file:
        shape = (len(recordings), *options.shape)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _, _, shard in jobs.values():
            file.write(np.load(shard, allow_pickle=False).data)
    write_atomically(_checksum(target), json.dumps({"sha256": _sha256(target), "options": asdict(options)}) + "\n")
    shutil.rmtree(shards)


def _make_shard(job: tuple[tuple[Path, ...], FrameOptions, Path]) -> None:
    paths, options, shard = job
    content = io.BytesIO()
    np.save(content, np.stack([recording_frames(path, options) for path in paths]).astype("<f4", copy=False))
    write_atomically(shard, content.getvalue())


def _is_shard(shard: Path, shape: tuple[int, ...]) -> bool:
    try:
        frames = np.load(shard, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return frames.shape == shape and frames.dtype == np.dtype("<f4")


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Holds the right to make the file, and removes what a killed process left unfinished."""
    with contextlib.ExitStack() as stack:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(target.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in [*target.parent.glob(f".{target.stem}.*{TEMPORARY}"), *target.with_suffix("").glob(".*")]:
                leftover.unlink()
        yield


def _checksum(target: Path) -> Path:
    return target.with_suffix(".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
