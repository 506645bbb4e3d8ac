"""Commands about many flights: compare modes, spread errors, vary a parameter."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_utils import cli
from core_utils.errors import UserError
from jethr2 import tables
from jethr2.commands.options import OnRobot, Setup
from jethr2.errors import InfeasibleThrust

if TYPE_CHECKING:
    from jethr2.perturbations import Errors
    from jethr2.results import StudyResult


@dataclass(frozen=True, kw_only=True)
class OnTrials(cli.RunCommand, OnRobot):
    """Options of every command that flies many trials."""

    seed: int = 0  # of errors and noise; trial k has the same in every mode
    duration: float = 3.0  # s
    workers: int = 1  # processes
    cluster: str | None = None  # address of a Dask scheduler instead

    def options(self, setup: Setup) -> dict[str, Any]:
        """What `studies.monte_carlo` is given."""
        _check_out(self.out, self.resume, self.overwrite)
        return {
            "robot": self.robot(setup),
            "controller": setup.controller,
            "estimator": setup.estimator,
            "duration": self.duration,
            "seed": self.seed,
            # With several processes each has one thread; alone, one process takes all cores.
            "nthread": None if self.workers == 1 and self.cluster is None else 1,
            "workers": self.workers,
            "cluster": self.cluster,
            "resume": self.resume,
            "overwrite": self.overwrite,
        }

    def draw(self, studies: dict[float, StudyResult], parameter: str) -> None:
        """Success over what was varied, beside the runs."""
        from core_utils.files import write_atomically
        from jethr2.plots import success_figure

        picture = self.out / "success.svg"
        write_atomically(picture, success_figure(studies, parameter))
        self.say(f"picture in {picture}")

    def report(self, done: int, total: int) -> None:
        """One line of progress."""
        self.say(f"{done} of {total} trials")


@dataclass(frozen=True, kw_only=True)
class Ablate(OnTrials):
    """Compare the five modes on the same errors: successes with and without the yaw criterion, and what lift it costs."""

    n: int = 128  # trials of each mode
    error_scale: float = 1.0  # multiplies all errors
    baseline_tuned: bool = False  # add differential thrust with the best gains and collective of a small grid
    require: bool = False  # exit with 1 unless the criteria of full vectoring hold
    out: Path = Path("runs/ablate")  # the run's folder

    def __call__(self) -> int:
        """Flies what the folder does not hold, prints the table; exit code 1 if a required criterion fails."""
        from core_utils.files import write_atomically
        from jethr2.plots import outcomes_figure
        from jethr2.studies import ablate

        setup = self.setup()
        study = ablate(
            self.n,
            baseline_tuned=self.baseline_tuned,
            out=self.out,
            error_scale=self.error_scale,
            errors=setup.errors,
            on_chunk=self.report,
            **self.options(setup),
        )
        picture = self.out / "figures" / "outcomes.svg"
        write_atomically(picture, outcomes_figure(study))
        self.say(f"picture in {picture}")
        comparisons, criteria = _comparisons(study), _criteria(study)
        result = {**study.summary(), "comparisons": comparisons, "criteria": criteria}
        self.show(result, lambda: tables.study_tables(study, comparisons, criteria))
        return cli.CHECK_FAILED if self.require and not all(criteria.values()) else cli.DONE


@dataclass(frozen=True, kw_only=True)
class MonteCarlo(OnTrials):
    """Fly many robots with random or given errors; finished trials survive an interruption."""

    n: int | None = None  # trials of each mode; 256, or the rows of --errors
    modes: str = "none,differential,pitch_only,yaw_only,full"  # any of these
    error_scale: tuple[float, ...] = (1.0,)  # one or more; each has a folder of its own within --out if there are more
    errors: Path | None = None  # CSV file of errors instead of random ones, one row per trial
    backend: Literal["mujoco", "mjx"] = "mujoco"  # engine; mjx runs on JAX's device (extra `mjx`)
    out: Path = Path("runs/monte-carlo")  # the run's folder

    def __call__(self) -> None:
        """Flies what the folder does not hold, prints one table per scale."""
        from jethr2.studies import monte_carlo

        setup = self.setup()
        table = self._table(setup)
        n = self.n if self.n is not None else 256 if table is None else len(table)
        if len(set(self.error_scale)) != len(self.error_scale) or not self.error_scale:
            raise UserError("--error-scale takes one or more different numbers")
        several = len(self.error_scale) > 1
        studies = [
            monte_carlo(
                n,
                self.modes.split(","),
                scale,
                out=self.out / f"error_scale={scale:g}" if several else self.out,
                errors=setup.errors if table is None else table,
                backend=self.backend,
                on_chunk=self.report,
                **self.options(setup),
            )
            for scale in self.error_scale
        ]
        if several:
            self.draw(dict(zip(self.error_scale, studies, strict=True)), "error_scale")
        summaries = [study.summary() for study in studies]
        self.show(summaries if several else summaries[0], lambda: tables.group(map(tables.study_table, studies)))

    def _table(self, setup: Setup) -> Errors | None:
        if self.errors is None:
            return None
        from jethr2.layout import joint_names
        from jethr2.perturbations import Errors

        return Errors.from_csv(self.errors, joint_names(self.loaded(setup)))


@dataclass(frozen=True, kw_only=True)
class Sweep(OnTrials):
    """Repeat a study over a parameter: thrust over weight, fan lag, size of the errors, or any other number."""

    tw: str | None = None  # thrust over weight: START:STOP:COUNT, or numbers with commas
    lag: str | None = None  # time constant of the fans, s; likewise
    error_scale: str | None = None  # multiplies all errors; likewise
    parameter: str | None = None  # NAME=VALUES of any other number of robot or controller
    n: int = 48  # trials of each value and mode
    modes: str = "full,differential"  # of none, differential, pitch_only, yaw_only, full
    seed: int = 3  # of errors and noise; all values meet the same draws
    out: Path = Path("runs/sweep")  # folder in which each value has a run of its own

    def __call__(self) -> None:
        """Flies what the folders do not hold, prints one row per value and mode."""
        from jethr2.studies import sweep

        name, values = self._asked()
        setup = self.setup()
        if self.model is not None:
            raise UserError("sweep varies this package's robot", "leave out --model")
        options = {key: value for key, value in self.options(setup).items() if key not in ("robot", "controller")}
        with warnings.catch_warnings():  # the table shows who cannot lift
            warnings.simplefilter("ignore", InfeasibleThrust)
            studies = sweep(
                name,
                values,
                modes=self.modes.split(","),
                n=self.n,
                robot=setup.robot,
                controller=setup.controller,
                errors=setup.errors,
                out=self.out,
                on_chunk=self.report,
                **options,
            )
        self.draw(studies, name)
        rows = [{name: value, **row} for value, study in studies.items() for row in study.summary()["rows"]]
        self.show(rows, lambda: tables.sweep_table(name, studies))

    def _asked(self) -> tuple[str, list[float]]:
        given = {"thrust_to_weight": self.tw, "fan_time_constant": self.lag, "error_scale": self.error_scale}
        asked = {name: text for name, text in given.items() if text is not None}
        if self.parameter is not None:
            name, equals, text = self.parameter.partition("=")
            if not equals or not name:
                raise UserError(f"--parameter {self.parameter}: expected NAME=VALUES")
            asked[name] = text
        if len(asked) != 1:
            raise UserError("sweep takes one of --tw, --lag, --error-scale and --parameter")
        ((name, text),) = asked.items()
        return name, _numbers(name, text)


def _check_out(out: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", f"for {out} choose one")


def _numbers(name: str, text: str) -> list[float]:
    """`START:STOP:COUNT`, both ends included, or numbers with commas."""
    import numpy as np

    parts = text.split(":")
    try:
        if len(parts) == 1:
            values = [float(part) for part in text.split(",")]
        else:
            start, stop, count = float(parts[0]), float(parts[1]), int(parts[2])
            if count < 1 or len(parts) > 3:
                raise ValueError
            values = [float(value) for value in np.linspace(start, stop, count)]
    except (ValueError, IndexError):
        raise UserError(f"{name} {text!r}: expected START:STOP:COUNT, or numbers with commas") from None
    if not all(map(math.isfinite, values)):
        raise UserError(f"{name} {text!r}: numbers must be finite")
    return values


def _comparisons(study: StudyResult) -> list[dict[str, Any]]:
    """Full vectoring against each other case, with and without the yaw criterion."""
    others = [case for case in study.metrics if case != "full"]
    return [
        {"case": case, "ignore_yaw": ignore, **dataclasses.asdict(study.mcnemar("full", case, ignore_yaw=ignore))}
        for case in others
        for ignore in (False, True)
    ]


def _criteria(study: StudyResult) -> dict[str, bool]:
    """Criteria (a) to (d) of section 7."""
    rows = {row.case: row for row in study.table()}
    full, differential = rows["full"], rows["differential"]
    return {
        "full: lower bound of successes >= 0.90": full.success_low >= 0.90,
        "full over differential: p < 1e-6": study.mcnemar("full", "differential").p_value < 1e-6,
        "full over none: p < 1e-6": study.mcnemar("full", "none").p_value < 1e-6,
        "full over differential, yaw ignored: p < 0.01": study.mcnemar("full", "differential", ignore_yaw=True).p_value
        < 0.01,
        "median peak yaw falls more than 5 times": differential.yaw_median > 5 * full.yaw_median,
        "median height: full above differential": full.height_median > differential.height_median,
    }
