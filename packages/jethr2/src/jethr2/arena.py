"""Robots that start and end each for itself, on the physics of `simulation`: what the learning environments stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jethr2.control import Controller, substeps
from jethr2.errors import ParameterError
from jethr2.layout import (
    fan_act_ids,
    fan_ctrl_ids,
    joint_ctrl_ids,
    joint_dof_ids,
    joint_names,
    joint_qpos_ids,
    thrust_map,
)
from jethr2.metrics import LARGEST
from jethr2.perturbations import Errors, no_errors, perturbed_models
from jethr2.posture import Trim
from jethr2.robot import fan_effort

if TYPE_CHECKING:
    import mujoco

REACH = 0.3
"""What an action of 1 adds to a joint's command, rad, and in residual control to a throttle [S]."""


class Arena:
    """n robots under actions in [-1, 1]: one per joint in the model's order, then front, back, left, right fan.

    In joint control they move the joints about the take-off posture and the throttles over 0 to 1; in residual control
    they add to the commands of a `Controller`, so that 0 is its flight. A robot's numbers depend on its own start and
    actions alone, whatever the others do.

    Attributes:
        model: without errors.
        rise: of each base over its start, m.
        commands: before the plant's errors, [n, nu].
        failed: whose last step gave numbers that are not finite; they keep the state before it.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        trim: Trim,
        n: int,
        *,
        control: str,
        period: float,
        pilot: Controller,
        nthread: int = 1,
    ) -> None:
        """Puts n robots without errors on the ground.

        Args:
            model: of `load_model`.
            trim: of `takeoff_trim`.
            n: robots.
            control: `joint` or `residual`.
            period: of an action, s; a multiple of the pilot's.
            pilot: whose commands residual control adds to.
            nthread: threads that step them.

        Raises:
            ParameterError: counts below 1, a period that is no multiple.
        """
        import mujoco
        from mujoco.rollout import Rollout

        for name, value in (("num_envs", n), ("nthread", nthread)):
            if value < 1:
                raise ParameterError(name, value, "at least 1")
        self._ticks = round(period / pilot.period)
        if self._ticks < 1 or abs(self._ticks * pilot.period - period) > 1e-9:
            raise ParameterError("period", period, f"a multiple of the control period of {pilot.period:g} s")
        self.model, self._trim, self._pilot, self._control = model, trim, pilot, control
        self._steps = substeps(model, pilot.period)
        self._rollout = Rollout(nthread=nthread if nthread > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(nthread)]
        self._joints, self._fans = joint_ctrl_ids(model), fan_ctrl_ids(model)
        self._places = np.concatenate([self._joints, self._fans])
        hinges = [model.joint(name) for name in joint_names(model)]
        ranges = [joint.range if model.jnt_limited[joint.id] else (-np.inf, np.inf) for joint in hinges]
        self._low, self._high = np.array(ranges).T
        self._map = thrust_map(model)
        self._columns = joint_qpos_ids(model) + 1, joint_dof_ids(model) + 1 + model.nq
        self._fan_columns = fan_act_ids(model) + 1 + model.nq + model.nv
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        self._state, self._sensors = np.empty((n, size)), np.empty((n, model.nsensordata))
        self.commands, self.failed = np.tile(trim.ctrl, (n, 1)), np.zeros(n, bool)
        self._zero, self._counts = np.zeros((n, len(self._joints))), np.zeros(n, np.int64)
        self._models = [model] * n
        pilot.reset(n=n)
        for row in range(n):
            self.start(row, no_errors(1, joint_names(model)), np.uint64(0))

    def start(self, row: int, errors: Errors, key: np.uint64) -> None:
        """Puts a robot back on the ground, with the errors of one trial and the key of its noise (0: no noise)."""
        import mujoco

        if len(errors) != 1:
            raise ParameterError("errors", f"{len(errors)} trials", "those of one trial")
        (self._models[row],) = perturbed_models(self.model, errors)
        self._zero[row] = errors.joint_zero[0]
        data = self._data[0]
        mujoco.mj_resetData(self._models[row], data)
        data.qpos[:] = self._trim.qpos
        mujoco.mj_forward(self._models[row], data)
        self._sensors[row] = data.sensordata
        mujoco.mj_getState(self._models[row], data, self._state[row], mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        mask, keys = np.zeros(len(self._models), bool), self._pilot.estimates["key"].copy()
        mask[row], keys[row] = True, key
        self._pilot.reset(mask, keys=keys)
        self.commands[row], self._counts[row], self.failed[row] = self._trim.ctrl, 0, False

    def advance(self, rows: Int[np.ndarray, " rows"], actions: Float[np.ndarray, "n actions"]) -> None:
        """Steps some of the robots, or none, through one action."""
        if len(rows) == 0:
            return
        ticks, steps = self._ticks, self._steps
        if self._control == "joint":
            ticks, steps = 1, ticks * steps  # the commands stay, so that one call does
        before = self._state[rows]
        for _ in range(ticks):
            self._command(actions)
            control = np.repeat(self._plant(rows)[:, None], steps, axis=1)
            states, sensors = self._rollout.rollout(
                [self._models[row] for row in rows], self._data, self._state[rows], control, nstep=steps
            )
            self._state[rows], self._sensors[rows] = states[:, -1], sensors[:, -1]
            self._counts[rows] += steps
        self.failed[rows] = ~(np.abs(self._state[rows]) < LARGEST).all(axis=1)
        self._state[rows] = np.where(self.failed[rows, None], before, self._state[rows])

    @property
    def time(self) -> Float[np.ndarray, " n"]:
        """Of each robot since its start, s."""
        return self._counts * float(self.model.opt.timestep)

    @property
    def qpos(self) -> Float[np.ndarray, "n nq"]:
        """Positions; base first."""
        return self._state[:, 1 : 1 + self.model.nq]

    @property
    def qvel(self) -> Float[np.ndarray, "n nv"]:
        """Velocities; of the base in the world, its rates in the body."""
        return self._state[:, 1 + self.model.nq : 1 + self.model.nq + self.model.nv]

    @property
    def rise(self) -> Float[np.ndarray, " n"]:
        """Of each base over its start, m."""
        return self._state[:, 3] - self._trim.qpos[2]

    @property
    def joints(self) -> tuple[Float[np.ndarray, "n joints"], Float[np.ndarray, "n joints"]]:
        """Angles and rates of the joints, rad and rad/s."""
        return self._state[:, self._columns[0]], self._state[:, self._columns[1]]

    @property
    def fans(self) -> Float[np.ndarray, "n 4"]:
        """States of the fans, as a share of the full thrust."""
        return self._state[:, self._fan_columns]

    @property
    def offsets(self) -> tuple[Float[np.ndarray, "n joints"], Float[np.ndarray, "n 4"]]:
        """The last commands: of the joints about the posture, rad, and of the fans about their mean."""
        throttle = self.commands[:, self._fans]
        joints = self.commands[:, self._joints] - self._trim.ctrl[self._joints]
        mean = 0.25 * (throttle[:, 0] + throttle[:, 1] + throttle[:, 2] + throttle[:, 3])
        return joints, throttle - mean[:, None]

    def _command(self, actions: np.ndarray) -> None:
        joints = len(self._joints)
        if self._control == "residual":
            times = self._counts * float(self.model.opt.timestep)
            self._pilot.step_into(times, self._sensors, self.commands)
            self.commands[:, self._places] += REACH * actions
        else:
            self.commands[:, self._joints] = self._trim.ctrl[self._joints] + REACH * actions[:, :joints]
            self.commands[:, self._fans] = 0.5 + 0.5 * actions[:, joints:]
        self.commands[:, self._joints] = np.clip(self.commands[:, self._joints], self._low, self._high)
        self.commands[:, self._fans] = np.clip(self.commands[:, self._fans], 0.0, 1.0)

    def _plant(self, rows: np.ndarray) -> np.ndarray:
        """Commands as the robots carry them out: joint zeros, the fans' map."""
        control = self.commands[rows]
        control[:, self._joints] += self._zero[rows]
        control[:, self._fans] = fan_effort(control[:, self._fans], self._map)
        return control
