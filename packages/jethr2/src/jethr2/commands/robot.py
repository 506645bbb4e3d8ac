"""Commands about the robot itself: what it is, what its fans and legs can do, its files, a second engine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core_utils import cli
from core_utils.errors import UserError
from jethr2 import tables
from jethr2.commands.options import OnRobot, Setup, check_file
from jethr2.params import Allocation, Mode, provenance

_FANS = ("front", "back", "left", "right")


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
        for name, path in paths.items():
            check_file(f"--{name}", path, self.overwrite)
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
