"""Robots in flight: the controller, the plant's errors and MuJoCo's physics, many trials at a time."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numba
import numpy as np
from jaxtyping import Float

from jethr2.control import Controller, ankle_joint, substeps
from jethr2.errors import ParameterError, SimulationDiverged
from jethr2.estimation import noise_keys
from jethr2.layout import SIDES, fan_act_ids, fan_ctrl_ids, joint_ctrl_ids, joint_names, thrust_map
from jethr2.metrics import Criteria, Metrics, fresh_tracks, observe_commands, observe_states
from jethr2.perturbations import Errors, no_errors, perturbed_models
from jethr2.posture import Trim, takeoff_trim
from jethr2.trajectory import Trajectory

__all__ = ["Flight", "Pilot", "Trajectory", "fly", "simulate"]

if TYPE_CHECKING:
    import mujoco


@runtime_checkable
class Pilot(Protocol):
    """Anything that turns sensors into commands can fly the robot; `Controller` does."""

    period: float
    """s."""

    def step(self, t: float, sensordata: np.ndarray) -> np.ndarray:
        """Commands [n, nu] for sensors [n, S] at t."""
        ...


class Flight:
    """n robots in the air at the same time, one model each; advances by one control period.

    The trials share nothing but one MjData as scratch, into which each step writes everything that it reads; so a
    trial has the same bits in any company. The sensors that a controller sees are those of the last physics step, which
    MuJoCo computes at its beginning: at 2 ms they are 2 ms old.

    Attributes:
        time: of the present states, s.
        state: full physics states (time, qpos, qvel, act), [n, size].
        sensors: [n, S].
        commands: of the controller in the last period, [n, nu].
        tracks: figures so far, records of the type `metrics.TRACK`.
    """

    def __init__(
        self,
        models: Sequence[mujoco.MjModel],
        pilot: Pilot,
        qpos: Float[np.ndarray, " nq"],
        rest: Float[np.ndarray, " nu"],
        joint_zero: Float[np.ndarray, "n joints"],
        criteria: Criteria,
    ) -> None:
        """Puts every robot into the same posture, at rest and with its fans off.

        Args:
            models: one per trial, all of the same sizes.
            pilot: fresh: a `Controller` that was reset to n robots.
            qpos: where they start.
            rest: commands of the posture, from which effort counts.
            joint_zero: added to the joints' commands, rad.
            criteria: the height at which peaks stop to count.
        """
        import mujoco
        from mujoco.rollout import Rollout

        model = models[0]
        n, self._steps, self._dt = len(models), substeps(model, pilot.period), float(model.opt.timestep)
        self._models, self._data, self._pilot = list(models), mujoco.MjData(model), pilot
        self._rollout = Rollout(nthread=0)
        self._goal, self._nq = criteria.height, int(model.nq)
        self._rest, self._zero = np.array(rest), np.ascontiguousarray(joint_zero)
        self._joints, self._fans = joint_ctrl_ids(model), fan_ctrl_ids(model)
        places = dict(zip(joint_names(model), self._joints, strict=True))
        self._ankles = np.array([places[ankle_joint(model, side)] for side in SIDES])
        self._quadratic = thrust_map(model) == "quadratic"
        self.time, self._periods = 0.0, 0
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        self.state, self.sensors = np.empty((n, size)), np.empty((n, model.nsensordata))
        self.commands = np.zeros((n, model.nu))
        self._control = np.zeros((n, self._steps, model.nu))
        self._states = np.empty((n, self._steps, size))
        self._sensor_steps = np.empty((n, self._steps, model.nsensordata))
        self._start(qpos)
        self._initial = self.state[0].copy()
        self.tracks = fresh_tracks(np.tile(qpos, (n, 1)))

    def advance(self) -> None:
        """One control step and the physics until the next."""
        if isinstance(self._pilot, Controller):
            self._pilot.step_into(self.time, self.sensors, self.commands)
            lift_lost, saturated = self._pilot.memory["lift_lost"], self._pilot.memory["saturated"]
        else:
            self.commands[:] = self._pilot.step(self.time, self.sensors)
            lift_lost, saturated = np.zeros(len(self.commands)), np.zeros((len(self.commands), 3), np.int64)
        observe_commands(self.tracks, self.commands, self._rest, self._fans, self._ankles, lift_lost, saturated)
        _apply(
            self.commands,
            self._zero,
            self._joints,
            self._fans,
            self._quadratic,
            self.tracks,
            self.time,
            self._initial,
            self.state,
            self._control,
        )
        self._rollout.rollout(
            self._models,
            [self._data],
            self.state,
            self._control,
            skip_checks=True,
            nstep=self._steps,
            state=self._states,
            sensordata=self._sensor_steps,
        )
        observe_states(self.tracks, self._states, self._nq, self.time, self._dt, self._goal)
        self.state[:] = self._states[:, -1]
        self.sensors[:] = self._sensor_steps[:, -1]
        self._periods += 1
        self.time = self._periods * self._steps * self._dt

    def _start(self, qpos: np.ndarray) -> None:
        import mujoco

        for trial, model in enumerate(self._models):
            mujoco.mj_resetData(model, self._data)
            self._data.qpos[:] = qpos
            mujoco.mj_forward(model, self._data)
            self.sensors[trial] = self._data.sensordata
            mujoco.mj_getState(model, self._data, self.state[trial], mujoco.mjtState.mjSTATE_FULLPHYSICS.value)


def simulate(
    model: mujoco.MjModel,
    ctl: Pilot | None = None,
    duration: float = 3.0,
    errors: Errors | None = None,
    seed: int = 0,
    *,
    trim: Trim | None = None,
    trial: int = 0,
    criteria: Criteria | None = None,
    on_step: Callable[[Flight], Any] | None = None,
) -> Trajectory:
    """Flies one robot from standing on the ground.

    Args:
        model: of `load_model`.
        ctl: a `Controller`, which is reset; or anything with `period` and `step`; `Controller(model, trim)` where None.
        duration: s.
        errors: of one trial; none where None.
        seed: of the sensors' noise.
        trim: of `takeoff_trim`, found where None.
        trial: whose noise of that seed; with the errors of the same trial it is that trial of `monte_carlo`, to the bit.
        criteria: the height at which peaks stop to count.
        on_step: called before every control step, for instance to push the robot.

    Returns:
        The flight.

    Raises:
        ParameterError: a duration that holds no step, errors of more than one trial, a negative seed.
        SimulationDiverged: numbers ceased to be finite.
    """
    trim = trim or takeoff_trim(model)
    ctl = ctl or Controller(model, trim)
    steps = _count(duration, ctl.period)
    errors = errors or no_errors(1, joint_names(model))
    if len(errors) != 1:
        raise ParameterError("errors", f"{len(errors)} trials", "those of one trial")
    if seed < 0:
        raise ParameterError("seed", seed, "at least 0")
    if isinstance(ctl, Controller):
        ctl.reset(n=1, keys=noise_keys(seed, [trial]))
    models = perturbed_models(model, errors)
    flight = Flight(models, ctl, trim.qpos, trim.ctrl, errors.joint_zero, criteria or Criteria())
    arrays = _record(flight, ctl, model, steps, on_step)
    return Trajectory(arrays, Metrics.from_tracks(flight.tracks), ctl.period)


def fly(
    model: mujoco.MjModel,
    trim: Trim,
    ctl: Controller,
    errors: Errors,
    keys: np.ndarray,
    duration: float,
    criteria: Criteria,
) -> np.ndarray:
    """Flies the trials to the end and returns their records of the type `metrics.TRACK`; keeps no trajectories."""
    ctl.reset(n=len(errors), keys=keys)
    models = perturbed_models(model, errors)
    flight = Flight(models, ctl, trim.qpos, trim.ctrl, errors.joint_zero, criteria)
    for _ in range(_count(duration, ctl.period)):
        flight.advance()
    return flight.tracks


def _count(duration: float, period: float) -> int:
    """Control periods in the duration."""
    if not (math.isfinite(duration) and round(duration / period) >= 1):
        raise ParameterError("duration", duration, f"at least one control period of {period:g} s")
    return round(duration / period)


def _record(
    flight: Flight, ctl: Pilot, model: mujoco.MjModel, steps: int, on_step: Callable[[Flight], Any] | None
) -> dict[str, np.ndarray]:
    nq, nv, fans = int(model.nq), int(model.nv), fan_act_ids(model)
    states, ctrl = np.empty((steps + 1, flight.state.shape[1])), np.empty((steps + 1, int(model.nu)))
    estimate, lost, saturated = np.empty((steps + 1, 4)), np.zeros(steps + 1), np.zeros((steps + 1, 3), bool)
    for step in range(steps):
        if on_step is not None:
            on_step(flight)
        states[step] = flight.state[0]
        flight.advance()
        ctrl[step] = flight.commands[0]
        estimate[step] = ctl.estimates["quat"][0] if isinstance(ctl, Controller) else states[step, 4:8]
        if isinstance(ctl, Controller):
            lost[step], saturated[step] = ctl.memory["lift_lost"][0], ctl.memory["saturated"][0] != 0
        if not math.isnan(flight.tracks["diverged_at"][0]):
            raise SimulationDiverged(float(flight.tracks["diverged_at"][0]))
    states[steps] = flight.state[0]
    for array in (ctrl, estimate, lost, saturated):
        array[steps] = array[steps - 1]
    return {
        "time": np.arange(steps + 1) * ctl.period,
        "qpos": states[:, 1 : 1 + nq],
        "qvel": states[:, 1 + nq : 1 + nq + nv],
        "fan": states[:, 1 + nq + nv :][:, fans],
        "ctrl": ctrl,
        "lift_lost": lost,
        "saturated": saturated,
        "estimate": estimate,
    }


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _apply(commands, zero, joints, fans, quadratic, tracks, time, initial, state, control):
    """The plant's side of the commands: joint zeros, the fans' map, the same over the period.

    A trial that diverged stands at its start with its fans off from then on, which costs what any trial costs.
    """
    for i in range(len(commands)):
        for value in commands[i]:
            if not math.isfinite(value) and math.isnan(tracks[i].diverged_at):
                tracks[i].diverged_at = time
        if not math.isnan(tracks[i].diverged_at):
            state[i, :] = initial
            control[i, :, :] = 0.0
            continue
        for k in range(control.shape[1]):
            control[i, k, :] = commands[i]
            for j in range(len(joints)):
                control[i, k, joints[j]] += zero[i, j]
            for fan in fans:
                throttle = min(max(commands[i, fan], 0.0), 1.0)
                control[i, k, fan] = throttle * throttle if quadratic else throttle
