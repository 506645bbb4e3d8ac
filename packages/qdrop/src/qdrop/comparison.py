"""Methods beside each other on one model: a grid of methods, bits and seeds, each point a job of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from core_utils.jobs import JobError, map_jobs
from core_utils.runs import Run
from qdrop.config import Method, QDropConfig
from qdrop.errors import ConfigError
from qdrop.job import Job, require_trained, table_csv
from qdrop.plots import compare_figure

COLUMNS = ("method", "w_bits", "a_bits", "seed", "accuracy", "float_accuracy", "agreement", "sqnr_db", "seconds")


@dataclass(frozen=True)
class Point:
    """One job of the grid.

    Attributes:
        job: model and data to calibrate on.
        config: bits, method, seed and schedule.
        data: labelled samples to evaluate on; None measures closeness to the float model on calibration samples.
        device: where to compute.
        workdir: where its finished units are kept.
    """

    job: Job
    config: QDropConfig
    data: str | None
    device: str
    workdir: Path

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.config.method}-w{self.config.w_bits}a{self.config.a_bits}-seed{self.config.seed}"


def grid(
    job: Job,
    config: QDropConfig,
    methods: Sequence[str],
    bits: Sequence[str],
    seeds: int,
    *,
    data: str | None = None,
    device: str = "cpu",
    workdir: Path,
) -> dict[str, Point]:
    """All points by name.

    Args:
        job: model and data.
        config: what all points share.
        methods: names.
        bits: of weights and activations, as "2/4".
        seeds: how many, from 0: each draws calibration samples, batches and masks.
        data: labelled samples to evaluate on.
        device: where to compute.
        workdir: where unfinished points keep their units.

    Raises:
        ConfigError: an unknown method, bits of another form, no seed.
    """
    for method in methods:
        if method not in get_args(Method):
            raise ConfigError(f"--methods {method}: methods are {', '.join(get_args(Method))}")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    points = {}
    for pair in bits:
        w_bits, slash, a_bits = pair.partition("/")
        if not (slash and w_bits.isdecimal() and a_bits.isdecimal()):
            raise ConfigError(f"--bits {pair}: give bits of weights and activations like 2/4")
        for method in methods:
            for seed in range(seeds):
                changed = {"w_bits": int(w_bits), "a_bits": int(a_bits), "method": method, "seed": seed}
                point = Point(job, replace(config, **changed), data, device, workdir)  # type: ignore[arg-type]
                points[point.key] = replace(point, workdir=workdir / point.key)
    return points


def compare(
    run: Run, points: dict[str, Point], *, workers: int = 1, cluster: str | None = None, progress: bool = True
) -> tuple[list[dict[str, Any]], dict[str, JobError]]:
    """Runs the points that the run does not hold yet, and stores each as it ends, with a table and a picture of all.

    Args:
        run: where results are stored.
        points: of `grid`.
        workers: processes on this machine.
        cluster: a Dask scheduler's address instead.
        progress: show progress on stderr.

    Returns:
        A row a finished point, in the grid's order, and why the others failed, by name.
    """
    done = {key for key in points if (run.path / _file(key)).is_file()}
    failures: dict[str, JobError] = {}
    jobs = map_jobs(measure, points, workers=workers, cluster=cluster, done=done, progress=progress)
    with contextlib.closing(jobs):
        for result in jobs:
            if result.error is None:
                run.write(_file(result.key), {**result.value, "seconds": result.seconds})
            else:
                failures[result.key] = result.error
    for folder in {point.workdir.parent for point in points.values()}:
        with contextlib.suppress(OSError):  # it is not there, or holds what failed points have begun
            folder.rmdir()
    rows = [run.read(_file(key)) for key in points if key not in failures]
    if rows and not run.finished:
        run.write("compare.csv", table_csv(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]))
        run.write("compare.png", _picture(rows, next(iter(points.values()))))
    return rows, failures


def measure(point: Point) -> dict[str, Any]:
    """Quantises and measures one point; what was begun goes on."""
    import qdrop
    from core_utils.training import resolve_device
    from qdrop.evaluation import closeness

    device = resolve_device(point.device)
    require_trained(point.job)
    model, calibration = point.job.float_model.model.to(device), point.job.calibration(point.config.seed)
    qm = qdrop.quantize(model, calibration, point.config, workdir=point.workdir, progress=False)
    measured: dict[str, float | None] = {"accuracy": None, "float_accuracy": None}
    loader = calibration
    if point.data is not None:
        loader = point.job.data(point.data)
        measured = {"accuracy": qdrop.evaluate(qm, loader), "float_accuracy": qdrop.evaluate(model, loader)}
    config = point.config
    names = {"method": config.method, "w_bits": config.w_bits, "a_bits": config.a_bits, "seed": config.seed}
    close = closeness(qm, model, loader)
    shutil.rmtree(point.workdir)
    return {**names, **measured, **asdict(close)}


def _picture(rows: Sequence[dict[str, Any]], point: Point) -> bytes:
    """Accuracy where it was measured, else agreement with the float model."""
    name, quantity = ("accuracy", "accuracy") if point.data is not None else ("agreement", "agreement with float")
    figures: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_method = figures.setdefault(row["method"], {})
        if row[name] is not None:
            of_method.setdefault(f"{row['w_bits']}/{row['a_bits']}", []).append(row[name])
    return compare_figure(figures, quantity, f"Methods on {point.job.model} ({point.job.samples} samples)")


def _file(key: str) -> str:
    return f"points/{key}.json"
