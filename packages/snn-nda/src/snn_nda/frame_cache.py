"""Recordings as frames, made once and kept in one memory-mapped file.

The file's name holds a hash of the options and of the recordings (names, sizes, times of change, spans), so that other
options or other files never meet it. Its SHA-256 lies beside it; a file that is cut or damaged is made anew.
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
from typing import Any, Literal

import numpy as np

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.files import TEMPORARY, atomic_file, disk_errors, write_atomically
from core_utils.jobs import map_jobs
from snn_nda.adapters import EventFrames
from snn_nda.folders import Recordings

_log = logging.getLogger(__name__)

SHARD = 100
"""Recordings that one job turns into frames, and that are lost when it is interrupted."""
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


@dataclass(frozen=True, eq=False)
class CachedFrames:
    """Recordings whose frames lie in a memory-mapped file; an item is (float32 [T, 2, H, W], label).

    Attributes:
        path: `.npy` file, [recordings, T, 2, H, W].
        labels: of all recordings, int64.
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

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        row = self.indices[index]
        return np.array(self._rows[row], np.float32), int(self.labels[row])

    def __getstate__(self) -> dict[str, Any]:
        """Without the map: pickling one would copy the file."""
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}


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
    target = cache / f"{name}-{_key(recordings, options)}.npy"
    if not _is_whole(target):
        with _locked(target):
            if not _is_whole(target):
                _make(target, recordings, options, workers=workers, cluster=cluster, progress=progress)
    return target


def _key(recordings: Recordings, options: FrameOptions) -> str:
    files = []
    for path in recordings.paths:
        stat = path.stat()
        files.append([path.parent.name, path.name, stat.st_size, stat.st_mtime_ns])
    how = {"sensor": recordings.sensor_size, "sort": recordings.sort, "spans": recordings.spans}
    facts = json.dumps({"format": FORMAT, "options": asdict(options), **how, "files": files})
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
    recordings: Recordings,
    options: FrameOptions,
    *,
    workers: int,
    cluster: str | None,
    progress: bool,
) -> None:
    shards, count = target.with_suffix(""), len(recordings)
    jobs = {
        f"recordings from {start}": (
            recordings.subset(range(start, min(start + SHARD, count))),
            options,
            shards / f"{start:07}.npy",
        )
        for start in range(0, count, SHARD)
    }
    done = {key for key, (part, _, shard) in jobs.items() if _is_shard(shard, len(part), options)}
    _log.info("making frames of %d recordings in %s; %d of %d jobs are done", count, target, len(done), len(jobs))
    results = map_jobs(_make_shard, jobs, workers=workers, cluster=cluster, done=done, progress=progress, threads=1)
    with contextlib.closing(results):
        for result in results:
            if result.error is not None:
                error = DataError if result.error.user else RuntimeError
                raise error(result.error.message if result.error.user else f"{result.key}: {result.error}")
    with atomic_file(target) as file:
        header = {"descr": options.dtype.str, "fortran_order": False, "shape": (count, *options.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for _, _, shard in jobs.values():
            file.write(np.load(shard, allow_pickle=False).data)
    write_atomically(_checksum(target), json.dumps({"sha256": _sha256(target), "options": asdict(options)}) + "\n")
    shutil.rmtree(shards)


def _make_shard(job: tuple[Recordings, FrameOptions, Path]) -> None:
    recordings, options, shard = job
    frames = EventFrames(dataset=recordings, **asdict(options))
    content = io.BytesIO()
    np.save(content, np.stack([_one(frames, index, recordings.paths[index], options) for index in range(len(frames))]))
    write_atomically(shard, content.getvalue())


def _one(frames: EventFrames, index: int, path: Path, options: FrameOptions) -> np.ndarray:
    try:
        counts, _ = frames[index]
    except UserError as error:
        named = "" if str(path) in error.message else f"{path}: "
        raise DataError(named + error.message, error.hint) from None
    if counts.max(initial=0) > np.iinfo(np.uint16).max:
        raise DataError(
            f"{path} has {counts.max():g} events in one pixel and step", "it is damaged, or take more steps"
        )
    return counts.astype(options.dtype)


def _is_shard(shard: Path, count: int, options: FrameOptions) -> bool:
    try:
        frames = np.load(shard, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return frames.shape == (count, *options.shape) and frames.dtype == options.dtype


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
