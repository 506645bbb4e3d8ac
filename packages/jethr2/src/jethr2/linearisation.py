"""The hovering robot as a linear system in discrete time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jethr2.errors import ModelError
from jethr2.layout import fan_act_ids, fan_ctrl_ids, joint_ctrl_ids, joint_dof_ids, joint_names
from jethr2.posture import Trim

if TYPE_CHECKING:
    import mujoco

ALOFT = 1.0
"""m above the ground, so that nothing touches it."""


def linearize(
    model: mujoco.MjModel, trim: Trim, *, step: float = 1e-6
) -> tuple[Float[np.ndarray, "state state"], Float[np.ndarray, "state control"]]:
    """Differentiates one time step of the robot that hovers in its trim posture, servos loaded as they must be.

    Args:
        model: of `load_model`.
        trim: of `takeoff_trim`.
        step: of the central differences.

    Returns:
        A and B of x' = A x + B u, one model time step apart. x holds the displacements of `qpos` in the tangent space
        (free joint: position, world axes, then rotation vector, body axes), `qvel` and `act`; u is `ctrl`. Both are
        deviations from `hover_state`.

    Raises:
        ModelError: a servo is too weak to hold the posture.
    """
    import mujoco

    data = hover_state(model, trim)
    states = 2 * model.nv + model.na
    transition, control = np.zeros((states, states)), np.zeros((states, model.nu))
    mujoco.mjd_transitionFD(model, data, step, 1, transition, control, None, None)
    return transition, control


def hover_state(model: mujoco.MjModel, trim: Trim) -> mujoco.MjData:
    """The robot at rest in the air: fans carry the weight, and servo references are ahead by what their loads ask for.

    Raises:
        ModelError: a servo is too weak.
    """
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    data.qpos[2] += ALOFT
    data.ctrl[:] = trim.ctrl
    throttle = trim.ctrl[fan_ctrl_ids(model)]
    if model.na:
        data.act[fan_act_ids(model)] = throttle
    mujoco.mj_forward(model, data)
    # With references at the angles themselves the servos push nothing: what is left is what the fans do to the joints.
    data.qacc[:] = 0
    mujoco.mj_inverse(model, data)
    names, dofs = joint_names(model), joint_dof_ids(model)
    servos = [model.actuator(name).id for name in names]
    torque = (data.qfrc_inverse - data.qfrc_actuator)[dofs]
    limits = np.where(model.actuator_forcelimited[servos], model.actuator_forcerange[servos, 1], np.inf)
    for name, needed, limit in zip(names, torque, limits, strict=True):
        if abs(needed) > limit:
            raise ModelError(f"joint {name} needs {needed:.3g} N m to hover, and its servo gives {limit:.3g}")
    data.ctrl[joint_ctrl_ids(model)] += torque / model.actuator_gainprm[servos, 0]
    mujoco.mj_forward(model, data)
    return data
