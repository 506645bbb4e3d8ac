"""Commands about one flight: fly it, draw it, compare it with a log."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from core_utils import cli
from core_utils.errors import UserError
from jethr2 import tables
from jethr2.commands.options import OnRobot, check_file
from jethr2.params import Allocation, ControllerParams, ErrorParams, Mode

if TYPE_CHECKING:
    import mujoco

    from jethr2.perturbations import Errors
    from jethr2.trajectory import Trajectory

_PICTURES, _FILMS = (".svg", ".png"), (".mp4", ".gif")


@dataclass(frozen=True, kw_only=True)
class OnFlight(OnRobot):
    """Options that say which flight."""

    mode: Mode | None = None  # which of fans and feet act; full unless configured
    allocation: Allocation | None = None  # how a wrench becomes throttles and angles; closed_form unless configured
    errors: str = "nominal"  # nominal, random (drawn from --seed and --trial), canned, or a CSV file of errors
    trial: int = 0  # which row of these errors, and whose noise
    error_scale: float = 1.0  # multiplies random errors
    duration: float = 3.0  # s
    seed: int = 0  # of errors and noise

    def fly(self) -> tuple[mujoco.MjModel, Trajectory]:
        """The robot and its flight."""
        from jethr2.control import Controller
        from jethr2.posture import takeoff_trim
        from jethr2.simulation import simulate

        setup = self.setup()
        law = _law(setup.controller, self.mode, self.allocation)
        model = self.loaded(setup)
        trim = takeoff_trim(model)
        pilot = Controller(model, trim, law, estimator=setup.estimator)
        errors = self._errors(model, setup.errors)
        return model, simulate(model, pilot, self.duration, errors, self.seed, trim=trim, trial=self.trial)

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
class Simulate(cli.Command, OnFlight):
    """Let one robot take off; print peaks, heights and times, and keep the flight if asked to."""

    out: Path | None = None  # file for the flight, .npz or .csv
    plot: Path | None = None  # picture of attitude, height and fans over time, .svg or .png
    video: Path | None = None  # film of the flight, .mp4 or .gif; needs a GL backend, not a screen
    overwrite: bool = False  # replace these files

    def __call__(self) -> None:
        """Flies, writes the files, prints figures; the film comes last, so that all else is kept if it fails."""
        check_file("--out", self.out, self.overwrite, (".npz", ".csv"))
        check_file("--plot", self.plot, self.overwrite, _PICTURES)
        check_file("--video", self.video, self.overwrite, _FILMS)
        model, flight = self.fly()
        files = {"file": self.out, "plot": self.plot}
        if self.out is not None:
            flight.to_npz(self.out) if self.out.suffix == ".npz" else flight.to_csv(self.out)
        if self.plot is not None:
            _draw(flight, self.plot, f"{self.errors} errors, trial {self.trial}, seed {self.seed}")
        figures = dict(_shown(name, value) for name, value in flight.metrics().items())
        self.show(figures | {name: path for name, path in files.items() if path is not None})
        if self.video is not None:
            self.say(f"video in {_film(model, flight, self.video, self.overwrite)}")


@dataclass(frozen=True, kw_only=True)
class Render(cli.Command, OnRobot):
    """Draw a kept flight as a storyboard, a film or curves; needs a GL backend, not a screen."""

    flight: tyro.conf.Positional[Path]  # .npz file of `simulate --out`
    storyboard: Path | None = None  # PNG with the robot at six times, up to 1 m
    frames: int = 6  # pictures in it
    video: Path | None = None  # film, .mp4 or .gif
    plot: Path | None = None  # attitude, height and fans over time, .svg or .png
    overwrite: bool = False  # replace these files

    def __call__(self) -> None:
        """Writes what is asked for."""
        from core_utils.files import write_atomically
        from jethr2.rendering import storyboard
        from jethr2.trajectory import Trajectory

        check_file("--storyboard", self.storyboard, self.overwrite, (".png",))
        check_file("--video", self.video, self.overwrite, _FILMS)
        check_file("--plot", self.plot, self.overwrite, _PICTURES)
        if self.storyboard is self.video is self.plot is None:
            raise UserError("render takes --storyboard FILE.png, --video FILE.mp4 or --plot FILE.svg")
        flight, model = Trajectory.from_npz(self.flight), self.loaded(self.setup())
        if flight["qpos"].shape[1] != model.nq:
            raise UserError(f"{self.flight} is the flight of another robot", "name it by --model")
        written: dict[str, Path] = {}
        if self.plot is not None:
            _draw(flight, self.plot, self.flight.name)
            written["plot"] = self.plot
        if self.storyboard is not None:
            write_atomically(self.storyboard, storyboard(model, flight, frames=self.frames))
            written["storyboard"] = self.storyboard
        if self.video is not None:
            written["video"] = _film(model, flight, self.video, self.overwrite)
        self.show(written)


@dataclass(frozen=True, kw_only=True)
class Replay(cli.Command, OnFlight):
    """Compare a robot's flight log with the simulated flight, column by column."""

    log: tyro.conf.Positional[
        Path
    ]  # CSV with units in its header: t [s], roll [deg], front_fan [%], left_knee [deg], ...
    delay: float = 0.0  # time of the log at which the simulation starts, s
    plot: Path | None = None  # picture of both, .svg or .png
    overwrite: bool = False  # replace --plot

    def __call__(self) -> None:
        """Flies, prints one row per column of the log, and draws both."""
        from core_utils.files import write_atomically
        from jethr2.layout import joint_names
        from jethr2.replaying import compare_logs, comparison_figure, log_of, read_log

        check_file("--plot", self.plot, self.overwrite, _PICTURES)
        log = read_log(self.log, joint_names(self.loaded(self.setup())))
        model, flight = self.fly()
        simulated = log_of(model, flight)
        rows = [dataclasses.asdict(row) for row in compare_logs(log, simulated, delay=self.delay)]
        if self.plot is not None:
            picture = comparison_figure(log, simulated, delay=self.delay, form=self.plot.suffix[1:])
            write_atomically(self.plot, picture)
        self.show(rows, lambda: tables.difference_table(rows))


def _law(params: ControllerParams, mode: Mode | None, allocation: Allocation | None) -> ControllerParams:
    """The configured law with what was typed."""
    return dataclasses.replace(params, mode=mode or params.mode, allocation=allocation or params.allocation)


def _draw(flight: Trajectory, path: Path, title: str) -> None:
    from core_utils.files import write_atomically
    from jethr2.plots import flight_figure

    write_atomically(path, flight_figure(flight, title=title, form=path.suffix[1:]))


def _film(model: mujoco.MjModel, flight: Trajectory, path: Path, overwrite: bool) -> Path:
    """The file that was written: a GIF, with a warning, where an MP4 has no encoder."""
    from jethr2.rendering import film_path, save_video

    wanted = film_path(path)
    if wanted != path:
        check_file("--video", wanted, overwrite)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        written = save_video(model, flight, path)
    for warning in caught:
        sys.stderr.write(f"warning: {warning.message}\n")
    return written


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
