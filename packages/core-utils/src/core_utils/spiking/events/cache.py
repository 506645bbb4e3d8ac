"""Recordings as frames, made once and kept in one memory-mapped file.

Whoever names the file puts a hash of the options and of the recordings into its name (`cache_key`), so that other
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from core_utils.data import DataError
from core_utils.files import TEMPORARY, atomic_file, disk_errors, write_atomically
from core_utils.jobs import map_jobs

Recording = TypeVar("Recording")

SHARD = 100
"""Recordings that one job turns into frames, and that are lost when it is interrupted."""

_log = logging.getLogger(__name__)


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


def cache_key(paths: Sequence[Path], facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with the recordings (names, sizes, times of change) and with the facts.

    Args:
        paths: the files of the recordings.
        facts: all else that decides the frames, as JSON has it.
    """
    files = []
    for path in paths:
        stat = path.stat()
        files.append([path.parent.name, path.name, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps({**facts, "files": files}).encode()).hexdigest()[:16]


def cache_frames(
    make: Callable[[Recording], np.ndarray],
    recordings: Sequence[Recording],
    target: Path,
    *,
    shape: tuple[int, ...],
    dtype: str | np.dtype = "<f4",
    facts: Mapping[str, Any],
    workers: int = 1,
    cluster: str | None = None,
    progress: bool = True,
) -> Path:
    """Makes the file with the frames of all recordings where it is missing or damaged.

    Recordings become frames in jobs of `SHARD` each; jobs that an interruption left finished are not repeated. Two
    processes that want the same file wait for each other.

    Args:
        make: a module-level function from a recording to its frames.
        recordings: what to prepare; they travel to the processes.
        target: the `.npy` file; its folder is made if missing.
        shape: of one recording's frames.
        dtype: of the file.
        facts: how they were made, for people; kept beside the file.
        workers: processes on this machine.
        cluster: a Dask scheduler's address instead; its workers see the same folders.
        progress: show progress on stderr.

    Returns:
        `target`, [n, *shape] in the order of the recordings.

    Raises:
        DataError: `make` refused a recording.
        FileError: the folder is not writable, or the disk is full.
    """
    if not _is_whole(target):
        with _locked(target):
            if not _is_whole(target):
                where = {"workers": workers, "cluster": cluster, "progress": progress}
                _make(target, make, recordings, shape, np.dtype(dtype), facts, where)
    return target


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
    make: Callable[[Recording], np.ndarray],
    recordings: Sequence[Recording],
    shape: tuple[int, ...],
    dtype: np.dtype,
    facts: Mapping[str, Any],
    where: dict[str, Any],
) -> None:
    shards, count = target.with_suffix(""), len(recordings)
    jobs = {
        f"recordings from {start}": (make, recordings[start : start + SHARD], shards / f"{start:07}.npy", dtype)
        for start in range(0, count, SHARD)
    }
    done = {key for key, (_, part, shard, _) in jobs.items() if _is_shard(shard, (len(part), *shape), dtype)}
    _log.info("making frames of %d recordings in %s; %d of %d jobs are done", count, target, len(done), len(jobs))
    with contextlib.closing(map_jobs(_make_shard, jobs, done=done, threads=1, **where)) as results:
        for result in results:
            if result.error is not None:
                error = DataError if result.error.user else RuntimeError
                raise error(result.error.message if result.error.user else f"{result.key}: {result.error}")
    with atomic_file(target) as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for _, _, shard, _ in jobs.values():
            file.write(np.load(shard, allow_pickle=False).data)
    write_atomically(_checksum(target), json.dumps({"sha256": _sha256(target), **facts}) + "\n")
    shutil.rmtree(shards)


def _make_shard(job: tuple[Callable[[Any], np.ndarray], Sequence[Any], Path, np.dtype]) -> None:
    make, recordings, shard, dtype = job
    content = io.BytesIO()
    np.save(content, np.stack([make(recording) for recording in recordings]).astype(dtype, copy=False))
    write_atomically(shard, content.getvalue())


def _is_shard(shard: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    try:
        frames = np.load(shard, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return frames.shape == shape and frames.dtype == dtype


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
