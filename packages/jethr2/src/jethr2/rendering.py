"""Pictures of the robot in flight: a storyboard, and a video where an encoder is present; no screen is needed."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from jethr2.errors import JetHR2Error

if TYPE_CHECKING:
    import mujoco

HINT = "set MUJOCO_GL=egl and install libegl1 and libgl1-mesa-dri, or MUJOCO_GL=osmesa and libosmesa6"


class Camera:
    """Looks at the robot from the front left and follows it; to be closed, and used by one thread."""

    def __init__(self, model: mujoco.MjModel, width: int = 480, height: int = 480, *, distance: float = 2.0) -> None:
        """Opens a renderer without a window.

        Args:
            model: of `load_model`.
            width: pixels.
            height: pixels.
            distance: from the robot, m.

        Raises:
            JetHR2Error: no GL backend works here, in one line that says what to set and install.
        """
        import mujoco

        self._data = mujoco.MjData(model)
        self._model, self._distance = model, distance
        self._renderer = open_renderer(model, width, height)
        self._camera = mujoco.MjvCamera()

    def image(
        self, qpos: Float[np.ndarray, " nq"], lookat: tuple[float, float, float] | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """The robot in that posture, in the middle or as seen by a camera that looks at a point."""
        import mujoco

        self._data.qpos[:] = qpos
        mujoco.mj_forward(self._model, self._data)
        self._camera.lookat[:] = (qpos[0], qpos[1], qpos[2] - 0.15) if lookat is None else lookat
        self._camera.distance, self._camera.azimuth, self._camera.elevation = self._distance, 215.0, -12.0
        self._renderer.update_scene(self._data, self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def choose_backend() -> None:
    """Chooses EGL on Linux unless MUJOCO_GL says otherwise; MuJoCo reads it when it is imported."""
    if platform.system() == "Linux" and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
        if "mujoco" in sys.modules:
            # Imported before us, it chose a backend that needs a window; its own choice is made anew.
            importlib.reload(sys.modules[sys.modules["mujoco"].Renderer.__module__].gl_context)


def open_renderer(model: mujoco.MjModel, width: int, height: int) -> Any:
    """A `mujoco.Renderer` without a window.

    Raises:
        JetHR2Error: no GL backend works here.
    """
    try:
        choose_backend()
        import mujoco

        return mujoco.Renderer(model, height, width)
    except Exception as error:  # every backend complains in its own way, some by AttributeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        backend = os.environ.get("MUJOCO_GL", "")
        raise JetHR2Error(f"cannot render, MUJOCO_GL={backend!r} gives no picture: {reason}", HINT) from None
