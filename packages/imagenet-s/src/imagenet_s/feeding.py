"""The input side of an evaluation: the views of some images at a time, made ahead of the model and never too far."""

from __future__ import annotations

import contextlib
import itertools
import queue
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from core_utils.jobs import map_jobs
from imagenet_s.decoding import Decoder, decoder
from imagenet_s.errors import DecodeError, ImagenetSError
from imagenet_s.grids import Grid
from imagenet_s.headers import read_header
from imagenet_s.pipelines import Pipeline
from imagenet_s.resizing import Resizer, resizer
from imagenet_s.samples import Samples
from imagenet_s.shards import BadImage, get_ready, refuse_other_versions, versions

CHUNK = 16
"""Images a chunk: what a killed evaluation loses, and the unit of memory (53 MB of distinct views in the paper's grid)."""
_AHEAD = 2  # chunks that wait for the model, for each worker
_WINDOW = 8  # chunks that a cluster has in flight
_LARGEST = 100_000_000  # bytes of a chunk's views, somewhat more than the paper's grid makes


@dataclass(frozen=True)
class ChunkJob:
    """Which images' views to make.

    Attributes:
        number: of the chunk.
        first: index of its first sample.
        samples: the chunk's own.
        grid: the views.
        extra: more pipelines, one more view each.
        versions: of the libraries that must make them; empty in this process.
        entries: decoders and resizers that a fresh process lacks because the user registered them.
    """

    number: int
    first: int
    samples: Samples
    grid: Grid
    extra: tuple[Pipeline, ...]
    versions: dict[str, str]
    entries: tuple[Decoder | Resizer, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Views of some images, each distinct one once.

    Attributes:
        number: of the chunk.
        pixels: the distinct views, image by image.
        index: which of an image's distinct views each combination has, and each extra pipeline after them; those with
            one number saw one picture.
        first: where each image's views begin in `pixels`.
        kept: index of each image in the samples.
        errors: images left out.
        flags: (name, what) of the kept images that are not plain: CMYK, 16-bit, truncated, ...
    """

    number: int
    pixels: UInt8[np.ndarray, "views S S 3"]
    index: Int64[np.ndarray, "images combos"]
    first: Int64[np.ndarray, " images"]
    kept: Int64[np.ndarray, " images"]
    errors: tuple[BadImage, ...]
    flags: tuple[tuple[str, str], ...] = ()


def chunks(
    samples: Samples,
    grid: Grid,
    extra: tuple[Pipeline, ...] = (),
    *,
    workers: int = 1,
    cluster: str | None = None,
    done: frozenset[int] = frozenset(),
) -> Generator[Chunk, None, None]:
    """Makes the views of all samples but those of the chunks in `done`.

    Args:
        samples: image files.
        grid: the views.
        extra: more pipelines, one more view each.
        workers: 1 works ahead in a thread of this process, more in processes of their own.
        cluster: a Dask scheduler that makes them instead.
        done: numbers of chunks that are not needed.

    Yields:
        Chunks in order. A file that cannot be read, or that takes its process along, is among a chunk's errors; in
        this process (`workers=1`) the latter ends the run, which its cache folder resumes.

    Raises:
        ImagenetSError: another process has other versions of the libraries.
    """
    away = cluster is not None or workers > 1
    facts = (versions(grid), _registered(grid)) if away else ({}, ())
    jobs = (
        ChunkJob(number, first, samples[first : first + CHUNK], grid, extra, *facts)
        for number, first in enumerate(range(0, len(samples), CHUNK))
        if number not in done
    )
    if not away:
        return _in_a_thread(jobs)
    return _in_processes(jobs, workers) if cluster is None else _on_a_cluster(jobs, cluster)


def make_chunk(job: ChunkJob, file: Path | None = None) -> Chunk:
    """The views of one chunk's images; into a .npy file when one is named, from which they must be read."""
    if job.versions:
        get_ready(job.grid, job.entries)
        refuse_other_versions(f"chunk {job.number}", job.versions, versions(job.grid))
    pixels: list[np.ndarray] = []
    index, first, kept, errors = [], [], [], []
    flags: list[tuple[str, str]] = []
    for position in range(len(job.samples)):
        at = job.first + position
        try:
            data = job.samples[position].data
            distinct, row = _distinct_views(job.grid, job.extra, data)
        except Exception as error:  # one bad file never costs the run; too many are refused where they are counted
            errors.append(BadImage(at, job.samples.names[position], type(error).__name__, str(error)))
            continue
        first.append(len(pixels))
        pixels += distinct
        flags += [(job.samples.names[position], flag) for flag in _flags(data)]
        index.append(row)
        kept.append(at)
    size, combos = job.grid.pipeline.size, len(job.grid) + len(job.extra)
    stacked = np.empty((0, size, size, 3), np.uint8)
    if file is not None and pixels:
        np.stack(pixels, out=np.lib.format.open_memmap(file, "w+", np.uint8, (len(pixels), size, size, 3)))
    elif pixels:
        stacked = np.stack(pixels)
    return Chunk(
        job.number,
        stacked,
        np.array(index, np.int64).reshape(-1, combos),
        np.array(first, np.int64),
        np.array(kept, np.int64),
        tuple(errors),
        tuple(flags),
    )


def _flags(data: bytes) -> tuple[str, ...]:
    try:
        return read_header(data).flags
    except DecodeError:  # of a format that only a registered decoder knows
        return ("of a format that Pillow does not know",)


def _distinct_views(grid: Grid, extra: tuple[Pipeline, ...], data: bytes) -> tuple[list[np.ndarray], list[int]]:
    """An image's distinct views, and the number of its view for each combination and extra pipeline."""
    distinct: list[np.ndarray] = []
    by_look: dict[bytes, list[int]] = {}  # by a row from the middle, so that few whole pictures are compared
    row = []
    views = itertools.chain((view for _, view in grid.views(data)), (pipeline.pixels(data) for pipeline in extra))
    for view in views:
        alike = by_look.setdefault(view[len(view) // 2].tobytes(), [])
        number = next((n for n in alike if distinct[n] is view or np.array_equal(distinct[n], view)), None)
        if number is None:
            number = len(distinct)
            distinct.append(view)
            alike.append(number)
        row.append(number)
    return distinct, row


def _in_a_thread(jobs: Iterator[ChunkJob]) -> Generator[Chunk, None, None]:
    """The image libraries let go of the interpreter while they work, so that the model runs beside them."""
    waiting: queue.Queue[Chunk | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Chunk | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for job in jobs:
                if stopped.is_set():
                    return
                put(make_chunk(job))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="imagenet-s-views", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def _in_processes(jobs: Iterator[ChunkJob], workers: int) -> Generator[Chunk, None, None]:
    """A sliding window of futures: map_jobs would run ahead of a slow model without a bound.

    Pixels come through memory-backed files: by the pool's pipe, this process would be the bottleneck of two workers.
    """
    with tempfile.TemporaryDirectory(dir=_shared_memory(workers)) as folder:
        yield from _in_a_window(jobs, workers, folder)


def _in_a_window(jobs: Iterator[ChunkJob], workers: int, folder: str) -> Generator[Chunk, None, None]:
    while True:
        pending: deque[tuple[ChunkJob, Future[Chunk]]] = deque()
        pool = _pool(workers)
        done = False
        try:
            while True:
                for job in islice(jobs, _AHEAD * workers - len(pending)):
                    pending.append((job, pool.submit(_stored_chunk, job, folder)))
                if not pending:
                    done = True
                    return
                chunk = pending[0][1].result()
                pending.popleft()
                yield _fetched(chunk, folder)
        except BrokenProcessPool:
            in_flight = {str(job.number): job for job, _ in pending}
        finally:
            pool.shutdown(wait=True, kill_workers=not done)
        yield from _each_survivor(in_flight, workers, None)


def _stored_chunk(job: ChunkJob, folder: str) -> Chunk:
    return make_chunk(job, _file(folder, job.number))


def _fetched(chunk: Chunk, folder: str) -> Chunk:
    file = _file(folder, chunk.number)
    if not file.exists():  # no image of the chunk could be read
        return chunk
    pixels = np.load(file, mmap_mode="c")
    file.unlink()  # the mapping keeps its pages
    return replace(chunk, pixels=pixels)


def _file(folder: str, number: int) -> Path:
    return Path(folder) / f"{number}.npy"


def _shared_memory(workers: int) -> str | None:
    """Where files lie in memory, if there is room for all that wait; else the usual place for temporary files."""
    shared = Path("/dev/shm")  # noqa: S108 -- a folder of our own is made there
    room = (_AHEAD * workers + 1) * _LARGEST
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 2 * room else None


def _on_a_cluster(jobs: Iterator[ChunkJob], cluster: str) -> Generator[Chunk, None, None]:
    while window := {str(job.number): job for job in islice(jobs, _WINDOW)}:
        yield from _each_survivor(window, 1, cluster)


def _each_survivor(jobs: dict[str, ChunkJob], workers: int, cluster: str | None) -> Iterator[Chunk]:
    """Chunks of jobs of which some may end their process; such a job's images are tried one by one."""
    found: dict[str, Chunk] = {}
    for result in map_jobs(make_chunk, jobs, workers=workers, cluster=cluster, progress=False, threads=1):
        job = jobs[result.key]
        if result.error is None:
            found[result.key] = result.value
        elif result.error.kind == "died":
            found[result.key] = _one_by_one(job, workers, cluster)
        else:
            raise ImagenetSError(f"images {job.first} to {job.first + len(job.samples) - 1}: {result.error.message}")
    yield from (found[key] for key in jobs)


def _one_by_one(job: ChunkJob, workers: int, cluster: str | None) -> Chunk:
    alone = {
        job.samples.names[n]: replace(job, first=job.first + n, samples=job.samples[n : n + 1])
        for n in range(len(job.samples))
    }
    parts: list[Chunk] = []
    results = map_jobs(make_chunk, alone, workers=workers, cluster=cluster, progress=False, threads=1)
    for result in sorted(results, key=lambda each: alone[each.key].first):
        if result.error is None:
            parts.append(result.value)
            continue
        single = alone[result.key]
        bad = BadImage(single.first, result.key, result.error.kind, result.error.message)
        parts.append(replace(make_chunk(replace(single, samples=single.samples[:0])), errors=(bad,)))
    begins = np.cumsum([0, *(len(part.pixels) for part in parts[:-1])])
    return Chunk(
        job.number,
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.first + begin for part, begin in zip(parts, begins, strict=True)]),
        np.concatenate([part.kept for part in parts]),
        tuple(error for part in parts for error in part.errors),
        tuple(flag for part in parts for flag in part.flags),
    )


def _pool(workers: int) -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return ProcessPoolExecutor(max_workers=workers, env=threads, initializer=_leave_signals_to_the_parent)


def _leave_signals_to_the_parent() -> None:
    """Ctrl-C reaches the whole process group; only the parent decides what ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _registered(grid: Grid) -> tuple[Decoder | Resizer, ...]:
    """The grid's decoders and resizers that the user added; a fresh process has the others by itself."""
    entries: Sequence[Any] = [*map(decoder, grid.decoders), *map(resizer, grid.resizers)]
    return tuple(entry for entry in entries if not _is_ours(entry.read if isinstance(entry, Decoder) else entry.scale))


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "func", function).__module__).startswith("imagenet_s.")
