"""Independent jobs, as processes here or on a Dask cluster; one that fails costs only itself."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from core_utils.errors import UserError

Input = TypeVar("Input")

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@dataclass(frozen=True)
class JobError:
    """Why a job gave no value.

    Attributes:
        kind: the exception's name, or "died" when its process ended under it.
        message: the exception's text.
        traceback: where it happened; empty for a process that died.
        user: True when it was a `UserError`: bad input, not a bug.
    """

    kind: str
    message: str
    traceback: str = ""
    user: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class JobResult:
    """One job's outcome: a value or an error, and the seconds it took."""

    key: str
    value: Any
    error: JobError | None
    seconds: float


_DIED = JobError("died", "its process ended without an answer")


def map_jobs(
    function: Callable[[Input], Any],
    jobs: Mapping[str, Input],
    *,
    workers: int = 1,
    cluster: str | None = None,
    done: Collection[str] = frozenset(),
    progress: bool = True,
    threads: int | None = None,
) -> Generator[JobResult, None, None]:
    """Runs `function` on every job in processes of its own and yields results in order of finishing.

    Args:
        function: a module-level function of one argument.
        jobs: the argument by key; keys are unique names for people.
        workers: processes on this machine.
        cluster: address of a Dask scheduler, on loopback or `tls://`; `workers` is then the cluster's affair.
        done: keys that need not run.
        progress: show a bar (one line a job where there is no terminal) on stderr.
        threads: BLAS and OpenMP threads of each process; by default the cores divided among the workers.

    Yields:
        One result a job. A job that raises or whose process dies has an `error` and does not stop the others.

    Raises:
        UserError: a number of workers below 1, an address that is neither loopback nor TLS, no scheduler there.
    """
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    todo = {key: job for key, job in jobs.items() if key not in done}
    if cluster is not None:
        results = _on_cluster(function, todo, cluster)
    else:
        threads = threads or max(1, (os.cpu_count() or 1) // workers)
        results = _in_processes(function, todo, min(workers, max(1, len(todo))), threads)
    return _shown(results, len(todo)) if progress and todo else results


def _in_processes(
    function: Callable[[Any], Any], todo: dict[str, Any], workers: int, threads: int
) -> Generator[JobResult, None, None]:
    """Runs rounds until nothing is left; after a death, each job that was in flight runs alone to find the culprit."""
    with tempfile.TemporaryDirectory() as folder:
        suspects: list[str] = []
        while todo:
            alone = bool(suspects)
            batch = [suspects.pop()] if alone else list(todo)
            before = len(todo)
            for result in _one_round(
                function, {key: todo[key] for key in batch}, 1 if alone else workers, threads, folder
            ):
                del todo[result.key]
                yield result
            in_flight = [key for key in batch if key in todo and _marker(folder, key).exists()]
            started = {key: _marker(folder, key).stat().st_mtime for key in in_flight}
            for key in in_flight:
                _marker(folder, key).unlink()
            if len(in_flight) > 1:
                suspects = in_flight
                continue
            stuck = batch if len(todo) == before and not in_flight else in_flight
            for key in stuck:
                del todo[key]
                seconds = time.time() - started.get(key, time.time())
                yield JobResult(key, None, _DIED, seconds)


def _one_round(
    function: Callable[[Any], Any], batch: dict[str, Any], workers: int, threads: int, folder: str
) -> Generator[JobResult, None, None]:
    """The results of the jobs that ended; when a process dies, those that it took along are missing."""
    from joblib.externals.loky import ProcessPoolExecutor

    environment = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    pool = ProcessPoolExecutor(max_workers=workers, env=environment, initializer=_leave_signals_to_the_parent)
    ended = False
    try:
        futures: dict[Future[JobResult], str] = {}
        with contextlib.suppress(BrokenProcessPool):
            for key, job in batch.items():
                futures[pool.submit(_attempt, function, key, job, _marker(folder, key))] = key
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                continue
            except Exception as error:  # what could not be sent there or back
                yield JobResult(futures[future], None, JobError(type(error).__name__, str(error)), 0.0)
        ended = True
    finally:
        pool.shutdown(wait=True, kill_workers=not ended)


def _attempt(function: Callable[[Any], Any], key: str, job: Any, marker: Path | None) -> JobResult:
    """Runs one job where it was sent; the marker tells the parent what was in flight when a process died."""
    started = time.time()
    if marker is not None:
        marker.touch()  # its time says when; content might still be missing when the process dies
    value, failure = None, None
    try:
        value = function(job)
    except Exception as error:  # whatever a job raises is its own affair
        failure = JobError(type(error).__name__, str(error), traceback.format_exc(), isinstance(error, UserError))
    if marker is not None:
        marker.unlink()
    return JobResult(key, value, failure, time.time() - started)


def _on_cluster(function: Callable[[Any], Any], todo: dict[str, Any], cluster: str) -> Generator[JobResult, None, None]:
    """Futures of our own: joblib's Dask back-end hangs when a worker dies."""
    _check_address(cluster)
    try:
        import dask
        import distributed
    except ImportError:
        raise UserError("--cluster needs Dask", "install core-utils[cluster]") from None
    with contextlib.ExitStack() as stack:
        # Asking a worker that has just died for its result waits this long, 30 s by default.
        stack.enter_context(dask.config.set({"distributed.comm.timeouts.connect": "5s"}))
        try:
            client = stack.enter_context(distributed.Client(cluster))
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster {cluster}: no Dask scheduler answers ({error})") from None
        suspects = []
        for result in _one_cluster_round(client, function, todo):
            if result.error is not None and result.error.kind == "KilledWorker":
                suspects.append(result.key)
            else:
                yield result
        for key in suspects:  # Dask also blames what was queued behind the culprit; alone, only the culprit dies
            for result in _one_cluster_round(client, function, {key: todo[key]}):
                died = result.error is not None and result.error.kind == "KilledWorker"
                yield dataclasses.replace(result, error=_DIED) if died else result


def _one_cluster_round(client: Any, function: Callable[[Any], Any], batch: dict[str, Any]) -> Iterator[JobResult]:
    import distributed

    token = uuid.uuid4().hex[:8]
    futures = {
        client.submit(_attempt, function, key, job, None, key=f"{key}-{token}", pure=False): key
        for key, job in batch.items()
    }
    started = time.time()
    for future, value in distributed.as_completed(futures, with_results=True, raise_errors=False):
        # The future's status may have moved on, when the worker that held the result died: only the value counts.
        if isinstance(value, JobResult):
            yield value
            continue
        error = value[1] if isinstance(value, tuple) else value
        yield JobResult(futures[future], None, JobError(type(error).__name__, str(error)), time.time() - started)


def _check_address(cluster: str) -> None:
    host = cluster.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if not (cluster.startswith("tls://") or host in {"localhost", "::1"} or host.startswith("127.")):
        raise UserError(
            f"--cluster {cluster} is neither loopback nor TLS", "use tcp://127.0.0.1:PORT or tls://HOST:PORT"
        )


def _shown(results: Generator[JobResult, None, None], total: int) -> Generator[JobResult, None, None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("jobs", total=total)
        for count, result in enumerate(results, start=1):
            bug = result.error is not None and not result.error.user  # bad input is the caller's to report, once
            outcome = f"  {result.error}" if bug else ""
            bar.update(task, advance=1, description=result.key)
            if not console.is_terminal or outcome:
                console.print(
                    f"[{count}/{total}] {result.key}  {result.seconds:.1f} s{outcome}", markup=False, soft_wrap=True
                )
            yield result


def _leave_signals_to_the_parent() -> None:
    """Ctrl-C reaches the whole process group; only the parent decides what ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _marker(folder: str, key: str) -> Path:
    return Path(folder) / sha256(key.encode()).hexdigest()
