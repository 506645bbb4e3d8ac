"""The take-off to learn: a Gymnasium environment, and a vector environment whose robots fly in one batch (spec 6)."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from jaxtyping import Float

from jethr2.arena import Arena
from jethr2.control import Controller
from jethr2.errors import JetHR2Error, ParameterError
from jethr2.estimation import noise_keys
from jethr2.kernels import upright
from jethr2.layout import joint_names
from jethr2.params import ErrorParams, RobotParams
from jethr2.perturbations import Errors, no_errors, sample_errors
from jethr2.posture import takeoff_trim
from jethr2.rendering import Camera
from jethr2.robot import load_model

try:
    import gymnasium
    from gymnasium.utils import seeding
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ModuleNotFoundError:
    raise JetHR2Error("the environments need gymnasium", "pip install 'jethr2[gym]'") from None

ID = "JetHR2-TakeOff-v0"
EPISODE = 3.0
"""Length of an episode of the registered environment, s."""

PERIOD = 0.01
"""Of an action, s [S]."""

OVERTURNED = math.radians(60)
"""Tilt that ends an episode."""

FALLEN = -0.2
"""Rise of the base that ends an episode: the legs have folded, m [S]."""


@dataclass(frozen=True, kw_only=True)
class RewardWeights:
    """Weights of the reward's terms, all assumed [S]; the reward is their sum.

    Attributes:
        height: per m gained, up to `goal`; what is lost again counts as negative.
        goal: m above the start.
        tilt: per rad^2 and s.
        yaw_rate: about the vertical, per (rad/s)^2 and s.
        effort: per s, of the joints' mean squared command about the posture, rad^2, and the throttles' variance.
    """

    height: float = 10.0
    goal: float = 1.0
    tilt: float = 1.0
    yaw_rate: float = 1.0
    effort: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ParameterError(name, value, "finite and at least 0")


def register() -> None:
    """Makes `JetHR2-TakeOff-v0` known to `gymnasium.make` and `gymnasium.make_vec`; a second call changes nothing.

    Importing this module does it, too, so that `gymnasium.make("jethr2.environments:JetHR2-TakeOff-v0")` needs no call;
    Gymnasium 1 reads no entry points.
    """
    if ID not in gymnasium.registry:
        gymnasium.register(
            ID,
            entry_point=f"{__name__}:TakeOffEnv",
            vector_entry_point=f"{__name__}:TakeOffVectorEnv",
            max_episode_steps=round(EPISODE / PERIOD),
        )


class TakeOffEnv(gymnasium.Env):
    """One robot that stands on the ground and is to rise upright.

    Action: [-1, 1] per joint (0.3 rad about the posture, or about the controller's command) and fan (throttle 0 to 1,
    or 0.3 about the controller's). Observation: joint angles and rates, gravity's direction and rates in the body, rise,
    velocity in the body, fan states, the action before. Ends at a tilt of 60 deg or when the legs fold.

    `info` holds `reward_terms`, `height` (m), `tilt` (rad), `diverged`, and after a reset `trial_seed`: with it,
    `sample_errors(1, seed=trial_seed, scale=...)` are the errors, and `simulate(..., seed=trial_seed)` has the noise.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / PERIOD)}  # noqa: RUF012 -- Gymnasium's name

    def __init__(
        self,
        control: str = "joint",
        randomize: bool | float = False,
        render_mode: str | None = None,
        *,
        robot: RobotParams | str | Path | None = None,
        controller: Controller | None = None,
        errors: ErrorParams | None = None,
        weights: RewardWeights | None = None,
        period: float = PERIOD,
    ) -> None:
        """Loads the robot.

        Args:
            control: `joint`, or `residual` to a controller's commands.
            randomize: draw errors and noise at every reset; a number scales the errors.
            render_mode: `rgb_array` or None.
            robot: parameters, or a file for `load_model`.
            controller: for residual control; the default one where None.
            errors: their standard deviations.
            weights: of the reward.
            period: of an action, s.
        """
        self.render_mode = _checked_mode(render_mode)
        self._task = Task(1, control, randomize, robot, controller, errors, weights, period, nthread=1)
        self.observation_space, self.action_space = self._task.observation_space, self._task.action_space
        self._camera: Camera | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode; `options={"errors": Errors}` gives the errors of one trial, None of them no errors."""
        super().reset(seed=seed)
        trial_seed = self._task.start(0, self.np_random, _given_errors(options))
        return self._task.observations()[0], {"trial_seed": trial_seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One action."""
        terms, terminated, facts = self._task.step(np.zeros(1, np.int64), np.asarray(action)[None])
        info: dict[str, Any] = {name: values[0].item() for name, values in facts.items()}
        info["reward_terms"] = {name: float(values[0]) for name, values in terms.items()}
        return self._task.observations()[0], float(_total(terms)[0]), bool(terminated[0]), False, info

    def render(self) -> np.ndarray | None:
        """The robot from the side as an image [height, width, 3], uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        self._camera = self._camera or Camera(self._task.arena.model)
        return self._camera.image(self._task.arena.qpos[0])

    def close(self) -> None:
        """Gives the renderer back."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None


class TakeOffVectorEnv(VectorEnv):
    """n robots in one batch; each has the numbers that `TakeOffEnv` has for its seed (seed + its place) and actions.

    A robot whose episode ended starts anew in the next step, whose action it ignores (Gymnasium's `NEXT_STEP`).
    """

    metadata = {**TakeOffEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        control: str = "joint",
        randomize: bool | float = False,
        render_mode: str | None = None,
        *,
        max_episode_steps: int | None = None,
        robot: RobotParams | str | Path | None = None,
        controller: Controller | None = None,
        errors: ErrorParams | None = None,
        weights: RewardWeights | None = None,
        period: float = PERIOD,
        nthread: int = 1,
    ) -> None:
        """Loads the robot; see `TakeOffEnv`.

        Args:
            num_envs: robots.
            control: as there.
            randomize: as there.
            render_mode: as there.
            max_episode_steps: after which an episode is truncated; None never.
            robot: as there.
            controller: as there.
            errors: as there.
            weights: as there.
            period: as there.
            nthread: threads that step them.
        """
        self.num_envs, self.render_mode = num_envs, _checked_mode(render_mode)
        self._limit = math.inf if max_episode_steps is None else max_episode_steps
        self._task = Task(num_envs, control, randomize, robot, controller, errors, weights, period, nthread)
        self.single_observation_space, self.single_action_space = self._task.observation_space, self._task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = []
        self._counts, self._ended = np.zeros(num_envs, np.int64), np.zeros(num_envs, bool)
        self._camera: Camera | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Starts all episodes; robot k with the seed + k, or the k-th of a list. Errors hold one trial per robot."""
        seeds: list[int | None] = [None] * self.num_envs if seed is None else []
        seeds += [seed + k for k in range(self.num_envs)] if isinstance(seed, int) else seed or []
        if len(seeds) != self.num_envs:
            raise ParameterError("seed", f"{len(seeds)} seeds", f"one for each of {self.num_envs} robots")
        old: list[np.random.Generator | None] = [*self._generators] or [None] * self.num_envs
        self._generators = [
            one if given is None and one is not None else seeding.np_random(given)[0]
            for given, one in zip(seeds, old, strict=True)
        ]
        errors = _given_errors(options)
        if isinstance(errors, Errors) and len(errors) != self.num_envs:
            raise ParameterError("errors", f"{len(errors)} trials", f"{self.num_envs}, one per robot")
        given = [errors[k : k + 1] if isinstance(errors, Errors) else errors for k in range(self.num_envs)]
        rows = np.arange(self.num_envs)
        info = self._started(rows, given)
        self._ended[:] = False
        return self._task.observations(), info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One action of each robot, and new episodes of those whose last one ended."""
        going = ~self._ended
        fresh = np.flatnonzero(self._ended)
        info = self._started(fresh, ["drawn"] * len(fresh))
        rows = np.flatnonzero(going)
        terms, terminated, facts = self._task.step(rows, np.asarray(actions))
        self._counts[rows] += 1
        reward, ended = np.where(going, _total(terms), 0.0), terminated & going
        truncated = (self._counts >= self._limit) & going
        self._ended = ended | truncated
        if len(rows):
            nested = {name: np.where(going, values, 0.0) for name, values in terms.items()}
            info |= _masked({"reward_terms": _masked(nested, going), **facts}, going)
        return self._task.observations(), reward, ended, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """An image of each robot; None without a render mode."""
        if self.render_mode is None:
            return None
        self._camera = self._camera or Camera(self._task.arena.model)
        return tuple(self._camera.image(qpos) for qpos in self._task.arena.qpos)

    def close_extras(self, **_: Any) -> None:
        """Gives the renderer back."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _started(self, rows: np.ndarray, errors: list[Errors | str | None]) -> dict[str, Any]:
        seeds, mask = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, bool)
        for row, given in zip(rows.tolist(), errors, strict=True):
            seeds[row] = self._task.start(row, self._generators[row], given)
        self._counts[rows], mask[rows] = 0, True
        return _masked({"trial_seed": seeds}, mask) if len(rows) else {}


class Task:
    """What both environments share, for n robots: spaces, starts, observations, reward, ends."""

    def __init__(
        self,
        n: int,
        control: str,
        randomize: bool | float,
        robot: RobotParams | str | Path | None,
        controller: Controller | None,
        errors: ErrorParams | None,
        weights: RewardWeights | None,
        period: float,
        nthread: int,
    ) -> None:
        if control not in ("joint", "residual"):
            raise ParameterError("control", control, "joint or residual")
        if not (math.isfinite(randomize) and randomize >= 0):
            raise ParameterError("randomize", randomize, "True, False or an error scale of at least 0")
        model = load_model(RobotParams() if robot is None else robot)
        trim = takeoff_trim(model)
        pilot = controller or Controller(model, trim)
        self.arena = Arena(model, trim, n, control=control, period=period, pilot=pilot, nthread=nthread)
        self._names, self._errors, self._period = joint_names(model), errors or ErrorParams(), period
        self._scale, self._weights = float(randomize), weights or RewardWeights()
        joints = len(self._names)
        self._actions = np.zeros((n, joints + 4), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (joints + 4,), np.float32)
        # Beyond these bounds an observation is clipped; no flight that has not ended comes near them.
        high = [math.pi] * joints + [100.0] * joints + [1.0] * 3 + [100.0] * 7 + [1.0] * (4 + joints + 4)
        low = -np.array(high, np.float32)
        low[2 * joints + 10 : 2 * joints + 14] = 0.0
        self.observation_space = gymnasium.spaces.Box(low, np.array(high, np.float32), dtype=np.float32)

    def start(self, row: int, generator: np.random.Generator, errors: Errors | str | None) -> int:
        """Puts a robot on the ground and returns the seed of its errors and noise, drawn in any case."""
        seed = int(generator.integers(2**31))
        if isinstance(errors, str):
            errors = None
            if self._scale > 0:
                errors = sample_errors(1, self._errors, seed=seed, scale=self._scale, joints=self._names)
        key = noise_keys(seed, [0])[0] if self._scale > 0 else np.uint64(0)
        self.arena.start(row, errors or no_errors(1, self._names), key)
        self._actions[row] = 0.0
        return seed

    def step(self, rows: np.ndarray, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, dict]:
        """Steps the rows; the reward's terms, who ended, and facts for `info`, of all robots."""
        if actions.shape != self._actions.shape or not np.isfinite(actions).all():
            raise ParameterError("action", actions.shape, f"finite and of shape {self._actions.shape[1:]} per robot")
        self._actions[rows] = np.clip(actions[rows], -1.0, 1.0)
        arena, weights, dt = self.arena, self._weights, self._period
        before = np.minimum(arena.rise, weights.goal)
        arena.advance(rows, self._actions.astype(np.float64))
        motion, (joints, fans) = _motions(arena.qpos, arena.qvel), arena.offsets
        tilt, yaw_rate = motion["tilt"], motion["yaw_rate"]
        effort = _mean_squares(joints) + _mean_squares(fans)
        terms = {
            "height": weights.height * (np.minimum(arena.rise, weights.goal) - before),
            "tilt": -weights.tilt * tilt * tilt * dt,
            "yaw_rate": -weights.yaw_rate * yaw_rate * yaw_rate * dt,
            "effort": -weights.effort * effort * dt,
        }
        ended = (tilt > OVERTURNED) | (arena.rise < FALLEN) | arena.failed
        return terms, ended, {"height": arena.rise, "tilt": tilt, "diverged": arena.failed.copy()}

    def observations(self) -> Float[np.ndarray, "n observations"]:
        """Of all robots, float32."""
        arena = self.arena
        angles, rates = arena.joints
        motion, rates_of_body = _motions(arena.qpos, arena.qvel), arena.qvel[:, 3:6]
        parts = [angles, rates, -motion["up"], rates_of_body, arena.rise[:, None], motion["velocity"], arena.fans]
        space = self.observation_space
        return np.clip(np.concatenate([*parts, self._actions], axis=1).astype(np.float32), space.low, space.high)


MOTION = np.dtype([("up", "f8", 3), ("velocity", "f8", 3), ("tilt", "f8"), ("yaw_rate", "f8")])
"""World z and the velocity in body axes; tilt and the rate about the vertical."""


def _motions(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    motions = np.zeros(len(qpos), MOTION)
    _measure(qpos, qvel, motions)
    return motions


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _measure(qpos, qvel, motions):
    """Row by row, so that a robot has the same bits in any company; NumPy's loops round by length and layout."""
    for i in range(len(qpos)):
        w, x, y, z = qpos[i, 3], qpos[i, 4], qpos[i, 5], qpos[i, 6]
        u, v, rate = qvel[i, :3], motions[i].velocity, qvel[i, 3:6]
        up = upright(qpos[i, 3:7])
        v[0] = u[0] * (1 - 2 * (y * y + z * z)) + u[1] * 2 * (x * y + w * z) + u[2] * up[0]
        v[1] = u[0] * 2 * (x * y - w * z) + u[1] * (1 - 2 * (x * x + z * z)) + u[2] * up[1]
        v[2] = u[0] * 2 * (x * z + w * y) + u[1] * 2 * (y * z - w * x) + u[2] * up[2]
        for k in range(3):
            motions[i].up[k] = up[k]
        motions[i].tilt = math.acos(min(1.0, max(-1.0, up[2])))
        motions[i].yaw_rate = up[0] * rate[0] + up[1] * rate[1] + up[2] * rate[2]


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _mean_squares(values):
    means = np.zeros(len(values))
    for i in range(len(values)):
        for value in values[i]:
            means[i] += value * value
        means[i] /= values.shape[1]
    return means


def _total(terms: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(sum(terms.values()))


def _masked(values: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Gymnasium's form of the infos of several environments."""
    return {key: value for name, array in values.items() for key, value in ((name, array), (f"_{name}", mask.copy()))}


def _given_errors(options: dict[str, Any] | None) -> Errors | str | None:
    """The errors that a reset was given, or the word that they are to be drawn."""
    options = options or {}
    for name in options:
        if name != "errors":
            raise ParameterError("options", name, "errors")
    errors = options.get("errors", "drawn")
    if not (errors is None or errors == "drawn" or isinstance(errors, Errors)):
        raise ParameterError("errors", errors, "an Errors, or None for a robot without any")
    return errors


def _checked_mode(mode: str | None) -> str | None:
    if mode not in (None, "rgb_array"):
        raise ParameterError("render_mode", mode, "rgb_array or None")
    return mode


register()
