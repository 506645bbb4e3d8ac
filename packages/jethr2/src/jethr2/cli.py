"""The job: look at the robot, let it take off, break it, compare controllers, export and cross-check it from the shell."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_utils import cli
from core_utils.errors import UserError
from jethr2 import tables
from jethr2.errors import InfeasibleThrust
from jethr2.params import Allocation, ControllerParams, ErrorParams, EstimatorParams, Mode, RobotParams, provenance

if TYPE_CHECKING:
    import mujoco

    from jethr2.perturbations import Errors
    from jethr2.results import StudyResult


_FANS = ("front", "back", "left", "right")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What `--config` and `--set` fill: a table each, for example `--set robot.fan_time_constant=0.2`."""

    robot: RobotParams = field(default_factory=RobotParams)
    controller: ControllerParams = field(default_factory=ControllerParams)
    estimator: EstimatorParams = field(default_factory=EstimatorParams)
    errors: ErrorParams = field(default_factory=ErrorParams)


@dataclass(frozen=True, kw_only=True)
class OnRobot(cli.Configured):
    """Options of every command that needs a robot; keys are robot.mass, controller.u0, estimator.mode, errors.mass_sd, ..."""

    model: Path | None = None  # MJCF or URDF of a robot with four named fan sites, instead of this one

    def setup(self) -> Setup:
        """Everything configured; a robot that cannot lift is named on stderr."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InfeasibleThrust)
            found = self.settings(Setup)
        for warning in caught:
            sys.stderr.write(f"warning: {warning.message}\n")
        if self.model is not None and found.robot != RobotParams():
            raise UserError("--model brings its own robot", "leave out robot.* or --model")
        return found

    def robot(self, setup: Setup) -> RobotParams | Path:
        """For functions that take either."""
        return setup.robot if self.model is None else self.model

    def loaded(self, setup: Setup) -> mujoco.MjModel:
        """The compiled robot."""
        from jethr2.robot import load_model

        return load_model(self.robot(setup))


@dataclass(frozen=True, kw_only=True)
class Info(cli.Command, OnRobot):
    """Print mass, thrust, posture, what each actuator does, what errors cost, and where every parameter comes from."""

    knee: float = 0.8  # of the take-off posture, rad

    def __call__(self) -> None:
        """Prints; writes nothing."""
        from jethr2.layout import SIDES, fan_full_thrusts, pitch_chain
        from jethr2.posture import takeoff_trim
        from jethr2.wrenches import authority, error_budget

        setup = self.setup()
        model = self.loaded(setup)
        trim = takeoff_trim(model, self.knee)
        thrust, weight = float(fan_full_thrusts(model).sum()), trim.mass * -float(model.opt.gravity[2])
        groups = {"robot": setup.robot} if self.model is None else {}
        groups |= {name: getattr(setup, name) for name in ("controller", "estimator", "errors")}
        facts = {
            "mass_kg": trim.mass,
            "thrust_n": thrust,
            "thrust_to_weight": thrust / weight,
            "hover_throttle": weight / thrust,
            "base_height_m": trim.base_height,
            "hip_pitch_rad": trim.hip_pitch,
            "knee_rad": trim.knee,
            "ankle_pitch_rad": trim.ankle_pitch,
            "com_m": trim.com.tolist(),
            "inertia_kg_m2": trim.inertia.tolist(),
            "fan_arms_m": dict(zip(_FANS, trim.fan_arms.tolist(), strict=True)),
        }
        effects = [row._asdict() for row in authority(model, trim)]
        turns_feet = all(pitch_chain(model, side) for side in SIDES)
        budget = [row._asdict() for row in error_budget(model, trim, setup.errors)] if turns_feet else []
        sources = [
            row._replace(field=f"{group}.{row.field}")._asdict()
            for group, params in groups.items()
            for row in provenance(params)
        ]
        result = {**facts, "authority": effects, "error_budget": budget, "provenance": sources}
        self.show(result, lambda: tables.info_tables(facts, effects, budget, sources))


@dataclass(frozen=True, kw_only=True)
class Simulate(cli.Command, OnRobot):
    """Let one robot take off; print peaks, heights and times, and keep the flight if asked to."""

    mode: Mode | None = None  # which of fans and feet act; full unless configured
    allocation: Allocation | None = None  # how a wrench becomes throttles and angles; closed_form unless configured
    errors: str = "nominal"  # nominal, random (drawn from --seed and --trial), canned, or a CSV file of errors
    trial: int = 0  # which row of these errors, and whose noise
    error_scale: float = 1.0  # multiplies random errors
    duration: float = 3.0  # s
    seed: int = 0  # of errors and noise
    out: Path | None = None  # file for the flight, .npz or .csv
    overwrite: bool = False  # replace --out

    def __call__(self) -> None:
        """Flies, writes `--out`, prints figures."""
        from jethr2.control import Controller
        from jethr2.posture import takeoff_trim
        from jethr2.simulation import simulate

        _check_file(self.out, self.overwrite, (".npz", ".csv"))
        setup = self.setup()
        law = _law(setup.controller, self.mode, self.allocation)
        model = self.loaded(setup)
        trim = takeoff_trim(model)
        flight = simulate(
            model,
            Controller(model, trim, law, estimator=setup.estimator),
            self.duration,
            self._errors(model, setup.errors),
            self.seed,
            trim=trim,
            trial=self.trial,
        )
        if self.out is not None:
            flight.to_npz(self.out) if self.out.suffix == ".npz" else flight.to_csv(self.out)
        figures = dict(_shown(name, value) for name, value in flight.metrics().items())
        self.show(figures | ({} if self.out is None else {"file": self.out}))

    def _errors(self, model: mujoco.MjModel, params: ErrorParams) -> Errors:
        from jethr2.layout import joint_names
        from jethr2.perturbations import Errors, canned_errors, no_errors, sample_errors

        joints = joint_names(model)
        if self.trial < 0:
            raise UserError(f"--trial must be at least 0, got {self.trial}")
        if self.errors == "nominal":
            return no_errors(1, joints)
        if self.errors == "random":
            return sample_errors(1, params, seed=self.seed, scale=self.error_scale, joints=joints, first=self.trial)
        table = canned_errors() if self.errors == "canned" else Errors.from_csv(self.errors, joints)
        if table.joints != joints:
            raise UserError("--errors canned is for this package's robot", "give a CSV file for other joints")
        if self.trial >= len(table):
            raise UserError(f"--trial {self.trial}: {self.errors} holds {len(table)} trials, counted from 0")
        return table[self.trial : self.trial + 1]


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
        from jethr2.outcomes import outcomes_figure
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
                on_chunk=self.report,
                **self.options(setup),
            )
            for scale in self.error_scale
        ]
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


@dataclass(frozen=True, kw_only=True)
class Allocate(cli.Command, OnRobot):
    """Print the throttles and foot angles for a wrench about the centre of mass, and what of it they miss."""

    wrench: tuple[float, float, float, float]  # Fz in N; Mx, My, Mz in N m
    method: Allocation = "closed_form"  # how
    mode: Mode = "full"  # which of fans and feet may act

    def __call__(self) -> None:
        """Prints; writes nothing."""
        import numpy as np

        from jethr2.allocation import AllocationLimits, allocate
        from jethr2.layout import fan_full_thrusts
        from jethr2.posture import takeoff_trim

        if not all(map(math.isfinite, self.wrench)):
            raise UserError("--wrench takes finite numbers")
        setup = self.setup()
        model = self.loaded(setup)
        names = ("foot_angle_sym", "foot_angle_diff", "differential_limit", "thrust_floor")
        limits = AllocationLimits(
            fan_max_thrust=float(fan_full_thrusts(model).min()),
            **{name: getattr(setup.controller, name) for name in names},
        )
        arms = takeoff_trim(model).fan_arms
        throttle, angle, residual = allocate(np.array(self.wrench), arms, limits, self.method, self.mode)
        self.show(
            {
                "throttle": dict(zip(_FANS, throttle.tolist(), strict=True)),
                "foot_angle_deg": dict(zip(("left", "right"), np.degrees(angle).tolist(), strict=True)),
                "residual": dict(zip(("Fz", "Mx", "My", "Mz"), residual.tolist(), strict=True)),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Ik(cli.Command, cli.Configured):
    """Print the five joint angles that put a sole at a point; lengths are those of the robot that is configured."""

    sole: tuple[float, float, float]  # the point below the ankle, in the world, m
    base: tuple[float, float, float] = (0.0, 0.0, 0.5)  # position of the base, in the world, m
    base_rpy: tuple[float, float, float] = (0.0, 0.0, 0.0)  # its roll, pitch and yaw, deg
    yaw: float = 0.0  # of the foot in the world, deg
    pitch: float = 0.0  # of the foot, positive with the toe down, deg
    side: Literal["left", "right"] = "left"  # which leg

    def __call__(self) -> None:
        """Prints; writes nothing."""
        import numpy as np

        from jethr2.legs import LegGeometry, leg_ik

        geometry = LegGeometry.from_params(self.settings(Setup).robot)
        base = np.array([*self.base, *_quaternion(*map(math.radians, self.base_rpy))])
        yaw, pitch = math.radians(self.yaw), math.radians(self.pitch)
        angles = leg_ik(base, np.array(self.sole), yaw, pitch, self.side, geometry)
        names = ("hip_roll", "hip_yaw", "hip_pitch", "knee", "ankle_pitch")
        self.show({f"{name}_deg": float(angle) for name, angle in zip(names, np.degrees(angles), strict=True)})


@dataclass(frozen=True, kw_only=True)
class Export(cli.Command, OnRobot):
    """Write the robot as URDF, as MJCF, or as a folder that MuJoCo's viewer opens."""

    urdf: Path | None = None  # file to write
    mjcf: Path | None = None  # file to write
    folder: Path | None = None  # folder for jethr2.xml, scene.xml and README.md with the provenance of all numbers
    overwrite: bool = False  # replace what is there

    def __call__(self) -> None:
        """Writes what is asked for."""
        from core_utils.files import write_atomically
        from jethr2.model_folder import write_model_folder
        from jethr2.robot import to_mjcf
        from jethr2.urdf import to_urdf

        paths = {"urdf": self.urdf, "mjcf": self.mjcf, "folder": self.folder}
        paths = {name: path for name, path in paths.items() if path is not None}
        if not paths:
            raise UserError("export takes --urdf FILE, --mjcf FILE or --folder DIR")
        if self.model is not None and set(paths) != {"urdf"}:
            raise UserError("--model is exported as URDF only", "its MJCF is the file itself")
        for path in paths.values():
            _check_file(path, self.overwrite)
        setup = self.setup()
        if self.urdf is not None:
            write_atomically(self.urdf, to_urdf(self.loaded(setup)))
        if self.mjcf is not None:
            write_atomically(self.mjcf, to_mjcf(setup.robot))
        if self.folder is not None:
            write_model_folder(setup.robot, self.folder)
        self.show(paths)


@dataclass(frozen=True, kw_only=True)
class Crosscheck(cli.Command, cli.Configured):
    """Fly the robot freely in MuJoCo and in PyBullet and see their difference shrink with the step (extra `bullet`)."""

    dt: tuple[float, ...] = (5e-4, 2.5e-4)  # time steps, s
    duration: float = 0.8  # s
    tolerance: float = 5e-4  # greatest difference of the position that passes, m

    def __call__(self) -> int:
        """Prints the differences; exit code 1 unless they are small and shrink in the first order."""
        from jethr2.engines import crosscheck

        found = crosscheck(self.settings(Setup).robot, self.dt, self.duration)
        # One step alone has no order.
        orderly = len(self.dt) < 2 or 0.9 <= found.order <= 1.1
        agree = orderly and found.max_position_error <= self.tolerance
        facts = {
            **dataclasses.asdict(found),
            "order": found.order if len(self.dt) > 1 else None,
            "max_position_error": found.max_position_error,
            "agree": agree,
        }
        self.show(facts, lambda: tables.crosscheck_table(facts))
        return cli.DONE if agree else cli.CHECK_FAILED


def _law(params: ControllerParams, mode: Mode | None, allocation: Allocation | None) -> ControllerParams:
    """The configured law with what was typed."""
    return dataclasses.replace(params, mode=mode or params.mode, allocation=allocation or params.allocation)


def _check_file(path: Path | None, overwrite: bool, suffixes: tuple[str, ...] = ()) -> None:
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"--out {path} must end in {' or '.join(suffixes)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists", "--overwrite replaces it")


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


def _quaternion(roll: float, pitch: float, yaw: float) -> tuple[float, float, float, float]:
    """Wxyz of the turns z, y, x, one after the other in the turned frame."""
    cr, cp, cy = (math.cos(angle / 2) for angle in (roll, pitch, yaw))
    sr, sp, sy = (math.sin(angle / 2) for angle in (roll, pitch, yaw))
    return (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )


def _shown(name: str, value: float) -> tuple[str, Any]:
    """A figure under a name with its unit, angles in degrees; flags as such; what never happened as None."""
    if name in ("success", "upright"):
        return name, bool(value)
    unit = _UNITS.get(name, "")
    if unit.startswith("_deg"):
        value = math.degrees(value)
    return name + unit, None if math.isnan(value) else value


_UNITS = {
    **dict.fromkeys(("peak_tilt", "peak_yaw", "foot_effort"), "_deg"),
    **dict.fromkeys(("time_to_goal", "settling_time", "diverged_at"), "_s"),
    **dict.fromkeys(("max_height", "final_height", "drift"), "_m"),
    "peak_yaw_rate": "_deg_s",
    "lift_lost": "_n",
}


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


def main() -> int:
    """Runs the program `jethr2`."""
    jobs: dict[str, type[cli.Command]] = {
        "info": Info,
        "simulate": Simulate,
        "ablate": Ablate,
        "monte-carlo": MonteCarlo,
        "sweep": Sweep,
        "allocate": Allocate,
        "ik": Ik,
        "export": Export,
        "crosscheck": Crosscheck,
    }
    return cli.main("jethr2", {**jobs, **cli.shared(claims="jethr2.claims:CLAIMS", benchmarks="jethr2")})
