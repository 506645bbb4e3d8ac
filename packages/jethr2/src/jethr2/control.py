"""A controller for one robot or many: sensors in, commands out (spec 2.5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt64

from jethr2.allocation import allocation_plan, limits_of
from jethr2.errors import ModelError, ParameterError
from jethr2.estimation import ESTIMATE, estimator_constants, fresh_estimates
from jethr2.law import LAW, MEMORY, control_rows
from jethr2.layout import (
    SIDES,
    fan_actuator_ids,
    fan_ctrl_ids,
    joint_ctrl_ids,
    joint_names,
    pitch_chain,
    sensor_columns,
    thrust_map,
)
from jethr2.mpc import Programme, programme
from jethr2.params import ControllerParams, EstimatorParams
from jethr2.posture import Trim

if TYPE_CHECKING:
    import mujoco

_NO_PROGRAMME = Programme(np.zeros((0, 0)), np.zeros((0, 4)), np.zeros((0, 4)), 0.0, np.zeros(0), np.zeros(0))


class Controller:
    """Holds the attitude of n robots while they take off; geometry, inertia and limits come from the model.

    Attributes:
        params: gains, limits, mode.
        estimator: how attitude is known.
        period: between steps, s.
        memory: one record of the type `law.MEMORY` per robot; none before the first step.
        estimates: one record of the type `estimation.ESTIMATE` per robot.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        trim: Trim,
        params: ControllerParams | None = None,
        estimator: EstimatorParams | None = None,
    ) -> None:
        """Reads the model once; it is not kept.

        Args:
            model: of `load_model`.
            trim: of `takeoff_trim`.
            params: gains, limits, mode.
            estimator: how attitude is known. Noise is added only to robots that `reset` gave a key, as simulations do;
                without one, real or recorded sensors are used as they are.

        Raises:
            ParameterError: a foot angle that the ankle's range does not hold, a control period that is no multiple of
                the model's time step.
        """
        self.params = params or ControllerParams()
        self.estimator = estimator or EstimatorParams()
        self.period = self.params.control_period
        self.sensor_width, self.ctrl_width = int(model.nsensordata), int(model.nu)
        gravity = -float(model.opt.gravity[2])
        self._law = law_of(model, trim, self.params)
        limits = limits_of(self.params, fan_thrust(model))
        self._plan = allocation_plan(trim.fan_arms, limits, self.params.allocation, self.params.mode)
        self._estimator = estimator_constants(self.estimator, self.estimator.mode, gravity)
        self._programme = programme(self.params.mpc) if self.params.pitch_mpc else _NO_PROGRAMME
        self._rest = np.array(trim.ctrl)
        self.memory, self.estimates = np.zeros(0, MEMORY), np.zeros(0, ESTIMATE)
        self._times = np.zeros(0)

    @property
    def constants(self) -> tuple[np.void, np.void, np.void, Float[np.ndarray, " nu"]]:
        """Records of the types LAW, PLAN and ESTIMATOR, and the commands of the posture: all that no flight changes."""
        return self._law, self._plan, self._estimator, self._rest

    def step(
        self, t: float | Float[np.ndarray, " n"], sensordata: Float[np.ndarray, "n S"]
    ) -> Float[np.ndarray, "n nu"]:
        """One control step.

        Args:
            t: since the start of the trial, s; of each robot where they differ.
            sensordata: as `mj_step` leaves it, one row per robot.

        Returns:
            Commands: joint angles, rad, and throttles.

        Raises:
            ParameterError: rows of another width, or another number of them than before.
        """
        if len(self.memory) == 0:
            self.reset(n=len(sensordata))
        if sensordata.shape != (len(self.memory), self.sensor_width):
            raise ParameterError("sensordata", sensordata.shape, f"of shape {(len(self.memory), self.sensor_width)}")
        ctrl = np.empty((len(sensordata), self.ctrl_width))
        self.step_into(t, sensordata, ctrl)
        return ctrl

    def step_into(self, t: float | np.ndarray, sensordata: np.ndarray, ctrl: np.ndarray) -> None:
        """As `step`, into an array of the caller's and unchecked: for loops that own their arrays."""
        self._times[:] = t
        control_rows(
            self._law,
            self._plan,
            self._estimator,
            self._programme,
            self._rest,
            self._times,
            sensordata,
            self.memory,
            self.estimates,
            ctrl,
        )

    def reset(
        self,
        mask: Bool[np.ndarray, " n"] | None = None,
        *,
        n: int | None = None,
        keys: UInt64[np.ndarray, " n"] | None = None,
    ) -> None:
        """Starts the robots in the mask anew, or all.

        Args:
            mask: which.
            n: their number from now on; it forgets the robots there were.
            keys: of their noise, see `estimation.noise_keys`; a robot without one keeps that which it had.
        """
        if n is not None and n < 1:
            raise ParameterError("n", n, "at least 1")
        if n is not None:
            self.memory, self.estimates = np.zeros(n, MEMORY), np.zeros(n, ESTIMATE)
            self._times = np.zeros(n)
        chosen = np.ones(len(self.memory), bool) if mask is None else mask
        for name, value in (("mask", chosen), ("keys", keys)):
            if value is not None and len(value) != len(self.memory):
                raise ParameterError(name, f"{len(value)} entries", f"one for each of {len(self.memory)} robots")
        self.memory[chosen] = np.zeros((), MEMORY)
        self.estimates[chosen] = fresh_estimates(self.estimates["key"] if keys is None else keys)[chosen]

    @property
    def lift_lost(self) -> Float[np.ndarray, " n"]:
        """Thrust of the collective that limits took away in the last step, N."""
        return self.memory["lift_lost"].copy()

    @property
    def saturated(self) -> Bool[np.ndarray, "n 3"]:
        """Whether roll, pitch and yaw were at a limit in the last step."""
        return self.memory["saturated"] != 0


def law_of(model: mujoco.MjModel, trim: Trim, params: ControllerParams) -> np.void:
    """Gains, limits and places as one record of the type `law.LAW`."""
    law = np.zeros(1, LAW)[0]
    inertia, wn = np.diag(trim.inertia), np.array(params.natural_frequency)
    law["kp"] = inertia * wn**2
    law["kd"] = 2 * params.damping * wn * inertia
    law["ki"] = params.integral_gain * law["kp"]
    same = {*(LAW.names or ())} & {*params.__dataclass_fields__} - {"pitch_mpc", "height_hold", "velocity_hold"}
    for name in same:
        law[name] = getattr(params, name)
    law["height_hold"], law["velocity_hold"] = params.height_hold, params.velocity_hold
    law["euler_cosine"] = math.cos(params.euler_limit)
    law["period"] = params.control_period
    law["hover"] = trim.ctrl[fan_ctrl_ids(model)].mean()
    lag = fan_lag(model)
    law["fan_decay"] = math.exp(-params.control_period / lag) if lag > 0 else 0.0
    law["quadratic"] = thrust_map(model) == "quadratic"
    law["pitch_mpc"], law["mpc_arm"] = params.pitch_mpc, params.mpc.arm
    law["mpc_rate_offset"] = params.mpc.pitch_rate_offset
    law["mpc_steps"] = max(1, round(params.mpc.step / params.control_period))
    columns = sensor_columns(model)
    for name in ("quat", "gyro", "accel", "pos", "vel"):
        law[name] = columns[name].start
    law["fans"] = fan_ctrl_ids(model)
    _place_ankles(law, model, trim, params)
    substeps(model, params.control_period)
    return law


def substeps(model: mujoco.MjModel, period: float) -> int:
    """Physics steps of one control period.

    Raises:
        ParameterError: the period is no multiple of the time step.
    """
    count = round(period / model.opt.timestep)
    if count < 1 or abs(count * model.opt.timestep - period) > 1e-9:
        raise ParameterError("control_period", period, f"a multiple of the time step of {model.opt.timestep:g} s")
    return count


def fan_thrust(model: mujoco.MjModel) -> float:
    """Full thrust of one fan, the mean of the four, N."""
    fans = fan_actuator_ids(model)
    return float((model.actuator_gainprm[fans, 0] * model.actuator_gear[fans, 2]).mean())


def fan_lag(model: mujoco.MjModel) -> float:
    """Time constant of the fans, the mean of the four, s; 0 without a lag."""
    fans = fan_actuator_ids(model)
    return float(np.where(model.actuator_dyntype[fans] == 0, 0.0, model.actuator_dynprm[fans, 0]).mean())


def ankle_joint(model: mujoco.MjModel, side: str) -> str:
    """Name of the last hinge before a foot's fan that turns it about the body's y axis.

    Raises:
        ModelError: there is none.
    """
    chain = pitch_chain(model, side)
    if not chain:
        raise ModelError(f"no joint turns {side}_fan about the body's y axis, so its thrust cannot be vectored")
    return chain[-1]


def _place_ankles(law: np.void, model: mujoco.MjModel, trim: Trim, params: ControllerParams) -> None:
    """The last pitch joint before each foot's fan, which turns its thrust, and the range of it."""
    places = dict(zip(joint_names(model), joint_ctrl_ids(model), strict=True))
    for foot, side in enumerate(SIDES):
        name = ankle_joint(model, side)
        joint = model.joint(name)
        low, high = joint.range if model.jnt_limited[joint.id] else (-math.inf, math.inf)
        law["ankles"][foot], law["ankle_low"][foot], law["ankle_high"][foot] = places[name], low, high
        rest = trim.ctrl[places[name]]
        for field in ("foot_angle_sym", "foot_angle_diff"):
            angle = getattr(params, field)
            if not low <= rest - angle <= rest + angle <= high:
                room = min(rest - low, high - rest)
                raise ParameterError(
                    field, angle, f"at most the {room:.4g} rad that {name} has left beside its posture"
                )
