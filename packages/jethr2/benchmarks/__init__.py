"""The closed loop beside MuJoCo's bare physics, and beside a loop in Python that flies one robot at a time.

Open loop replays through `mujoco.rollout` the very commands that the closed loop gave, so that both sides do the same
physics with the same contacts. The loops in Python step each robot by `mj_step`; `ArrayLaw` writes section 2.5 as one
would, with NumPy and SciPy's rotations, and adds the same kind of noise; `ScalarLaw` is written for speed, with floats
alone, and has no noise. Neither finds figures, as ours does; both follow the law to the last digits, which tests show.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    import mujoco

    from jethr2.posture import Trim

DURATION, PERIOD = 1.5, 0.002
"""Of a take-off, and between two steps, s."""
STEPS = round(DURATION / PERIOD)
TRIALS, LOOPED = 256, 64
"""Robots beside the open loop, and beside the loop in Python."""
EVALUATIONS = 5000
BULLET_DURATION, BULLET_STEP = 0.8, 5e-4
"""s."""
ENVIRONMENT_STEPS = 300
FULL_THRUST, LAG = 49.05, 0.1
SYM, DIFF, DIFFERENTIAL, FLOOR = math.radians(15), math.radians(12), 0.4, 0.3


def closed_loop(trials: int, threads: int) -> Callable[[], object]:
    """A whole Monte Carlo study in memory: models with errors, noise, estimator, law, allocation, physics, figures."""
    from jethr2 import monte_carlo

    monte_carlo(1, ("full",), duration=0.01, nthread=1)  # loads the kernels
    return lambda: monte_carlo(trials, ("full",), duration=DURATION, nthread=threads)


def open_loop(trials: int, threads: int) -> Callable[[], object]:
    """`mujoco.rollout` over the same robots with commands that were recorded in the closed loop."""
    import mujoco
    from mujoco.rollout import Rollout

    from jethr2.metrics import Criteria
    from jethr2.perturbations import sample_errors
    from jethr2.simulation import Flight

    model, trim, control = _robot()
    errors = sample_errors(trials)
    models, commands = _models(model, errors), np.empty((trials, STEPS, model.nu))
    ctl = control(trials)
    flight = Flight(models, ctl, trim.qpos, trim.ctrl, errors.joint_zero, Criteria())
    initial = flight.state.copy()
    for step in range(STEPS):
        flight.advance()
        commands[:, step] = flight.commands
    commands[:, :, :10] += errors.joint_zero[:, None]
    data = [mujoco.MjData(model) for _ in range(threads)]
    rollout = Rollout(nthread=threads if threads > 1 else 0)

    def call() -> object:
        states = np.empty((trials, STEPS, initial.shape[1]))
        sensors = np.empty((trials, STEPS, model.nsensordata))
        options: dict[str, Any] = {"skip_checks": True, "nstep": STEPS, "state": states, "sensordata": sensors}
        rollout.rollout(models, data, initial, commands, **options)
        return states, sensors

    return call


def array_loop(trials: int) -> Callable[[], object]:
    """Each robot by itself: `mj_step`, noise, and the law with NumPy and SciPy."""
    return _loop(trials, lambda trim, trial: ArrayLaw(trim, np.random.default_rng(trial)))


def scalar_loop(trials: int) -> Callable[[], object]:
    """Each robot by itself: `mj_step` and the law with floats, no noise."""
    return _loop(trials, lambda trim, _: ScalarLaw(trim))


def _loop(trials: int, law_of: Callable[[Any, int], Any]) -> Callable[[], object]:
    import mujoco

    from jethr2.perturbations import sample_errors

    model, trim, _ = _robot()

    def call() -> np.ndarray:
        errors = sample_errors(trials)
        heights = np.empty(trials)
        for trial, own in enumerate(_models(model, errors)):
            data, law, zero = mujoco.MjData(own), law_of(trim, trial), errors.joint_zero[trial]
            data.qpos[:] = trim.qpos
            mujoco.mj_forward(own, data)
            for step in range(STEPS):
                command = law.step(step * PERIOD, data.sensordata)
                command[:10] += zero
                data.ctrl[:] = command
                mujoco.mj_step(own, data)
            heights[trial] = data.qpos[2]
        return heights

    return call


def one_robot() -> Callable[[], object]:
    """`simulate` of one robot without noise, which also keeps the flight."""
    from jethr2 import Controller, EstimatorParams, simulate

    model, trim, _ = _robot()
    ctl = Controller(model, trim, estimator=EstimatorParams(mode="truth"))
    return lambda: simulate(model, ctl, DURATION, trim=trim)


def our_evaluations() -> Callable[[], object]:
    """`Controller.step` for one robot, without physics."""
    _, _, control = _robot()
    ctl, sensors = control(1), _standing()[None]

    def call() -> object:
        for step in range(EVALUATIONS):
            ctl.step(step * PERIOD, sensors)
        return ctl.memory

    return call


def array_evaluations() -> Callable[[], object]:
    """`ArrayLaw` on the same sensors."""
    return _evaluations(lambda trim: ArrayLaw(trim, np.random.default_rng(0)))


def scalar_evaluations() -> Callable[[], object]:
    """`ScalarLaw` on the same sensors."""
    return _evaluations(ScalarLaw)


def _evaluations(law_of: Callable[[Any], Any]) -> Callable[[], object]:
    _, trim, _ = _robot()
    law, sensors = law_of(trim), _standing()

    def call() -> object:
        for step in range(EVALUATIONS):
            law.step(step * PERIOD, sensors)
        return law.fans

    return call


def free_flight() -> Callable[[], object]:
    """`simulate` of 0.8 s, controller included."""
    from jethr2 import Controller, EstimatorParams, simulate

    model, trim, _ = _robot()
    ctl = Controller(model, trim, estimator=EstimatorParams(mode="truth"))
    return lambda: simulate(model, ctl, BULLET_DURATION, trim=trim)


def bullet_flight() -> Callable[[], object]:
    """The robot's URDF in PyBullet for 0.8 s with fixed commands, at the step that its explicit servos bear."""
    import dataclasses

    from jethr2 import RobotParams, build_spec, takeoff_trim
    from jethr2.engines import fly_in_bullet, load_pybullet

    load_pybullet()
    bare = dataclasses.replace(RobotParams(), joint_armature=0.0, joint_damping=0.0)
    model = build_spec(bare, contact=False, timestep=1e-3).compile()
    trim = takeoff_trim(model)
    return lambda: fly_in_bullet(model, trim, bare, BULLET_STEP, round(BULLET_DURATION / BULLET_STEP))


def environment(name: str) -> Callable[[], object]:
    """Steps of a Gymnasium environment under an action of 0, started anew whenever an episode ends."""
    import gymnasium

    import jethr2

    jethr2.register()
    env = gymnasium.make(name)
    action = np.zeros(env.action_space.shape or (), np.float32)

    def call() -> object:
        seen, _ = env.reset(seed=0)
        for _ in range(ENVIRONMENT_STEPS):
            seen, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                seen, _ = env.reset()
        return seen

    call()  # loads the kernels
    return call


class ArrayLaw:
    """Section 2.5 for one robot in mode `full`, with NumPy and SciPy; noise of `noisy_truth` where there is a generator."""

    def __init__(self, trim: Trim, rng: np.random.Generator | None = None) -> None:
        from scipy.spatial.transform import Rotation

        from jethr2.layout import SENSORS

        self.rotation, self.sensors, self.rng = Rotation, SENSORS, rng
        self.rest, self.arms, inertia = np.array(trim.ctrl), trim.fan_arms, np.diag(trim.inertia)
        wn = np.array([6.0, 6.0, 4.0])
        self.kp, self.kd = inertia * wn**2, 2 * 0.8 * wn * inertia
        self.rate: np.ndarray | None = None
        self.start, self.fans = math.nan, np.zeros(4)
        self.integral, self.frozen = np.zeros(3), np.zeros(3, bool)

    def step(self, t: float, sensors: np.ndarray) -> np.ndarray:
        """Commands for the sensors at t."""
        attitude = self.rotation.from_quat(np.roll(sensors[self.sensors["quat"]], -1))
        gyro, height = sensors[self.sensors["gyro"]].copy(), sensors[self.sensors["pos"]][2]
        if self.rng is not None:
            attitude = attitude * self.rotation.from_rotvec(self.rng.normal(0, math.radians(0.1), 3))
            gyro += self.rng.normal(0, 0.01, 3)
        if self.rate is None:
            self.rate, self.start = gyro, height
        self.rate = gyro + (self.rate - gyro) * math.exp(-PERIOD / 0.008)
        error = attitude.as_euler("ZYX")[::-1] if attitude.as_matrix()[2, 2] > 0.5 else attitude.as_rotvec()
        if height - self.start > 0.01:
            moved = np.clip(self.integral + PERIOD * error, -0.3, 0.3)
            self.integral = np.where(self.frozen, self.integral, moved)
        moment = -(self.kp * (error + self.integral) + self.kd * self.rate)
        return self._commands(min(t / 0.5, 1.0), moment)

    def _commands(self, ramp: float, moment: np.ndarray) -> np.ndarray:
        track, drop = self.arms[2, 1], -self.arms[2, 2]
        thrust = max(FULL_THRUST * self.fans[2:].mean(), FLOOR * FULL_THRUST)
        wanted = np.array([moment[0] / FULL_THRUST, -moment[1] / thrust, -moment[2] / thrust]) / (2 * track)
        wanted[1] *= track / drop
        limits = np.array([DIFFERENTIAL, SYM, DIFF])
        self.frozen = np.abs(wanted) > limits
        share, sym, diff = np.clip(wanted, -limits, limits)
        throttle = ramp + np.array([0.0, 0.0, share, -share])
        throttle[2:] -= max(0.0, throttle[2:].max() - 1)
        throttle = np.clip(throttle, 0, 1)
        self.fans = throttle + (self.fans - throttle) * math.exp(-PERIOD / LAG)
        command = self.rest.copy()
        command[[4, 9]] += ramp * np.array([sym + diff, sym - diff])
        command[10:] = throttle
        return command


class ScalarLaw:
    """Section 2.5 for one robot in mode `full`, with floats alone; tilted by less than 60 degrees, no noise."""

    def __init__(self, trim: Trim) -> None:
        from jethr2.layout import SENSORS

        self.rest, self.arms = np.array(trim.ctrl), trim.fan_arms.tolist()
        self.places = SENSORS["quat"], SENSORS["gyro"], SENSORS["pos"].stop - 1
        self.inertia, self.wn = np.diag(trim.inertia).tolist(), (6.0, 6.0, 4.0)
        self.rate: list[float] | None = None
        self.start, self.fans = math.nan, [0.0] * 4
        self.integral, self.frozen = [0.0] * 3, [False] * 3

    def step(self, t: float, sensors: np.ndarray) -> np.ndarray:
        """Commands for the sensors at t."""
        (w, x, y, z), gyro = sensors[self.places[0]].tolist(), sensors[self.places[1]].tolist()
        height = float(sensors[self.places[2]])
        if self.rate is None:
            self.rate, self.start = gyro, height
        keep = math.exp(-PERIOD / 0.008)
        self.rate = [new + (old - new) * keep for new, old in zip(gyro, self.rate, strict=True)]
        error = (
            math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
            math.asin(min(max(2 * (w * y - x * z), -1.0), 1.0)),
            math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
        )
        moment = []
        for axis in range(3):
            if height - self.start > 0.01 and not self.frozen[axis]:
                self.integral[axis] = _clip(self.integral[axis] + PERIOD * error[axis], 0.3)
            kp = self.inertia[axis] * self.wn[axis] ** 2
            kd = 2 * 0.8 * self.wn[axis] * self.inertia[axis]
            moment.append(-(kp * (error[axis] + self.integral[axis]) + kd * self.rate[axis]))
        return self._commands(min(t / 0.5, 1.0), *moment)

    def _commands(self, ramp: float, roll: float, pitch: float, yaw: float) -> np.ndarray:
        track, drop = self.arms[2][1], -self.arms[2][2]
        thrust = max(FULL_THRUST * (self.fans[2] + self.fans[3]) / 2, FLOOR * FULL_THRUST)
        sym, diff = -pitch / (2 * thrust * drop), -yaw / (2 * thrust * track)
        share = roll / (2 * track * FULL_THRUST)
        self.frozen = [abs(share) > DIFFERENTIAL, abs(sym) > SYM, abs(diff) > DIFF]
        sym, diff, share = _clip(sym, SYM), _clip(diff, DIFF), _clip(share, DIFFERENTIAL)
        # The pair of feet alone is desaturated: the waist's fans are equal and at most 1.
        left, right = ramp + share, ramp - share
        excess = max(0.0, max(left, right) - 1)
        throttle = (ramp, ramp, max(left - excess, 0.0), max(right - excess, 0.0))
        keep = math.exp(-PERIOD / LAG)
        self.fans = [new + (old - new) * keep for new, old in zip(throttle, self.fans, strict=True)]
        command = self.rest.copy()
        command[4] += ramp * (sym + diff)
        command[9] += ramp * (sym - diff)
        command[10:] = throttle
        return command


def _clip(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


def _robot() -> tuple[mujoco.MjModel, Trim, Callable[[int], Any]]:
    """The robot, its posture, and what makes a controller of n robots with the noise of seed 0."""
    from jethr2 import Controller, RobotParams, load_model, takeoff_trim
    from jethr2.estimation import noise_keys

    model = load_model(RobotParams())
    trim = takeoff_trim(model)

    def control(n: int) -> Controller:
        ctl = Controller(model, trim)
        ctl.reset(n=n, keys=noise_keys(0, range(n)))
        return ctl

    return model, trim, control


def _models(model: mujoco.MjModel, errors: Any) -> list[mujoco.MjModel]:
    from jethr2.perturbations import perturbed_models

    return perturbed_models(model, errors)


def _standing() -> np.ndarray:
    import mujoco

    model, trim, _ = _robot()
    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    mujoco.mj_forward(model, data)
    return data.sensordata.copy()


def _beside_rollout(threads: int) -> Benchmark:
    return Benchmark(
        id=f"closed-loop-{threads}",
        statement=f"{TRIALS} take-offs of {DURATION:g} s in closed loop, {threads} thread{'s' * (threads > 1)}: at least "
        "0.55 times as fast as mujoco.rollout in open loop.",
        ours=functools.partial(closed_loop, TRIALS, threads),
        peer=functools.partial(open_loop, TRIALS, threads),
        target=0.55,
        threads=threads,
    )


BENCHMARKS = (
    _beside_rollout(1),
    _beside_rollout(2),
    Benchmark(
        id="python-loop",
        statement=f"{LOOPED} take-offs of {DURATION:g} s, 2 threads: at least 5 times as fast as a loop in Python that "
        "flies one robot at a time by mj_step and the law with NumPy and SciPy.",
        ours=functools.partial(closed_loop, LOOPED, 2),
        peer=functools.partial(array_loop, LOOPED),
        target=5.0,
        threads=2,
    ),
    Benchmark(
        id="scalar-loop",
        statement=f"{LOOPED} take-offs of {DURATION:g} s, 2 threads, beside the same loop with the law in floats alone, "
        "no noise and no figures: the fastest that Python does.",
        ours=functools.partial(closed_loop, LOOPED, 2),
        peer=functools.partial(scalar_loop, LOOPED),
        threads=2,
    ),
    Benchmark(
        id="one-robot",
        statement=f"One take-off of {STEPS} steps without noise, kept: faster than mj_step and the law with NumPy and SciPy.",
        ours=one_robot,
        peer=functools.partial(array_loop, 1),
        target=1.0,
    ),
    Benchmark(
        id="one-robot-scalar",
        statement=f"One take-off of {STEPS} steps without noise, kept, beside mj_step and the law in floats alone.",
        ours=one_robot,
        peer=functools.partial(scalar_loop, 1),
    ),
    Benchmark(
        id="one-controller",
        statement=f"{EVALUATIONS} evaluations of the law for one robot with noise: faster than with NumPy and SciPy.",
        ours=our_evaluations,
        peer=array_evaluations,
        target=1.0,
    ),
    Benchmark(
        id="one-controller-scalar",
        statement=f"{EVALUATIONS} evaluations of the law for one robot with noise, beside floats alone without.",
        ours=our_evaluations,
        peer=scalar_evaluations,
    ),
    Benchmark(
        id="pybullet",
        statement="0.8 s of one robot's flight with its controller: faster than its URDF in PyBullet with fixed commands, at "
        "the 0.5 ms that PyBullet's servos without armature need (ours: 2 ms).",
        ours=free_flight,
        peer=bullet_flight,
        target=1.0,
    ),
    Benchmark(
        id="environment",
        statement=f"{ENVIRONMENT_STEPS} steps of the take-off environment, five physics steps each, beside Humanoid-v5, "
        "which takes as many.",
        ours=functools.partial(environment, "JetHR2-TakeOff-v0"),
        peer=functools.partial(environment, "Humanoid-v5"),
    ),
)
