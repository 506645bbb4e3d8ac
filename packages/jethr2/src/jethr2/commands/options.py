"""Options that commands share: the robot and its laws, and files to write."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core_utils import cli
from core_utils.errors import UserError
from jethr2.errors import InfeasibleThrust
from jethr2.params import ControllerParams, ErrorParams, EstimatorParams, RobotParams

if TYPE_CHECKING:
    import mujoco


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


def check_file(option: str, path: Path | None, overwrite: bool, suffixes: tuple[str, ...] = ()) -> None:
    """Refuses, before any work, a file to write whose suffix is none of these or that exists."""
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"{option} {path} must end in {' or '.join(suffixes)}")
    if path.exists() and not overwrite:
        raise UserError(f"{option} {path} exists", "--overwrite replaces it")
