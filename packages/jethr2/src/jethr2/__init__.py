"""A flying biped in MuJoCo that takes off on foot thrust vectoring (Jet-HR2, arXiv 2108.11557)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from jethr2.allocation import AllocationLimits, allocate
    from jethr2.control import Controller
    from jethr2.engines import CrossCheck, crosscheck
    from jethr2.environments import register
    from jethr2.errors import InfeasibleThrust, JetHR2Error, ModelError, ParameterError, ReachError, SimulationDiverged
    from jethr2.estimation import AttitudeEstimator
    from jethr2.legs import LegGeometry, leg_fk, leg_ik
    from jethr2.linearisation import linearize
    from jethr2.mpc import PitchMPC
    from jethr2.params import ControllerParams, ErrorParams, EstimatorParams, RobotParams
    from jethr2.posture import Trim, takeoff_trim
    from jethr2.robot import build_spec, load_model
    from jethr2.simulation import Trajectory, simulate
    from jethr2.studies import StudyResult, ablate, monte_carlo, sweep
    from jethr2.urdf import to_urdf
    from jethr2.wrenches import authority

if core_utils.CONTRACT != 1:
    raise ImportError("jethr2 needs core-utils with contract 1")

_HOMES = {
    "allocation": ("AllocationLimits", "allocate"),
    "control": ("Controller",),
    "engines": ("CrossCheck", "crosscheck"),
    "environments": ("register",),
    "errors": ("InfeasibleThrust", "JetHR2Error", "ModelError", "ParameterError", "ReachError", "SimulationDiverged"),
    "estimation": ("AttitudeEstimator",),
    "legs": ("LegGeometry", "leg_fk", "leg_ik"),
    "linearisation": ("linearize",),
    "mpc": ("PitchMPC",),
    "params": ("ControllerParams", "ErrorParams", "EstimatorParams", "RobotParams"),
    "posture": ("Trim", "takeoff_trim"),
    "robot": ("build_spec", "load_model"),
    "simulation": ("Trajectory", "simulate"),
    "studies": ("StudyResult", "ablate", "monte_carlo", "sweep"),
    "urdf": ("to_urdf",),
    "wrenches": ("authority",),
}

__all__ = [
    "AllocationLimits",
    "AttitudeEstimator",
    "Controller",
    "ControllerParams",
    "CrossCheck",
    "ErrorParams",
    "EstimatorParams",
    "InfeasibleThrust",
    "JetHR2Error",
    "LegGeometry",
    "ModelError",
    "ParameterError",
    "PitchMPC",
    "ReachError",
    "RobotParams",
    "SimulationDiverged",
    "StudyResult",
    "Trajectory",
    "Trim",
    "ablate",
    "allocate",
    "authority",
    "build_spec",
    "crosscheck",
    "leg_fk",
    "leg_ik",
    "linearize",
    "load_model",
    "monte_carlo",
    "register",
    "simulate",
    "sweep",
    "takeoff_trim",
    "to_urdf",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
