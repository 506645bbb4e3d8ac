"""Trials that are flown, saved and read together."""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int

from core_utils.files import atomic_file
from core_utils.jsonable import dumps
from jethr2.control import Controller
from jethr2.errors import JetHR2Error
from jethr2.estimation import noise_keys
from jethr2.layout import joint_names
from jethr2.metrics import FIGURES, Criteria, Metrics
from jethr2.params import ControllerParams, ErrorParams, EstimatorParams, RobotParams
from jethr2.perturbations import Errors, sample_errors
from jethr2.posture import takeoff_trim
from jethr2.results import StudyResult
from jethr2.robot import load_model
from jethr2.simulation import fly

PART = 64
"""Trials that one thread flies at a time: models and states stay in its cache, and calls cost little beside them."""

Done = dict[str, dict[int, np.ndarray]]
"""Figures of finished trials by case and trial."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What decides every bit of a study's results.

    Attributes:
        n: trials of each case.
        cases: control laws by name.
        robot: parameters, or the file of another robot.
        estimator: how attitude is known, and the sensors' noise.
        errors: standard deviations, or the digest of a given table.
        error_scale: multiplies all errors.
        seed: of errors and noise.
        duration: s.
        criteria: when a take-off is a success.
        mujoco: its version.
        source: digest of the robot's file.
        backend: `mujoco` or `mjx`.
    """

    n: int
    cases: Mapping[str, ControllerParams]
    robot: RobotParams | str
    estimator: EstimatorParams
    errors: ErrorParams | str
    error_scale: float
    seed: int
    duration: float
    criteria: Criteria
    mujoco: str
    source: str = ""
    backend: str = "mujoco"

    @property
    def digest(self) -> str:
        """Of everything, for files that must belong to it."""
        return hashlib.sha256(json.dumps(json.loads(dumps(self)), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some trials of one case; can be sent to another process.

    Attributes:
        study: they belong to.
        case: name of the control law.
        trials: their indices.
        errors: of these trials, where the study was given a table.
        nthread: threads that fly them.
    """

    study: Study
    case: str
    trials: Int[np.ndarray, " n"]
    errors: Errors | None = field(default=None)
    nthread: int = 1

    @property
    def name(self) -> str:
        """Of its file, without suffix."""
        return f"{self.case}-{self.trials[0]:07d}-{self.trials[-1]:07d}"


def fly_chunk(chunk: Chunk) -> np.ndarray:
    """Flies a chunk, in parts on as many threads as it names, and returns its figures, [trials, figures]."""
    study = chunk.study
    model = load_model(study.robot)
    trim = takeoff_trim(model)
    errors = chunk.errors
    if errors is None:
        params = typing.cast(ErrorParams, study.errors)
        errors = sample_errors(
            len(chunk.trials),
            params,
            seed=study.seed,
            scale=study.error_scale,
            joints=joint_names(model),
            first=int(chunk.trials[0]),
        )
    keys = noise_keys(study.seed, chunk.trials.tolist())
    if study.backend == "mjx":
        from jethr2.mjx import fly_in_mjx

        pilot = Controller(model, trim, study.cases[chunk.case], study.estimator)
        return _figures(fly_in_mjx(model, trim, pilot, errors, keys, study.duration, study.criteria))
    size = min(PART, -(-len(chunk.trials) // chunk.nthread))
    parts = [slice(first, first + size) for first in range(0, len(chunk.trials), size)]

    def one(part: slice) -> np.ndarray:
        pilot = Controller(model, trim, study.cases[chunk.case], study.estimator)
        return fly(model, trim, pilot, errors[part], keys[part], study.duration, study.criteria)

    if chunk.nthread == 1:
        tracks = [one(part) for part in parts]
    else:
        with ThreadPoolExecutor(chunk.nthread) as pool:
            tracks = list(pool.map(one, parts))
    return _figures(np.concatenate(tracks))


def _figures(tracks: np.ndarray) -> np.ndarray:
    metrics = Metrics.from_tracks(tracks)
    return np.column_stack([getattr(metrics, name) for name in FIGURES])


def missing(study: Study, table: Errors | None, done: Done, size: int, nthread: int) -> Iterator[Chunk]:
    """Runs of consecutive trials that are not done, of at most `size`."""
    for case in study.cases:
        todo = np.array([trial for trial in range(study.n) if trial not in done[case]], np.int64)
        for stretch in np.split(todo, np.flatnonzero(np.diff(todo) > 1) + 1):
            for first in range(0, len(stretch), size):
                trials = stretch[first : first + size]
                yield Chunk(
                    study=study,
                    case=case,
                    trials=trials,
                    errors=None if table is None else table[trials],
                    nthread=nthread,
                )


def write_chunk(path: Path, chunk: Chunk, figures: np.ndarray) -> None:
    """Saves a chunk's figures with the digest of its study."""
    with atomic_file(path) as file:
        np.savez(file, study=chunk.study.digest, case=chunk.case, trials=chunk.trials, figures=figures)


def read_chunks(study: Study, folder: Path) -> Done:
    """Figures by case and trial.

    Raises:
        JetHR2Error: a chunk is damaged or belongs to another study.
    """
    done: Done = {case: {} for case in study.cases}
    for path in sorted((folder / "chunks").glob("*.npz")):
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                digest, case, trials, figures = (file[name] for name in ("study", "case", "trials", "figures"))
        except Exception as error:  # zipfile, NumPy and a missing array each complain in their own way
            raise JetHR2Error(f"{path} is damaged: {error}", "remove it, and its trials are flown again") from None
        if str(digest) != study.digest:
            raise JetHR2Error(f"{path} belongs to another study", "remove it, and its trials are flown again")
        done[str(case)].update(zip(trials.tolist(), figures, strict=True))
    return done


def gathered(study: Study, done: Done) -> StudyResult:
    """The result of the trials that are done in every case, so that all comparisons stay paired."""
    common = sorted(set.intersection(*(set(figures) for figures in done.values())))
    metrics = {}
    for case in study.cases:
        rows = np.array([done[case][trial] for trial in common]).reshape(len(common), len(FIGURES))
        metrics[case] = Metrics(**{name: rows[:, k].copy() for k, name in enumerate(FIGURES)})
    return StudyResult(metrics, study.criteria, study.seed, study.error_scale, np.array(common, np.int64), study.n)
