"""The same physics in MJX, for batches on a GPU; on a CPU MuJoCo itself is faster.

MJX computes in float32 unless JAX is told otherwise. Commands are given, from a flight for instance; a controller in the
loop is not part of this module.

Where it differs: of a sole's corners MJX keeps those within 1 mm of the deepest, MuJoCo keeps all that touch. Off the
ground, or level on it, both agree to 1e-5; a foot that presses one edge more than 1 mm deeper than the other gets another
force, and the flights part by up to 1 cm in 1 s [M].
"""

from __future__ import annotations

import contextlib
import copy
import io
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jethr2.errors import JetHR2Error, ParameterError
from jethr2.layout import fan_ctrl_ids, joint_ctrl_ids, thrust_map
from jethr2.perturbations import Errors, perturbed_models
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
    jax, mjx = _mjx()
    import jax.numpy as jnp
    import mujoco

    if len(errors) != len(commands):
        raise ParameterError("errors", f"{len(errors)} trials", f"{len(commands)}, one per row of the commands")
    control = commands.copy()
    control[:, :, joint_ctrl_ids(model)] += errors.joint_zero[:, None]
    fans = fan_ctrl_ids(model)
    control[:, :, fans] = fan_effort(control[:, :, fans], thrust_map(model))
    blind = copy.copy(model)
    blind.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)  # MJX's touch sensors need a contact
    plain = mjx.put_model(blind)
    start = mjx.put_data(blind, mujoco.MjData(model)).replace(qpos=jnp.asarray(qpos))
    models = perturbed_models(model, errors)
    varied = {name: jnp.asarray(np.stack([getattr(one, name) for one in models])) for name in VARIED}

    def fly(changes: dict[str, Any], rows: Any) -> Any:
        changed = plain.replace(**changes)

        def step(state: Any, row: Any) -> Any:
            data = mjx.step(changed, start.replace(ctrl=row, **state))
            state = {name: getattr(data, name) for name in state}
            return state, (data.qpos, data.qvel, data.act)

        # Carried are the numbers that one step hands to the next; under 64 bits MJX's contacts change their type.
        first = {name: getattr(start, name) for name in ("time", "qpos", "qvel", "act", "qacc_warmstart")}
        return jax.lax.scan(step, first, rows)[1]

    paths = jax.jit(jax.vmap(fly))(varied, jnp.asarray(control))
    starts = np.asarray(qpos), np.zeros(model.nv), np.zeros(model.na)
    return tuple(  # type: ignore[return-value]
        np.concatenate([np.tile(first, (len(commands), 1, 1)), np.asarray(path, np.float64)], axis=1)
        for first, path in zip(starts, paths, strict=True)
    )


def _mjx() -> tuple[ModuleType, ModuleType]:
    try:
        # It prints that warp is not there, which it does not need.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import jax
            from mujoco import mjx
    except ImportError:
        raise JetHR2Error("MJX is not installed", "pip install 'jethr2[mjx]'") from None
    return jax, mjx
