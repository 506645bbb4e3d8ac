"""Other robots with four fans, from MJCF or URDF files: checked, and completed with what they do not say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from jethr2.errors import InfeasibleThrust, ModelError
from jethr2.layout import FANS, IMU_SENSORS, fan_full_thrusts
from jethr2.params import RobotParams
from jethr2.robot import add_fan, add_sensors, add_servo
from jethr2.urdf import FRAMES

if TYPE_CHECKING:
    import mujoco

MAX_BYTES = 16 * 2**20
"""Of one XML file."""

FOLDERS = ("meshdir", "texturedir", "assetdir")


def load_foreign(path: Path, params: RobotParams | None = None) -> mujoco.MjModel:
    """Loads a robot whose root moves freely, whose other joints are named hinges, with four fan sites and `imu`.

    A fan without an actuator at its site gets the biped's, as does a hinge without a position servo; sensors that are
    missing are added, and a floor where nothing stands in the world. Actuators are found under the names of their
    joints and sites afterwards. In URDF the sites are links of these names.

    Args:
        path: MJCF or URDF; nothing outside its folder is read.
        params: for what is added; None: the biped's.

    Raises:
        ModelError: the file cannot be read, names files outside its folder, or lacks what is needed.

    Warns:
        InfeasibleThrust: the full thrust does not exceed the weight.
    """
    import mujoco

    root = _parse(path)
    if root.tag not in ("mujoco", "robot"):
        raise ModelError(f"{path} is neither MJCF nor URDF: its root is <{root.tag}>")
    _check_files(path, root)
    if root.tag == "robot":
        _check_inertials(path, root)
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        if root.tag == "robot":
            _free_urdf(spec)
        _check_parts(path, spec)
        _complete(path, spec, params or RobotParams())
        model = spec.compile()
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{path}: {' '.join(str(error).split())}") from None
    _check_compiled(path, model)
    full, weight = fan_full_thrusts(model).sum(), model.body_subtreemass[0] * -model.opt.gravity[2]
    if full <= weight:
        message = f"{path}: a full thrust of {full:.2f} N cannot lift a weight of {weight:.2f} N"
        warnings.warn(message, InfeasibleThrust, stacklevel=3)
    return model


def _parse(path: Path) -> ElementTree.Element:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path} is larger than {MAX_BYTES} bytes")
        text = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    if b"\0" in text:
        raise ModelError(f"{path} is not XML in UTF-8")  # in UTF-16 the words below would not be found
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ModelError(f"{path} declares a document type, which robot files have no need of")
    try:
        return ElementTree.fromstring(text)  # noqa: S314 -- none with entities gets here
    except ElementTree.ParseError as error:
        raise ModelError(f"{path} is not XML: {error}") from None


def _check_files(path: Path, root: ElementTree.Element) -> None:
    """Refuses plugins, and paths that leave the file's folder, in the file and in those that it includes."""
    folder, waiting, seen = path.parent.resolve(), [(path, root)], set()
    while waiting:
        file, tree = waiting.pop()
        if next(tree.iter("plugin"), None) is not None:
            raise ModelError(f"{file} asks for a plugin; plugins are not loaded")
        _check_numbers(file, tree)
        compilers = list(tree.iter("compiler"))
        places = [compiler.get(name, "") for compiler in compilers for name in FOLDERS]
        for tag, name in _files(tree):
            for place in {"", *places}:
                target = (folder / place / name).resolve()
                if not target.is_relative_to(folder):
                    raise ModelError(f"{file} names {Path(place, name)}, which is outside its folder")
                if tag in ("include", "model", "attach") and target.is_file() and target not in seen:
                    seen.add(target)
                    waiting.append((target, _parse(target)))


def _check_numbers(file: Path, tree: ElementTree.Element) -> None:
    """MuJoCo warns of nan and goes on."""
    for element in tree.iter():
        for attribute, value in element.attrib.items():
            try:
                numbers = [float(word) for word in value.split()]
            except ValueError:
                continue
            if not np.isfinite(numbers).all():
                raise ModelError(f"{file}: {attribute} of <{element.tag}> must be finite, got {value!r}")


def _files(tree: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for element in tree.iter():
        for attribute, value in element.attrib.items():
            if attribute.startswith("file") and attribute != "filter":
                yield element.tag, value.removeprefix("package://").removeprefix("file://")


def _check_inertials(path: Path, root: ElementTree.Element) -> None:
    """Every link that moves against its parent must say what it weighs; otherwise MuJoCo would guess from shapes."""
    moving = [joint.find("child") for joint in root.iter("joint") if joint.get("type") != "fixed"]
    children = [child.get("link") for child in root.iter("child")]
    names = {child.get("link") for child in moving if child is not None}
    names |= {link.get("name") for link in root.iter("link")}.difference(children)
    for link in root.iter("link"):
        inertial = link.find("inertial")
        complete = inertial is not None and None not in (inertial.find("mass"), inertial.find("inertia"))
        if link.get("name") in names and not complete:
            raise ModelError(f"{path}: link {link.get('name')} has no inertial with mass and inertia")


def _free_urdf(spec: mujoco.MjSpec) -> None:
    """Lets the root move, and turns the links that are named as fan or IMU into sites."""
    roots = spec.worldbody.bodies
    if len(roots) == 1 and not roots[0].joints:
        roots[0].add_freejoint(name="root")
    for name in FRAMES:
        body = spec.body(name)
        if body is not None:
            body.add_site(name=name)


def _check_parts(path: Path, spec: mujoco.MjSpec) -> None:
    import mujoco

    for name in FRAMES:
        if spec.site(name) is None:
            raise ModelError(f"{path} has no site {name}; sites needed are {', '.join(FRAMES)}")
    kinds = mujoco.mjtJoint
    for joint in spec.joints:
        if joint.type == kinds.mjJNT_FREE:
            continue
        if not joint.name:
            raise ModelError(f"{path}: a joint of body {joint.parent.name or '(unnamed)'} has no name")
        if joint.type != kinds.mjJNT_HINGE:
            raise ModelError(f"{path}: joint {joint.name} is no hinge")
        if joint.range[0] > joint.range[1]:
            raise ModelError(f"{path}: the range of joint {joint.name} is reversed")


def _complete(path: Path, spec: mujoco.MjSpec, params: RobotParams) -> None:
    import mujoco

    hinges = [joint for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_HINGE]
    for joint in hinges:
        if not _adopt(path, spec, mujoco.mjtTrn.mjTRN_JOINT, joint.name, "servo"):
            add_servo(spec, joint.name, params)
    for fan in FANS:
        if not _adopt(path, spec, mujoco.mjtTrn.mjTRN_SITE, f"{fan}_fan", "fan"):
            add_fan(spec, fan, params)
    names = tuple(joint.name for joint in hinges)
    wanted = {*IMU_SENSORS, *(f"{name}_{suffix}" for name in names for suffix in ("pos", "vel"))}
    if not wanted <= {sensor.name for sensor in spec.sensors}:
        for sensor in [sensor for sensor in spec.sensors if sensor.name in wanted]:
            spec.delete(sensor)
        add_sensors(spec, names)
    if not spec.worldbody.geoms:
        floor = spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE)
        floor.size = [0, 0, 0.05]
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)


def _adopt(path: Path, spec: mujoco.MjSpec, transmission: Any, target: str, role: str) -> bool:
    """Names the actuator at a joint or site after it; says whether there is one."""
    found = [each for each in spec.actuators if each.trntype == transmission and each.target == target]
    if len(found) > 1:
        raise ModelError(f"{path}: {len(found)} actuators drive {target}, one {role} must")
    for actuator in found:
        actuator.name = target
    return bool(found)


def _check_compiled(path: Path, model: mujoco.MjModel) -> None:
    """What the controller takes for granted: one input each, fans in throttles along z, servos in angles."""
    import mujoco

    if not (model.njnt and model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE):
        raise ModelError(f"{path}: its first joint must be its root's free joint")
    if np.count_nonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE) > 1:
        raise ModelError(f"{path} has several free joints, one robot has one")
    single = model.actuator_ctrlnum == 1
    if not single.all():
        name = model.actuator(int(np.flatnonzero(~single)[0])).name
        raise ModelError(f"{path}: actuator {name} has several inputs, one is needed")
    kinds = mujoco.mjtDyn
    lags = [int(kind) for kind in (kinds.mjDYN_NONE, kinds.mjDYN_FILTER, kinds.mjDYN_FILTEREXACT)]
    for fan in FANS:
        index = model.actuator(f"{fan}_fan").id
        right = (
            model.actuator_trnid[index, 1] < 0
            and model.actuator_dyntype[index] in lags
            and model.actuator_gaintype[index] == mujoco.mjtGain.mjGAIN_FIXED
            and model.actuator_biastype[index] == mujoco.mjtBias.mjBIAS_NONE
            and tuple(model.actuator_ctrlrange[index]) == (0.0, 1.0)
            and not np.any(model.actuator_gear[index, [0, 1, 3, 4]])
            and model.actuator_gainprm[index, 0] * model.actuator_gear[index, 2] > 0
        )
        if not right:
            raise ModelError(f"{path}: actuator {fan}_fan must push along its site's z, for a ctrlrange of 0 to 1")
    for joint in range(model.njnt):
        if model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_HINGE:
            continue
        index = model.actuator(model.joint(joint).name).id
        gain, bias = model.actuator_gainprm[index, 0], model.actuator_biasprm[index]
        if not (gain > 0 and bias[1] == -gain and model.actuator_biastype[index] == mujoco.mjtBias.mjBIAS_AFFINE):
            raise ModelError(f"{path}: the actuator of joint {model.joint(joint).name} is no position servo")
