"""Many trials: the same errors and the same noise for every mode, trial by trial (section 7).

A trial's errors and noise follow from the seed and its index alone, and trials do not share arithmetic, so a study has
the same bits for any number of threads, processes and chunks, and however often it was interrupted.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np

from core_utils import interrupts
from core_utils.jobs import map_jobs
from core_utils.runs import Run
from jethr2.chunks import Chunk, Done, Study, fly_chunk, gathered, missing, read_chunks, write_chunk
from jethr2.errors import JetHR2Error, ParameterError
from jethr2.metrics import Criteria
from jethr2.params import ControllerParams, ErrorParams, EstimatorParams, Mode, RobotParams
from jethr2.perturbations import Errors, sample_errors
from jethr2.results import StudyResult
from jethr2.robot import load_model

__all__ = ["ALL", "Chunk", "Study", "StudyResult", "ablate", "fly_chunk", "monte_carlo", "sweep", "tune_baseline"]

Params = TypeVar("Params", RobotParams, ControllerParams)

ALL: tuple[Mode, ...] = typing.get_args(Mode)
"""All modes, in the order of section 7."""

BACKENDS = ("mujoco", "mjx")

CHUNK = 256
"""Trials that are finished and saved together."""

BASELINE = "differential_tuned"
"""Name of the case that stands for differential thrust at its best."""

TUNING_SEED = 100
"""Of the trials on which the baseline is tuned; no study of the claims uses it."""


def monte_carlo(
    n: int = 256,
    modes: Sequence[str] = ALL,
    error_scale: float = 1.0,
    seed: int = 0,
    nthread: int | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    backend: str = "mujoco",
    *,
    robot: RobotParams | str | Path | None = None,
    controller: ControllerParams | None = None,
    cases: Mapping[str, ControllerParams] | None = None,
    estimator: EstimatorParams | None = None,
    errors: ErrorParams | Errors | None = None,
    duration: float = 3.0,
    criteria: Criteria | None = None,
    chunk: int = CHUNK,
    workers: int = 1,
    cluster: str | None = None,
    overwrite: bool = False,
    on_chunk: Callable[[int, int], Any] | None = None,
) -> StudyResult:
    """Flies n trials in every mode; every mode meets the same errors and the same noise.

    Args:
        n: trials.
        modes: of the controller, all five by default.
        error_scale: multiplies all errors.
        seed: of errors and noise.
        nthread: threads in each process; all cores by default.
        out: folder of the run: chunks of finished trials, `result.json`. None keeps nothing on disk.
        resume: go on with an unfinished run of the same study in `out`.
        backend: `mujoco`; or `mjx` for JAX's device, in float32, with what `jax_law` knows of a controller; there the
            last digits depend on `chunk`, and feet with one edge pressed deep on the ground get other forces.
        robot: parameters, or a file for `load_model`.
        controller: of which each mode is a variant.
        cases: further control laws by name.
        estimator: how attitude is known, and the sensors' noise.
        errors: standard deviations, or the errors themselves, one row per trial.
        duration: s.
        criteria: when a take-off is a success.
        chunk: trials that are finished and saved together.
        workers: processes.
        cluster: address of a Dask scheduler, whose workers then fly the chunks.
        overwrite: remove what lies in `out` and start anew.
        on_chunk: called with the numbers of finished and of all trials, after each chunk.

    Returns:
        Figures of every trial, and the table, intervals and tests made of them.

    Raises:
        ParameterError: naming what means nothing.
        RunError: `out` holds something else, or another study.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the chunk in work was saved.
    """
    _check_counts(n=n, chunk=chunk, workers=workers, nthread=1 if nthread is None else nthread)
    if backend not in BACKENDS:
        raise ParameterError("backend", backend, f"one of {', '.join(BACKENDS)}")
    controller = controller or ControllerParams()
    for mode in modes:
        if mode not in ALL:
            nearest = difflib.get_close_matches(mode, ALL, n=1, cutoff=0.0)[0]
            raise ParameterError("modes", mode, f"one of {', '.join(ALL)} (did you mean {nearest!r}?)")
    laws = {mode: _changed(controller, "mode", mode) for mode in modes} | dict(cases or {})
    if not laws:
        raise ParameterError("modes", tuple(modes), f"some of {', '.join(ALL)}")
    study = _study(n, laws, robot, estimator, errors, error_scale, seed, duration, criteria, backend)
    table = errors if isinstance(errors, Errors) else None
    threads = nthread or joblib.cpu_count()
    if out is None:
        done: Done = {case: {} for case in laws}
        _fly_missing(study, table, done, None, chunk, threads, workers, cluster, on_chunk)
        return gathered(study, done)
    with Run.open(out, study, resume=resume, overwrite=overwrite) as run:
        done = read_chunks(study, run.path)
        if not run.finished:
            _fly_missing(study, table, done, run, chunk, threads, workers, cluster, on_chunk)
            run.finish(gathered(study, done).summary())
        return gathered(study, done)


def ablate(
    n: int = 128,
    seed: int = 0,
    *,
    baseline_tuned: bool = False,
    out: str | Path | None = None,
    controller: ControllerParams | None = None,
    **options: Any,
) -> StudyResult:
    """The five modes of section 7, and with `baseline_tuned` differential thrust at its best.

    Args:
        n: trials.
        seed: of errors and noise; tuning has trials of its own.
        baseline_tuned: add the case `differential_tuned`, see `tune_baseline`.
        out: folder of the run; that of the tuning lies beside it.
        controller: of which each mode is a variant.
        options: of `monte_carlo`.

    Returns:
        As `monte_carlo`.
    """
    cases = {}
    if baseline_tuned:
        folder = None if out is None else Path(f"{out}-tuning")
        kept = {name: value for name, value in options.items() if name not in ("modes", "cases", "on_chunk")}
        cases[BASELINE] = tune_baseline(controller=controller, out=folder, **kept)
    return monte_carlo(n, seed=seed, out=out, controller=controller, cases=cases, **options)


def tune_baseline(
    n: int = 64,
    seed: int = TUNING_SEED,
    *,
    natural_frequencies: Sequence[float] = (4.0, 6.0, 8.0, 10.0),
    throttles: Sequence[float] = (0.90, 0.95, 1.0),
    controller: ControllerParams | None = None,
    **options: Any,
) -> ControllerParams:
    """Looks on a small grid for the gains and the collective with which differential thrust stops the dive best.

    Args:
        n: trials of each.
        seed: of these trials; another than those of the study that the result enters.
        natural_frequencies: of roll and pitch, rad/s.
        throttles: collective; below 1 it leaves room for differences.
        controller: everything else.
        options: of `monte_carlo`.

    Returns:
        The law with most trials that reach the goal without a dive, yaw ignored; among equals the highest median.
    """
    controller = dataclasses.replace(controller or ControllerParams(), mode="differential")
    cases = {
        f"wn{frequency:g}-u{throttle:g}": dataclasses.replace(
            controller, natural_frequency=(frequency, frequency, controller.natural_frequency[2]), u0=throttle
        )
        for frequency in natural_frequencies
        for throttle in throttles
    }
    result = monte_carlo(n, (), seed=seed, cases=cases, **options)

    def merit(case: str) -> tuple[int, float]:
        return int(result.upright(case).sum()), float(np.median(result.metrics[case].max_height))

    return cases[max(cases, key=merit)]


def sweep(
    parameter: str,
    values: Iterable[float],
    *,
    modes: Sequence[str] = ("full", "differential"),
    n: int = 48,
    seed: int = 3,
    robot: RobotParams | None = None,
    controller: ControllerParams | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> dict[float, StudyResult]:
    """One study per value of a parameter; all of them meet the same draws.

    Args:
        parameter: a number of `RobotParams` (`thrust_to_weight`, `fan_time_constant`) or `ControllerParams`, or
            `error_scale`.
        values: of it.
        modes: of the controller.
        n: trials of each.
        seed: of errors and noise.
        robot: everything else.
        controller: everything else.
        out: folder in which each value has a run of its own.
        options: of `monte_carlo`.

    Returns:
        The studies by value.

    Raises:
        ParameterError: an unknown parameter, or a value that it cannot take.
    """
    robot, controller = robot or RobotParams(), controller or ControllerParams()
    results = {}
    for value in values:
        settings = dict(options)
        here, law = robot, controller
        if parameter == "error_scale":
            settings["error_scale"] = value
        elif parameter in RobotParams.__dataclass_fields__:
            here = _changed(robot, parameter, value)
        elif parameter in ControllerParams.__dataclass_fields__:
            law = _changed(controller, parameter, value)
        else:
            raise _unknown_parameter(parameter)
        folder = None if out is None else Path(out) / f"{parameter}={value:g}"
        results[value] = monte_carlo(n, modes, seed=seed, robot=here, controller=law, out=folder, **settings)
    if not results:
        raise ParameterError("values", "none", "at least one")
    return results


def _study(
    n: int,
    cases: Mapping[str, ControllerParams],
    robot: RobotParams | str | Path | None,
    estimator: EstimatorParams | None,
    errors: ErrorParams | Errors | None,
    error_scale: float,
    seed: int,
    duration: float,
    criteria: Criteria | None,
    backend: str,
) -> Study:
    import mujoco

    robot = RobotParams() if robot is None else robot
    source = ""
    if not isinstance(robot, RobotParams):
        robot = str(robot)
        load_model(robot)
        source = hashlib.sha256(Path(robot).read_bytes()).hexdigest()
    described: ErrorParams | str
    if isinstance(errors, Errors):
        if len(errors) != n:
            raise ParameterError("errors", f"{len(errors)} rows", f"{n} rows, one per trial")
        if error_scale != 1:
            raise ParameterError("error_scale", error_scale, "1 where the errors themselves are given")
        described = hashlib.sha256(errors.table.tobytes()).hexdigest()
    else:
        described = errors or ErrorParams()
    sample_errors(1, described if isinstance(described, ErrorParams) else None, seed=seed, scale=error_scale)
    return Study(
        n=n,
        cases=cases,
        robot=robot,
        estimator=estimator or EstimatorParams(),
        errors=described,
        error_scale=float(error_scale),
        seed=seed,
        duration=float(duration),
        criteria=criteria or Criteria(),
        mujoco=mujoco.__version__,
        source=source,
        backend=backend,
    )


def _fly_missing(
    study: Study,
    table: Errors | None,
    done: Done,
    run: Run | None,
    size: int,
    nthread: int,
    workers: int,
    cluster: str | None,
    on_chunk: Callable[[int, int], Any] | None,
) -> None:
    """Flies and saves what is not done yet; a signal ends it after the chunk in work."""
    chunks = {chunk.name: chunk for chunk in missing(study, table, done, size, nthread)}
    with interrupts.deferred() as stopping:
        for name, figures in _flown(chunks, workers, cluster):
            chunk = chunks[name]
            if run is not None:
                write_chunk(run.path / "chunks" / f"{name}.npz", chunk, figures)
                run.log(chunk=name, trials=len(chunk.trials))
            done[chunk.case].update(zip(chunk.trials.tolist(), figures, strict=True))
            if on_chunk is not None:
                on_chunk(sum(map(len, done.values())), study.n * len(study.cases))
            if stopping():
                if run is not None:
                    run.write("partial.json", gathered(study, done).summary())
                break


def _flown(chunks: Mapping[str, Chunk], workers: int, cluster: str | None) -> Iterator[tuple[str, np.ndarray]]:
    if workers == 1 and cluster is None:
        for name, chunk in chunks.items():
            yield name, fly_chunk(chunk)
        return
    threads = max(chunk.nthread for chunk in chunks.values()) if chunks else 1
    for result in map_jobs(fly_chunk, chunks, workers=workers, cluster=cluster, progress=False, threads=threads):
        if result.error is not None:
            raise JetHR2Error(f"the trials {result.key} failed: {result.error}")
        yield result.key, result.value


def _changed(params: Params, name: str, value: Any) -> Params:
    changes: Any = {name: value}
    return dataclasses.replace(params, **changes)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ParameterError(name, value, "a whole number of at least 1")


def _unknown_parameter(name: str) -> ParameterError:
    known = ["error_scale", *RobotParams.__dataclass_fields__, *ControllerParams.__dataclass_fields__]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return ParameterError("parameter", name, f"a parameter of robot or controller (did you mean {nearest!r}?)")
