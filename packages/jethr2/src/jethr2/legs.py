"""Where a leg's sole is, and which joint angles bring it there (section 2.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from jethr2.errors import ParameterError, ReachError
from jethr2.params import RobotParams
from jethr2.quantities import check, quantity

Side = Literal["left", "right"]

ROUNDING = 1e-12
"""m by which a straight leg's ankle may lie too far, from rounding alone."""


@dataclass(frozen=True, kw_only=True)
class LegGeometry:
    """Lengths of a leg, m; the joints turn about x, z, y, y, y from hip to ankle.

    Args:
        half_hip: half the distance between the hips.
        hip_drop: from the hip roll axis down to the hip pitch axis.
        thigh: from hip pitch axis to knee.
        shank: from knee to ankle axis.
        ankle_height: from the ankle axis down to the sole.
    """

    half_hip: float = quantity(RobotParams.half_hip, "L", "m")
    hip_drop: float = quantity(RobotParams.hip_drop, "L", "m")
    thigh: float = quantity(RobotParams.thigh, "L", "m")
    shank: float = quantity(RobotParams.shank, "L", "m")
    ankle_height: float = quantity(RobotParams.ankle_height, "L", "m")

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def from_params(cls, params: RobotParams) -> LegGeometry:
        """The legs of a robot."""
        names = ("half_hip", "hip_drop", "thigh", "shank", "ankle_height")
        return cls(**{name: getattr(params, name) for name in names})


def leg_ik(
    base: Float[np.ndarray, "*batch 7"],
    sole: Float[np.ndarray, "*batch 3"],
    yaw: Float[np.ndarray, "*batch"] | float,
    pitch: Float[np.ndarray, "*batch"] | float,
    side: Side,
    geometry: LegGeometry | None = None,
) -> Float[np.ndarray, "*batch 5"]:
    """Solves hip roll, hip yaw, hip pitch, knee and ankle in closed form; joint ranges are the caller's to check.

    Args:
        base: position, m, and quaternion wxyz in the world.
        sole: the point below the ankle, in the world, m.
        yaw: direction of the toe in the world, rad.
        pitch: of the foot, positive with the toe down, rad; its roll follows from the rest.
        side: `left` or `right`.
        geometry: the leg's lengths; None: the defaults.

    Returns:
        Angles, rad, the knee bent forward (0 to pi).

    Raises:
        ReachError: the ankle would be too far from the hip, or too near.
        ParameterError: a quaternion of norm 0, a number that is not finite, or a foot that the hip cannot turn so far.

    Reference: specification, section 2.8.
    """
    geometry = _checked(side, geometry)
    for name, value in {"base": base, "sole": sole, "yaw": yaw, "pitch": pitch}.items():
        if not np.isfinite(value).all():
            raise ParameterError(name, value, "finite")
    batch = base.shape[:-1]
    yaw, pitch = (np.broadcast_to(value, batch).reshape(-1) for value in (yaw, pitch))
    base, sole = base.reshape(-1, 7), sole.reshape(-1, 3)
    rotation = _rotation(base[:, 3:])
    toe = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), -np.sin(pitch)], axis=-1)
    toe = np.einsum("nji,nj->ni", rotation, toe)
    point = np.einsum("nji,nj->ni", rotation, sole - base[:, :3]) - _hip(side, geometry)
    hip_roll, hip_yaw = _plane(toe, point)
    forward, up = _plane_axes(hip_roll, hip_yaw)
    foot_pitch = np.arctan2(-_dot(toe, up), _dot(toe, forward))
    # In the leg's plane: x forward, z up, from the hip pitch axis to the ankle.
    ankle_x = _dot(point, forward) + geometry.ankle_height * np.sin(foot_pitch)
    ankle_z = _dot(point, up) + geometry.ankle_height * np.cos(foot_pitch) + geometry.hip_drop
    knee = _knee(np.hypot(ankle_x, ankle_z), geometry)
    behind = np.arctan2(geometry.shank * np.sin(knee), geometry.thigh + geometry.shank * np.cos(knee))
    hip_pitch = _wrapped(np.arctan2(-ankle_x, -ankle_z) - behind)
    ankle = _wrapped(foot_pitch - hip_pitch - knee)
    return np.stack([hip_roll, hip_yaw, hip_pitch, knee, ankle], axis=-1).reshape(*batch, 5)


def leg_fk(
    base: Float[np.ndarray, "*batch 7"],
    angles: Float[np.ndarray, "*batch 5"],
    side: Side,
    geometry: LegGeometry | None = None,
) -> tuple[Float[np.ndarray, "*batch 3"], Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """The sole's point, m, and the foot's yaw and pitch, rad, in the world; arguments as `leg_ik` has them.

    Raises:
        ParameterError: a quaternion of norm 0.
    """
    geometry = _checked(side, geometry)
    batch, base = base.shape[:-1], base.reshape(-1, 7)
    hip_roll, hip_yaw, hip_pitch, knee, ankle = angles.reshape(-1, 5).T
    forward, up = _plane_axes(hip_roll, hip_yaw)
    foot_pitch = hip_pitch + knee + ankle
    along = -geometry.thigh * np.sin(hip_pitch) - geometry.shank * np.sin(hip_pitch + knee)
    above = -geometry.thigh * np.cos(hip_pitch) - geometry.shank * np.cos(hip_pitch + knee) - geometry.hip_drop
    along = along - geometry.ankle_height * np.sin(foot_pitch)
    above = above - geometry.ankle_height * np.cos(foot_pitch)
    point = _hip(side, geometry) + along[:, None] * forward + above[:, None] * up
    toe = np.cos(foot_pitch)[:, None] * forward - np.sin(foot_pitch)[:, None] * up
    rotation = _rotation(base[:, 3:])
    sole = base[:, :3] + np.einsum("nij,nj->ni", rotation, point)
    toe = np.einsum("nij,nj->ni", rotation, toe)
    yaw = np.arctan2(toe[:, 1], toe[:, 0])
    pitch = np.arctan2(-toe[:, 2], np.hypot(toe[:, 0], toe[:, 1]))
    return sole.reshape(*batch, 3), yaw.reshape(batch), pitch.reshape(batch)


def _checked(side: str, geometry: LegGeometry | None) -> LegGeometry:
    if side not in ("left", "right"):
        raise ParameterError("side", side, "left or right")
    return LegGeometry() if geometry is None else geometry


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """Matrices from body to world, of quaternions wxyz."""
    norm = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    if not (norm > 0).all():
        raise ParameterError("base", quaternion.tolist(), "a position and a quaternion wxyz that is not 0")
    w, x, y, z = np.moveaxis(quaternion / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _hip(side: str, geometry: LegGeometry) -> np.ndarray:
    return np.array([0.0, geometry.half_hip if side == "left" else -geometry.half_hip, 0.0])


def _plane(toe: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hip roll and yaw: the leg's plane holds the hip roll axis's point, the sole and the toe's direction."""
    normal = np.cross(toe, point)
    length = np.linalg.norm(normal, axis=-1)
    if not (normal[:, 1] > 1e-9 * np.linalg.norm(point, axis=-1)).all():
        raise ParameterError("sole", point.tolist(), "below the hip, with the toe less than 90 degrees from forward")
    # The normal is (-sin yaw, cos yaw cos roll, cos yaw sin roll).
    hip_roll = np.arctan2(normal[:, 2], normal[:, 1])
    return hip_roll, np.arctan2(-normal[:, 0], np.sqrt(length**2 - normal[:, 0] ** 2))


def _plane_axes(hip_roll: np.ndarray, hip_yaw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The leg plane's forward and up directions in the base's axes."""
    cos, sin = np.cos(hip_roll), np.sin(hip_roll)
    forward = np.stack([np.cos(hip_yaw), np.sin(hip_yaw) * cos, np.sin(hip_yaw) * sin], axis=-1)
    return forward, np.stack([np.zeros_like(cos), -sin, cos], axis=-1)


def _knee(distance: np.ndarray, geometry: LegGeometry) -> np.ndarray:
    """Cosine rule, C^2 = A^2 + B^2 + 2 A B cos(knee), by the half angle, which stays exact near a straight leg."""
    longest, shortest = geometry.thigh + geometry.shank, abs(geometry.thigh - geometry.shank)
    far, near = float(np.max(distance, initial=shortest)), float(np.min(distance, initial=longest))
    if far > longest + ROUNDING:
        raise ReachError(far, longest)
    if near < shortest - ROUNDING:
        raise ReachError(near, shortest)
    spare = np.maximum((longest - distance) * (longest + distance), 0.0)
    return 2 * np.arctan2(np.sqrt(spare), np.sqrt(np.maximum((distance - shortest) * (distance + shortest), 0.0)))


def _dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ni->n", one, other)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return np.arctan2(np.sin(angle), np.cos(angle))
