"""A compiled model as URDF, for engines that do not read MJCF."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from jethr2.errors import ModelError
from jethr2.layout import FANS

if TYPE_CHECKING:
    import mujoco

Element = ElementTree.Element

FRAMES = (*(f"{fan}_fan" for fan in FANS), "imu")
"""Sites that become links without mass, each fixed to its body's link."""

FASTEST = 100.0
"""rad/s of a joint without damping: URDF asks for a limit, MuJoCo has none."""


def to_urdf(model: mujoco.MjModel) -> str:
    """Writes the tree of links of a robot with a free root; link frames are MuJoCo's body frames.

    What does not collide becomes a visual, what does a collision. The velocity limit is the speed at which a joint's
    damping alone takes up its effort. URDF knows neither armature nor fans: the fans' sites and the IMU are links
    without mass.

    Args:
        model: of `load_model`; what is written is what was compiled, mass errors included.

    Returns:
        The document.

    Raises:
        ModelError: the model holds what URDF cannot say: several roots, joints that are no hinges or slides, two joints
            in a body or one beside its origin, meshes, equality constraints.
    """
    roots = [body for body in range(1, model.nbody) if model.body_parentid[body] == 0]
    if len(roots) != 1:
        raise ModelError(f"URDF has one root, and the model has {len(roots)}")
    if model.neq:
        raise ModelError("URDF has no equality constraints, and the model has some")
    robot = Element("robot", name="jethr2")
    for body in range(1, model.nbody):
        _add_link(robot, model, body)
        if body not in roots:
            _add_joint(robot, model, body)
    for frame in FRAMES:
        _add_frame(robot, model, frame)
    ElementTree.indent(robot)
    return '<?xml version="1.0"?>\n' + ElementTree.tostring(robot, encoding="unicode") + "\n"


def _add_link(robot: Element, model: mujoco.MjModel, body: int) -> None:
    link = ElementTree.SubElement(robot, "link", name=_body_name(model, body))
    inertial = ElementTree.SubElement(link, "inertial")
    _add_origin(inertial, model.body_ipos[body])
    ElementTree.SubElement(inertial, "mass", value=_text(model.body_mass[body]))
    axes = _matrix(model.body_iquat[body])
    tensor = axes @ np.diag(model.body_inertia[body]) @ axes.T
    places = {"ixx": (0, 0), "ixy": (0, 1), "ixz": (0, 2), "iyy": (1, 1), "iyz": (1, 2), "izz": (2, 2)}
    ElementTree.SubElement(inertial, "inertia", {key: _text(tensor[place]) for key, place in places.items()})
    for geom in range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body]):
        _add_geom(link, model, geom)


def _add_geom(link: Element, model: mujoco.MjModel, geom: int) -> None:
    import mujoco

    kinds, size = mujoco.mjtGeom, model.geom_size[geom]
    middle, axes = model.geom_pos[geom], _matrix(model.geom_quat[geom])
    collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
    round_ = {"radius": _text(size[0])}
    kind = int(model.geom_type[geom])
    # URDF has no capsules: a cylinder with two spheres is the same body.
    shapes = {
        int(kinds.mjGEOM_BOX): [("box", {"size": _vector(2 * size)}, 0.0)],
        int(kinds.mjGEOM_SPHERE): [("sphere", round_, 0.0)],
        int(kinds.mjGEOM_CYLINDER): [("cylinder", {**round_, "length": _text(2 * size[1])}, 0.0)],
        int(kinds.mjGEOM_CAPSULE): [
            ("cylinder", {**round_, "length": _text(2 * size[1])}, 0.0),
            ("sphere", round_, size[1]),
            ("sphere", round_, -size[1]),
        ],
    }
    if kind not in shapes:
        raise ModelError(f"geom {geom} of {link.get('name')} is no box, sphere, cylinder or capsule, as URDF has them")
    for shape, attributes, along in shapes[kind]:
        part = ElementTree.SubElement(link, "collision" if collides else "visual")
        _add_origin(part, middle + along * axes[:, 2], axes)
        ElementTree.SubElement(ElementTree.SubElement(part, "geometry"), shape, attributes)


def _add_joint(robot: Element, model: mujoco.MjModel, body: int) -> None:
    import mujoco

    name, parent = _body_name(model, body), _body_name(model, int(model.body_parentid[body]))
    if model.body_jntnum[body] == 0:
        _add_fixed(robot, name, parent, model.body_pos[body], _matrix(model.body_quat[body]))
        return
    index = model.body_jntadr[body]
    joint, kind = model.joint(index).name, model.jnt_type[index]
    hinge = kind == mujoco.mjtJoint.mjJNT_HINGE
    if model.body_jntnum[body] > 1 or not (hinge or kind == mujoco.mjtJoint.mjJNT_SLIDE):
        raise ModelError(f"body {name} moves by more than one hinge or slide, which URDF cannot say")
    if np.any(model.jnt_pos[index]):
        raise ModelError(f"joint {joint} lies beside the origin of body {name}, which URDF cannot say")
    moving = "prismatic" if not hinge else "revolute" if model.jnt_limited[index] else "continuous"
    element = ElementTree.SubElement(robot, "joint", name=joint, type=moving)
    _add_origin(element, model.body_pos[body], _matrix(model.body_quat[body]))
    ElementTree.SubElement(element, "parent", link=parent)
    ElementTree.SubElement(element, "child", link=name)
    ElementTree.SubElement(element, "axis", xyz=_vector(model.jnt_axis[index]))
    damping = model.dof_damping[model.jnt_dofadr[index]]
    ElementTree.SubElement(element, "dynamics", damping=_text(damping), friction="0")
    effort = _effort(model, joint)
    limit = {"effort": _text(effort), "velocity": _text(effort / damping if damping > 0 else FASTEST)}
    if model.jnt_limited[index]:
        low, high = model.jnt_range[index] - model.qpos0[model.jnt_qposadr[index]]
        limit = {"lower": _text(low), "upper": _text(high), **limit}
    ElementTree.SubElement(element, "limit", limit)


def _effort(model: mujoco.MjModel, joint: str) -> float:
    import mujoco

    servo = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, joint)
    limited = servo >= 0 and model.actuator_forcelimited[servo]
    return float(np.abs(model.actuator_forcerange[servo]).max()) if limited else 0.0


def _add_frame(robot: Element, model: mujoco.MjModel, name: str) -> None:
    import mujoco

    site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, name)
    if site < 0:
        raise ModelError(f"the model has no site {name}")
    link = ElementTree.SubElement(robot, "link", name=name)
    inertial = ElementTree.SubElement(link, "inertial")
    ElementTree.SubElement(inertial, "mass", value="0")
    ElementTree.SubElement(inertial, "inertia", dict.fromkeys(("ixx", "ixy", "ixz", "iyy", "iyz", "izz"), "0"))
    parent = _body_name(model, int(model.site_bodyid[site]))
    _add_fixed(robot, name, parent, model.site_pos[site], _matrix(model.site_quat[site]))


def _add_fixed(robot: Element, name: str, parent: str, place: np.ndarray, axes: np.ndarray) -> None:
    element = ElementTree.SubElement(robot, "joint", name=f"{name}_fixed", type="fixed")
    _add_origin(element, place, axes)
    ElementTree.SubElement(element, "parent", link=parent)
    ElementTree.SubElement(element, "child", link=name)


def _add_origin(element: Element, place: np.ndarray, axes: np.ndarray | None = None) -> None:
    """Position and fixed-axis roll, pitch, yaw."""
    angles = np.zeros(3)
    if axes is not None:
        level = np.hypot(axes[0, 0], axes[1, 0])
        roll = np.arctan2(axes[2, 1], axes[2, 2]) if level > 1e-9 else np.arctan2(-axes[1, 2], axes[1, 1])
        yaw = np.arctan2(axes[1, 0], axes[0, 0]) if level > 1e-9 else 0.0
        angles = np.array([roll, np.arctan2(-axes[2, 0], level), yaw])
    ElementTree.SubElement(element, "origin", xyz=_vector(place), rpy=_vector(angles))


def _body_name(model: mujoco.MjModel, body: int) -> str:
    name = model.body(body).name
    if not name:
        raise ModelError(f"body {body} has no name, and URDF's links need one")
    return name


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    import mujoco

    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def _vector(values: np.ndarray) -> str:
    return " ".join(_text(value) for value in values)


def _text(value: float) -> str:
    return repr(float(value) + 0.0)  # the shortest text that reads back as the same number
