"""The biped as a folder of files that MuJoCo's own viewer opens: robot, scene, and where its numbers come from."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from core_utils.files import write_atomically
from jethr2.params import RobotParams, provenance
from jethr2.robot import build_spec

SCENE = """<mujoco model="jethr2 scene">
  <include file="jethr2.xml"/>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.45 0.6 0.8" rgb2="0.05 0.08 0.12" width="512" height="3072"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="0.82 0.84 0.86" rgb2="0.7 0.73 0.76" width="300" height="300"/>
    <material name="floor" texture="floor" texuniform="true" texrepeat="2 2" reflectance="0.1"/>
  </asset>
  <worldbody>
    <light pos="0 0 4" dir="0 0 -1" type="directional"/>
    <geom name="floor" type="plane" size="0 0 0.05" material="floor"/>
  </worldbody>
</mujoco>
"""

README = """# Jet-HR2 in MuJoCo

`jethr2.xml` is the robot, `scene.xml` puts it on a floor: `python -m mujoco.viewer --mjcf=scene.xml`.
The keyframes are `stand` and `takeoff`; the fans take throttles of 0 to 1, the joints reference angles in rad.
Written by the package jethr2 (Apache-2.0, see LICENSE) after arXiv 2108.11557; no mesh and no number is the paper's authors' own file.

Sources: A the paper's abstract, L the lab's public program, D derived, S assumed, M measured.

| parameter | value | unit | source |
|---|---|---|---|
"""


def write_model_folder(params: RobotParams, folder: Path) -> None:
    """Writes `jethr2.xml`, `scene.xml`, `LICENSE`, and `README.md` with the provenance of every number.

    Args:
        params: the robot's.
        folder: is made; files of these names are replaced, each whole.
    """
    spec = build_spec(params)
    spec.delete(spec.geom("floor"))
    for light in list(spec.lights):
        spec.delete(light)
    spec.compile()
    rows = [f"| {row.field} | {row.value} | {row.unit} | {row.source} |\n" for row in provenance(params)]
    write_atomically(folder / "jethr2.xml", spec.to_xml())
    write_atomically(folder / "scene.xml", SCENE)
    licence = importlib.metadata.distribution("jethr2").read_text("licenses/LICENSE")
    write_atomically(folder / "LICENSE", licence or "Apache-2.0\n")
    write_atomically(folder / "README.md", README + "".join(rows))
