"""The same physics in MJX, for batches on a GPU; on a CPU MuJoCo itself is faster.

MJX computes in float32 unless JAX is told otherwise.

Where it differs: of a sole's corners MJX keeps those within 1 mm of the deepest, MuJoCo keeps all that touch. Off the
ground, or level on it, both agree to 1e-5; a foot that presses one edge more than 1 mm deeper than the other gets another
force, and the flights part by up to 1 cm in 1 s [M].
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt64

from jethr2.control import Controller, ankle_joint, substeps
from jethr2.errors import JetHR2Error, ModelError, ParameterError
from jethr2.layout import SIDES, fan_ctrl_ids, joint_ctrl_ids, joint_names, thrust_map
from jethr2.metrics import Criteria, fresh_tracks, observe_commands, observe_states
from jethr2.perturbations import Errors, perturbed_models
from jethr2.posture import Trim
from jethr2.robot import fan_effort

if TYPE_CHECKING:
    import mujoco

VARIED = (
    "body_mass",
    "body_inertia",
    "body_ipos",
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "dof_M0",
    "actuator_gainprm",
    "actuator_acc0",
)
"""What errors change in a model, with the constants derived from it."""

CARRIED = ("time", "qpos", "qvel", "act", "qacc_warmstart")
"""What one step hands to the next; under 64 bits MJX's contacts change their type, and cannot be carried."""


def carry_out(
    model: mujoco.MjModel,
    qpos: Float[np.ndarray, " nq"],
    commands: Float[np.ndarray, "n steps nu"],
    errors: Errors,
) -> tuple[Float[np.ndarray, "n rows nq"], Float[np.ndarray, "n rows nv"], Float[np.ndarray, "n rows na"]]:
    """Steps n robots from rest under given commands, all in one compiled scan.

    Args:
        model: of `load_model`.
        qpos: where they start, with their fans off.
        commands: joint angles, rad, and throttles, one row per physics step.
        errors: of n trials: the plant's, as in `simulate`.

    Returns:
        qpos, qvel and act, the start and one row per step, float64 arrays of float32 numbers.

    Raises:
        JetHR2Error: jax and mujoco-mjx are not installed.
        ParameterError: another number of errors than of commands.
    """
    jax, _ = _mjx()
    import jax.numpy as jnp

    if len(errors) != len(commands):
        raise ParameterError("errors", f"{len(errors)} trials", f"{len(commands)}, one per row of the commands")
    control = commands.copy()
    control[:, :, joint_ctrl_ids(model)] += errors.joint_zero[:, None]
    fans = fan_ctrl_ids(model)
    control[:, :, fans] = fan_effort(control[:, :, fans], thrust_map(model))
    plain, start, varied = _prepared(model, qpos, errors)

    def fly(changes: dict[str, Any], rows: Any) -> Any:
        step = _stepper(plain.replace(**changes), start)

        def one(state: Any, row: Any) -> Any:
            state = step(state, row)
            return state, (state["qpos"], state["qvel"], state["act"])

        return jax.lax.scan(one, {name: getattr(start, name) for name in CARRIED}, rows)[1]

    paths = jax.jit(jax.vmap(fly))(varied, jnp.asarray(control))
    starts = np.asarray(qpos), np.zeros(model.nv), np.zeros(model.na)

    def whole(first: np.ndarray, path: Any) -> np.ndarray:
        return np.concatenate([np.tile(first, (len(commands), 1, 1)), np.asarray(path, np.float64)], axis=1)

    positions, velocities, fan_states = (whole(*pair) for pair in zip(starts, paths, strict=True))
    return positions, velocities, fan_states


def fly_in_mjx(
    model: mujoco.MjModel,
    trim: Trim,
    pilot: Controller,
    errors: Errors,
    keys: UInt64[np.ndarray, " n"],
    duration: float,
    criteria: Criteria,
) -> np.ndarray:
    """As `simulation.fly`, with the controller in the compiled loop, too.

    Args:
        model: of `load_model`.
        trim: where the robots start.
        pilot: whose law flies them; its memory is not touched.
        errors: one trial each.
        keys: of their noise.
        duration: s.
        criteria: the height at which peaks stop to count.

    Returns:
        Records of the type `metrics.TRACK`.

    Raises:
        JetHR2Error: jax and mujoco-mjx are not installed.
        ParameterError: a law or an estimator that `jax_law` does not have.
        ModelError: the IMU is not on the body that flies freely.
    """
    _mjx()
    import jax.numpy as jnp

    from jethr2.jax_law import constants_of, noise_of

    constants, ticks = constants_of(pilot), round(duration / pilot.period)
    plain, start, varied = _prepared(model, trim.qpos, errors)
    places = _places(model)
    noise = jnp.asarray(noise_of(pilot, keys, ticks))
    flown = _flights()(
        plain, start, constants, places, varied, noise, jnp.asarray(errors.joint_zero), substeps(model, pilot.period)
    )
    states, commands, lift_lost, saturated = (np.asarray(each) for each in flown)
    return _tracks(model, trim, pilot, criteria, states, commands, lift_lost, saturated)


def _tracks(
    model: mujoco.MjModel,
    trim: Trim,
    pilot: Controller,
    criteria: Criteria,
    states: np.ndarray,
    commands: np.ndarray,
    lift_lost: np.ndarray,
    saturated: np.ndarray,
) -> np.ndarray:
    """The figures of states[n, ticks, steps, nq + nv] and what was commanded, as every study has them."""
    n, ticks, steps, _ = states.shape
    tracks, fans = fresh_tracks(np.tile(trim.qpos, (n, 1))), fan_ctrl_ids(model)
    places = dict(zip(joint_names(model), joint_ctrl_ids(model), strict=True))
    ankles = np.array([places[ankle_joint(model, side)] for side in SIDES])
    rows = np.zeros((n, steps, 1 + states.shape[3]))
    for tick in range(ticks):
        given = commands[:, tick].astype(np.float64)
        lost, held = lift_lost[:, tick].astype(np.float64), saturated[:, tick].astype(np.int64)
        observe_commands(tracks, given, trim.ctrl, fans, ankles, lost, held)
        rows[:, :, 1:] = states[:, tick]
        observe_states(tracks, rows, model.nq, tick * pilot.period, float(model.opt.timestep), criteria.height)
    return tracks


def _places(model: mujoco.MjModel) -> dict[str, Any]:
    """Where the IMU sits on the base, and where commands go."""
    import jax.numpy as jnp

    site = int(model.sensor("imu_quat").objid[0])
    if model.body_parentid[model.site_bodyid[site]] != 0:
        raise ModelError("the IMU is not on the body that flies freely, as MJX needs it")
    places = {
        "imu_pos": model.site_pos[site],
        "imu_quat": model.site_quat[site],
        "joints": joint_ctrl_ids(model),
        "fans": fan_ctrl_ids(model),
        "quadratic": thrust_map(model) == "quadratic",
    }
    return {name: jnp.asarray(value) for name, value in places.items()}


@functools.cache
def _flights() -> Callable[..., Any]:
    """The compiled flight; one compilation serves every case of a study."""
    jax, _ = _mjx()
    import jax.numpy as jnp

    from jethr2.jax_law import control, fresh_memory

    def flight(plain: Any, start: Any, c: Any, places: Any, changes: Any, noise: Any, zero: Any, steps: int) -> Any:
        step = _stepper(plain.replace(**changes), start)
        first = {name: getattr(start, name) for name in CARRIED}

        def tick(carry: Any, row: Any) -> Any:
            state, seen, memory = carry
            number, disturbance = row
            memory, ctrl, lift_lost = control(c, memory, number, *_readings(seen, places), disturbance)
            plant = ctrl.at[places["joints"]].add(zero)
            throttle = jnp.clip(plant[places["fans"]], 0.0, 1.0)
            plant = plant.at[places["fans"]].set(jnp.where(places["quadratic"], throttle**2, throttle))
            path = []
            for _ in range(steps):
                # The sensors of a step are those of its beginning, as in MuJoCo.
                seen, state = {name: state[name] for name in ("qpos", "qvel")}, step(state, plant)
                path.append(jnp.concatenate([state["qpos"], state["qvel"]]))
            return (state, seen, memory), (jnp.stack(path), ctrl, lift_lost, memory["saturated"])

        begin = first, {name: first[name] for name in ("qpos", "qvel")}, fresh_memory(first["qpos"])
        return jax.lax.scan(tick, begin, (jnp.arange(len(noise)), noise))[1]

    many = jax.vmap(flight, in_axes=(None, None, None, None, 0, 0, 0, None))
    compiled: Callable[..., Any] = jax.jit(many, static_argnums=7)
    return compiled


def _readings(state: Any, places: Any) -> tuple[Any, Any, Any]:
    """The IMU's attitude, rate and height."""
    import jax.numpy as jnp

    from jethr2.jax_law import product, rotated

    base = state["qpos"][3:7] / jnp.sqrt((state["qpos"][3:7] ** 2).sum())
    inverse = places["imu_quat"] * jnp.array([1.0, -1.0, -1.0, -1.0])
    height = state["qpos"][2] + rotated(base, places["imu_pos"])[2]
    return product(base, places["imu_quat"]), rotated(inverse, state["qvel"][3:6]), height


def _stepper(changed: Any, start: Any) -> Callable[[Any, Any], Any]:
    """One physics step: what is carried, and commands, to what is carried."""
    _, mjx = _mjx()

    def step(state: Any, ctrl: Any) -> Any:
        data = mjx.step(changed, start.replace(ctrl=ctrl, **state))
        return {name: getattr(data, name) for name in CARRIED}

    return step


def _prepared(model: mujoco.MjModel, qpos: np.ndarray, errors: Errors) -> tuple[Any, Any, dict[str, Any]]:
    """The model and its start on the device, and what every trial has instead."""
    _, mjx = _mjx()
    import jax.numpy as jnp
    import mujoco

    blind = copy.copy(model)
    blind.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)  # MJX's touch sensors need a contact
    start = mjx.put_data(blind, mujoco.MjData(model)).replace(qpos=jnp.asarray(qpos))
    models = perturbed_models(model, errors)
    varied = {name: jnp.asarray(np.stack([getattr(one, name) for one in models])) for name in VARIED}
    return mjx.put_model(blind), start, varied


def _mjx() -> tuple[ModuleType, ModuleType]:
    try:
        # It prints that warp is not there, which it does not need.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import jax
            from mujoco import mjx
    except ImportError:
        raise JetHR2Error("MJX is not installed", "pip install 'jethr2[mjx]'") from None
    return jax, mjx
