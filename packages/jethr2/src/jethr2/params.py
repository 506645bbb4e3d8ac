"""What describes the robot, its controller, its estimator and its errors; every field says where its value comes from.

Sources: A the paper's abstract, L the lab's public program, D derived, S assumed by the specification, M measured with
its prototype.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from math import radians
from typing import Literal

from jethr2.errors import InfeasibleThrust, ParameterError
from jethr2.quantities import Provenance, check, choice, interval, provenance, quantity

__all__ = ["ControllerParams", "ErrorParams", "EstimatorParams", "MPCParams", "Provenance", "RobotParams", "provenance"]

KILOGRAM_FORCE = 9.81
"""N, as the paper's 20 kgf is read; independent of the gravity that is simulated."""

Mode = Literal["none", "differential", "pitch_only", "yaw_only", "full"]
Allocation = Literal["closed_form", "qp", "pinv"]


@dataclass(frozen=True, kw_only=True)
class RobotParams:
    """The robot: lengths in m, masses in kg, angles in rad.

    Args:
        mass: total; what the legs and the waist fans do not weigh is the base's box.
        thrust_to_weight: full thrust of all four fans over the weight; excludes `fan_max_thrust`.
        fan_max_thrust: full thrust of one fan, N; None with `thrust_to_weight` None: a quarter of 20 kgf, 49.05 N.
        fan_time_constant: of the first-order lag from command to thrust, s; 0: none.
        fan_yaw_moment: reaction moment about a fan's axis per thrust, m; 0: stator vanes cancel the swirl.
        thrust_map: thrust over full thrust is the clipped throttle, or its square.
        strict: a thrust of at most the weight is an error instead of a warning.
        half_hip: half the distance between the hips.
        hip_drop: from the hip roll axis down to the hip pitch axis.
        thigh: from hip pitch axis to knee.
        shank: from knee to ankle axis.
        ankle_height: from the ankle axis down to the sole.
        toe_length: from below the ankle forward to the toe; also half the length of the sole.
        fan_half_distance: of the waist fans' axes from the base's middle, forward and back.
        waist_fan_height: of the waist fans' sites above the hip roll axes.
        foot_fan_drop: of a foot fan's site below the ankle axis.
        imu_height: above the hip roll axes.
        base_height: of the middle of the base's box above the hip roll axes.
        hip_roll_range: of the joint; likewise the other four.
        joint_kp: of every joint's position servo, N m/rad.
        joint_kv: N m s/rad.
        joint_force_limit: N m.
        joint_damping: N m s/rad.
        joint_armature: the harmonic drive's rotor as the joint sees it, kg m^2.
        friction: of the soles: sliding, torsional (m), rolling (m); contacts have three dimensions, so that the first
            acts.
        gravity: m/s^2.

    Raises:
        ParameterError: a value means nothing, or both `thrust_to_weight` and `fan_max_thrust` are given.

    Warns:
        InfeasibleThrust: the full thrust does not exceed the weight.
    """

    mass: float = quantity(17.0, "A", "kg")
    thrust_to_weight: float | None = quantity(None, "A")
    fan_max_thrust: float | None = quantity(None, "A", "N")
    fan_time_constant: float = quantity(0.10, "S", "s", "at least 0")
    fan_yaw_moment: float = quantity(0.0, "S", "m", "finite")
    thrust_map: Literal["linear", "quadratic"] = choice("linear", "S", "linear", "quadratic")
    strict: bool = choice(False, "S", False, True)

    half_hip: float = quantity(0.1168, "L", "m")
    hip_drop: float = quantity(0.082, "L", "m")
    thigh: float = quantity(0.105, "L", "m")
    shank: float = quantity(0.272, "L", "m")
    ankle_height: float = quantity(0.100, "L", "m")
    toe_length: float = quantity(0.100, "L", "m")
    fan_half_distance: float = quantity(0.15, "L", "m")
    waist_fan_height: float = quantity(0.02, "S", "m", "finite")
    foot_fan_drop: float = quantity(0.04, "S", "m", "finite")
    imu_height: float = quantity(0.05, "S", "m", "finite")
    base_height: float = quantity(0.08, "S", "m", "finite")

    base_half_size: tuple[float, float, float] = quantity((0.10, 0.10, 0.10), "S", "m")
    hip_roll_half_size: tuple[float, float] = quantity((0.035, 0.035), "S", "m")
    hip_yaw_half_size: tuple[float, float, float] = quantity((0.035, 0.035, 0.03), "S", "m")
    thigh_radius: float = quantity(0.04, "S", "m")
    shank_radius: float = quantity(0.025, "S", "m")
    fan_radius: float = quantity(0.055, "S", "m")
    waist_fan_half_length: float = quantity(0.05, "S", "m")
    foot_fan_half_length: float = quantity(0.04, "S", "m")
    sole_half_width: float = quantity(0.04, "S", "m")
    sole_half_thickness: float = quantity(0.01, "S", "m")

    waist_fan_mass: float = quantity(0.60, "S", "kg")
    hip_roll_mass: float = quantity(0.60, "S", "kg")
    hip_yaw_mass: float = quantity(0.55, "S", "kg")
    thigh_mass: float = quantity(0.90, "S", "kg")
    shank_mass: float = quantity(0.55, "S", "kg")
    foot_mass: float = quantity(0.90, "S", "kg")

    hip_roll_range: tuple[float, float] = interval((-0.6, 0.6), "S", "rad")
    hip_yaw_range: tuple[float, float] = interval((-0.8, 0.8), "S", "rad")
    hip_pitch_range: tuple[float, float] = interval((-1.6, 1.6), "S", "rad")
    knee_range: tuple[float, float] = interval((-0.2, 2.4), "S", "rad")
    ankle_pitch_range: tuple[float, float] = interval((-1.2, 1.2), "S", "rad")
    joint_kp: float = quantity(120.0, "L", "N m/rad", "at least 0")
    joint_kv: float = quantity(3.0, "S", "N m s/rad", "at least 0")
    joint_force_limit: float = quantity(36.0, "S", "N m")
    joint_damping: float = quantity(0.5, "S", "N m s/rad", "at least 0")
    joint_armature: float = quantity(0.05, "S", "kg m^2", "at least 0")
    friction: tuple[float, float, float] = quantity((0.8, 0.02, 0.001), "S", "1, m, m", "at least 0")
    gravity: float = quantity(9.81, "D", "m/s^2")

    def __post_init__(self) -> None:
        check(self)
        if self.thrust_to_weight is not None and self.fan_max_thrust is not None:
            raise ParameterError("fan_max_thrust", self.fan_max_thrust, "left out where thrust_to_weight is given")
        if not self.base_mass > 0:
            rest = self.mass - self.base_mass
            raise ParameterError("mass", self.mass, f"more than the legs' and waist fans' {rest:.4g} kg")
        if 2 * self.sole_half_thickness >= self.ankle_height:
            raise ParameterError("sole_half_thickness", self.sole_half_thickness, "less than half of ankle_height")
        full, weight = 4 * self.max_thrust, self.weight
        if full <= weight:
            message = f"a full thrust of {full:.2f} N cannot lift a weight of {weight:.2f} N"
            if self.strict:
                given = "thrust_to_weight" if self.thrust_to_weight is not None else "fan_max_thrust"
                raise ParameterError(given, getattr(self, given), f"enough to lift the robot: {message}")
            warnings.warn(message, InfeasibleThrust, stacklevel=3)

    @property
    def base_mass(self) -> float:
        """Mass of the base's box, kg: what remains of the total."""
        leg = self.hip_roll_mass + self.hip_yaw_mass + self.thigh_mass + self.shank_mass + self.foot_mass
        return self.mass - 2 * (leg + self.waist_fan_mass)

    @property
    def weight(self) -> float:
        """N."""
        return self.mass * self.gravity

    @property
    def max_thrust(self) -> float:
        """Full thrust of one fan, N."""
        if self.thrust_to_weight is not None:
            return self.thrust_to_weight * self.weight / 4
        return 20 * KILOGRAM_FORCE / 4 if self.fan_max_thrust is None else self.fan_max_thrust


@dataclass(frozen=True, kw_only=True)
class MPCParams:
    """The lab's model of pitch and speed, with its weights and bounds; the state is x, dx/dt, th, dth/dt, th nose up.

    Args:
        mass: kg.
        inertia: about the pitch axis, kg m^2.
        arm: half distance of the waist fans, m.
        step: s.
        horizon: steps.
        state_weights: of the four states; the lab program's own default is (0, 1, 50, 1).
        input_weight: of every input.
        fan_range: of the two waist fans, N.
        force_range: of the horizontal force, N.
        tilt_limit: of the feet, rad.
        pitch_rate_offset: added to the reference, rad/s; the lab has -10 deg/s to trim its robot.
    """

    mass: float = quantity(17.0, "L", "kg")
    inertia: float = quantity(0.5, "L", "kg m^2")
    arm: float = quantity(0.15, "L", "m")
    step: float = quantity(0.05, "L", "s")
    horizon: int = quantity(5, "L", "")
    state_weights: tuple[float, float, float, float] = quantity((0.0, 10.0, 20000.0, 0.0), "L", "", "at least 0")
    input_weight: float = quantity(1e-3, "L", "")
    fan_range: tuple[float, float] = interval((10.0, 50.0), "L", "N")
    force_range: tuple[float, float] = interval((-20.0, 20.0), "L", "N")
    tilt_limit: float = quantity(radians(40), "L", "rad")
    pitch_rate_offset: float = quantity(0.0, "S", "rad/s", "finite")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ControllerParams:
    """The control law; defaults are one first guess, not tuned.

    Args:
        mode: `none` keeps the feet fixed and the fans equal; `differential` has fans only; `pitch_only` and `yaw_only`
            turn the feet for one axis; `full` for both.
        allocation: how a wrench becomes throttles and foot angles.
        control_period: s.
        natural_frequency: of roll, pitch, yaw, rad/s.
        damping: ratio of the critical one.
        integral_gain: of the integral, over the proportional gain, 1/s.
        integral_limit: of the integrated angles, rad s.
        liftoff: rise of the base from which on the integrators run, m.
        euler_limit: tilt from which on the error is the attitude quaternion's logarithm, rad.
        u0: collective throttle.
        ramp: time from 0 to `u0`, s; foot angles grow with it.
        foot_angle_sym: limit of the feet's common angle, rad.
        foot_angle_diff: limit of their opposite angles, rad.
        differential_limit: of the throttle added to one fan of a pair and taken from the other.
        thrust_floor: share of the full thrust below which foot angles do not grow further.
        height_hold: hold `height_reference` by the collective, within `throttle_range`.
        height_reference: rise of the base, m.
        height_kp: throttle per m.
        height_ki: throttle per m s.
        height_kd: throttle per m/s.
        throttle_range: of the collective that holds the height.
        velocity_hold: hold `velocity_reference` by the pitch reference.
        velocity_reference: forward, m/s.
        velocity_kp: rad per m/s.
        velocity_ki: rad per m.
        pitch_reference_limit: rad.
        pitch_mpc: pitch and speed by `mpc` instead of the attitude law's pitch axis.
        mpc: the lab's model.

    Raises:
        ParameterError: naming the field.
    """

    mode: Mode = choice("full", "A", "none", "differential", "pitch_only", "yaw_only", "full")  # noqa: RUF009 -- a Literal
    allocation: Allocation = choice("closed_form", "S", "closed_form", "qp", "pinv")  # noqa: RUF009 -- a Literal
    control_period: float = quantity(0.002, "L", "s")
    natural_frequency: tuple[float, float, float] = quantity((6.0, 6.0, 4.0), "S", "rad/s")
    damping: float = quantity(0.8, "S", "", "at least 0")
    integral_gain: float = quantity(1.0, "S", "1/s", "at least 0")
    integral_limit: float = quantity(0.3, "S", "rad s", "at least 0")
    liftoff: float = quantity(0.01, "S", "m", "at least 0")
    euler_limit: float = quantity(radians(60), "S", "rad")
    u0: float = quantity(1.0, "S", "", "in (0, 1]")
    ramp: float = quantity(0.5, "S", "s", "at least 0")
    foot_angle_sym: float = quantity(radians(15), "S", "rad", "at least 0")
    foot_angle_diff: float = quantity(radians(12), "S", "rad", "at least 0")
    differential_limit: float = quantity(0.4, "S", "", "in [0, 1]")
    thrust_floor: float = quantity(0.3, "S", "", "in (0, 1]")
    height_hold: bool = choice(False, "S", False, True)
    height_reference: float = quantity(1.0, "S", "m")
    height_kp: float = quantity(0.3, "S", "1/m", "at least 0")
    height_ki: float = quantity(0.05, "S", "1/(m s)", "at least 0")
    height_kd: float = quantity(0.3, "S", "s/m", "at least 0")
    throttle_range: tuple[float, float] = interval((0.7, 1.0), "S")
    velocity_hold: bool = choice(False, "S", False, True)
    velocity_reference: float = quantity(0.0, "S", "m/s", "finite")
    velocity_kp: float = quantity(0.05, "S", "rad s/m", "at least 0")
    velocity_ki: float = quantity(0.0, "S", "rad/m", "at least 0")
    pitch_reference_limit: float = quantity(radians(5), "S", "rad", "at least 0")
    pitch_mpc: bool = choice(False, "S", False, True)
    mpc: MPCParams = field(default_factory=MPCParams)

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.throttle_range[0] < self.throttle_range[1] <= 1:
            raise ParameterError("throttle_range", self.throttle_range, "two throttles of [0, 1], the greater last")


@dataclass(frozen=True, kw_only=True)
class EstimatorParams:
    """How attitude and rate become known.

    Args:
        mode: `truth`; `noisy_truth` adds noise to it; `mahony` filters gyro and accelerometer.
        kp: of the correction by the accelerometer, 1/s.
        ki: of the gyro bias, 1/s^2.
        gate: the greatest difference of the measured acceleration from 1 g that corrects in flight.
        gated: whether the gate is applied.
        lowpass: time constant of the rate's filter, s.
        attitude_sd: rad (`noisy_truth`).
        gyro_sd: rad/s.
        gyro_bias_sd: rad/s, constant over a trial (`mahony`).
        accelerometer_sd: m/s^2 (`mahony`).
        zero_samples: that are averaged while standing.
    """

    mode: Literal["truth", "noisy_truth", "mahony"] = choice("noisy_truth", "S", "truth", "noisy_truth", "mahony")
    kp: float = quantity(2.0, "S", "1/s", "at least 0")
    ki: float = quantity(0.1, "S", "1/s^2", "at least 0")
    gate: float = quantity(0.05, "S", "g", "at least 0")
    gated: bool = choice(True, "S", False, True)
    lowpass: float = quantity(0.008, "S", "s", "at least 0")
    attitude_sd: float = quantity(radians(0.1), "S", "rad", "at least 0")
    gyro_sd: float = quantity(0.01, "S", "rad/s", "at least 0")
    gyro_bias_sd: float = quantity(0.005, "S", "rad/s", "at least 0")
    accelerometer_sd: float = quantity(0.1, "S", "m/s^2", "at least 0")
    zero_samples: int = quantity(100, "L", "")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ErrorParams:
    """What differs from the model in a trial: standard deviations at an error scale of 1.

    Args:
        com_shift_sd: of the whole robot's centre of mass, x and y, m.
        mass_sd: kg, on the base.
        joint_zero_sd: per joint, rad, added to the commands.
        fan_gain_sd: per fan, share of its thrust.
        distribution: `uniform` has the same standard deviation; `truncated` is normal within `truncation` of them.
        truncation: standard deviations.
    """

    com_shift_sd: float = quantity(0.005, "S", "m", "at least 0")
    mass_sd: float = quantity(0.2, "S", "kg", "at least 0")
    joint_zero_sd: float = quantity(radians(1.5), "S", "rad", "at least 0")
    fan_gain_sd: float = quantity(0.03, "S", "", "at least 0")
    distribution: Literal["normal", "uniform", "truncated"] = choice("normal", "S", "normal", "uniform", "truncated")
    truncation: float = quantity(2.0, "S", "")

    def __post_init__(self) -> None:
        check(self)
