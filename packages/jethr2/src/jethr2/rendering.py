"""Pictures of the robot in flight: a storyboard, and a video where an encoder is present; no screen is needed."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from core_utils.files import write_atomically
from jethr2.errors import JetHR2Error, ParameterError
from jethr2.layout import fan_site_ids
from jethr2.trajectory import Trajectory

if TYPE_CHECKING:
    import mujoco

JET = 0.4
"""Length of a fan's drawn jet at full thrust, m."""

SKY = (221, 230, 240)
"""Where nothing is."""

GOAL = 1.0
"""Rise that ends a storyboard, m."""

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
        self._model, self._distance = _lit(model), distance
        self._renderer = open_renderer(self._model, width, height)
        self._camera = mujoco.MjvCamera()

    def image(
        self,
        qpos: Float[np.ndarray, " nq"],
        fans: Float[np.ndarray, " 4"] | None = None,
        lookat: tuple[float, float, float] | None = None,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Draws the robot in a posture.

        Args:
            qpos: of the robot.
            fans: shares of the full thrust, drawn as jets out of the fans.
            lookat: point in the middle of the picture, m; the robot's where None.
        """
        import mujoco

        self._data.qpos[:] = qpos
        if self._model.nlight:
            self._model.light_pos[0] = qpos[:3] + np.array([0.0, 0.0, 4.0])  # so that it does not fly out of the light
        mujoco.mj_forward(self._model, self._data)
        self._camera.lookat[:] = (qpos[0], qpos[1], qpos[2] - 0.15) if lookat is None else lookat
        self._camera.distance, self._camera.azimuth, self._camera.elevation = self._distance, 215.0, -12.0
        self._renderer.update_scene(self._data, self._camera)
        if fans is not None:
            self._add_jets(fans)
        picture = self._renderer.render()
        picture[(picture == 0).all(axis=2)] = SKY  # lit surfaces are never quite black
        return picture

    def _add_jets(self, fans: np.ndarray) -> None:
        import mujoco

        scene = self._renderer.scene
        for site, share in zip(fan_site_ids(self._model), fans, strict=True):
            start = self._data.site_xpos[site]
            end = start - JET * share * self._data.site_xmat[site].reshape(3, 3)[:, 2]
            jet = scene.geoms[scene.ngeom]
            kind, colour = mujoco.mjtGeom.mjGEOM_ARROW, np.array([0.95, 0.5, 0.1, 0.8], np.float32)
            mujoco.mjv_initGeom(jet, kind.value, np.zeros(3), np.zeros(3), np.zeros(9), colour)
            mujoco.mjv_connector(jet, kind.value, 0.018, start, end)
            scene.ngeom += 1

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def storyboard(
    model: mujoco.MjModel,
    flight: Trajectory,
    times: Sequence[float] | None = None,
    *,
    frames: int = 6,
    width: int = 240,
    height: int = 480,
) -> bytes:
    """Draws a flight as pictures side by side, with time, height and tilt; the camera keeps its height.

    Args:
        model: that flew.
        flight: of `simulate`.
        times: of the pictures, s; evenly until the robot is 1 m up, or until the end, where None.
        frames: number of pictures where no times are given.
        width: of a picture, pixels.
        height: of a picture, pixels.

    Returns:
        PNG.

    Raises:
        ParameterError: a time outside the flight, no pictures.
        JetHR2Error: no GL backend works here.
    """
    from PIL import Image

    if frames < 1:
        raise ParameterError("frames", frames, "at least 1")
    rise = flight["qpos"][:, 2] - flight["qpos"][0, 2]
    if times is None:
        above = np.flatnonzero(rise >= GOAL)
        times = np.linspace(0, flight["time"][above[0] if len(above) else -1], frames).tolist()
    rows = [_row(flight, time) for time in times]
    top = float(flight["qpos"][rows, 2].max()) + 0.35
    # The field of view is 45 degrees: all heights from the floor to the highest robot's top fit.
    with Camera(model, width, height, distance=max(2.2, 1.25 * top + 0.4)) as camera:
        pictures = [
            _labelled(camera.image(q := flight["qpos"][row], flight["fan"][row], (q[0], q[1], 0.5 * top)), flight, row)
            for row in rows
        ]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(out, format="png")
    return out.getvalue()


def save_video(
    model: mujoco.MjModel, flight: Trajectory, path: str | Path, *, fps: int = 30, width: int = 480, height: int = 480
) -> Path:
    """Films a flight in real time.

    Args:
        model: that flew.
        flight: of `simulate`.
        path: `.mp4` or `.gif`.
        fps: pictures per second; a GIF's are rounded to 10 ms.
        width: pixels, a multiple of 16.
        height: pixels, a multiple of 16.

    Returns:
        The file: with the suffix `.gif` and a warning where an MP4 was wanted and imageio-ffmpeg is not installed.

    Raises:
        ParameterError: another suffix, a rate or size that means nothing.
        JetHR2Error: no GL backend works here, or the encoder fails; nothing is written.
    """
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ParameterError("video", str(path), "a file that ends in .mp4 or .gif")
    if fps < 1:
        raise ParameterError("fps", fps, "at least 1")
    for name, value in (("width", width), ("height", height)):
        if value < 16 or value % 16:
            raise ParameterError(name, value, "a multiple of 16")
    if film_path(path) != path:
        path = film_path(path)
        warnings.warn(f"imageio-ffmpeg is not installed (pip install 'jethr2[video]'): {path} instead", stacklevel=2)
    pictures = _film(model, flight, fps, width, height)
    write_atomically(path, _gif(pictures, fps) if path.suffix == ".gif" else _mp4(pictures, fps, width, height))
    return path


def film_path(path: Path) -> Path:
    """Where a film that is wanted there will be: as a GIF where an MP4 has no encoder."""
    encodes = path.suffix != ".mp4" or importlib.util.find_spec("imageio_ffmpeg") is not None
    return path if encodes else path.with_suffix(".gif")


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


def _lit(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy for the eye, with light on all sides."""
    lit = copy.copy(model)
    lit.vis.headlight.ambient[:], lit.vis.headlight.diffuse[:] = 0.4, 0.3
    lit.light_diffuse[:], lit.light_cutoff[:] = 0.3, 80.0
    return lit


def _row(flight: Trajectory, time: float) -> int:
    """The row nearest in time."""
    last = float(flight["time"][-1])
    if not 0 <= time <= last + 1e-9:
        raise ParameterError("times", time, f"within the flight, 0 to {last:g} s")
    return int(np.abs(flight["time"] - time).argmin())


def _film(model: mujoco.MjModel, flight: Trajectory, fps: int, width: int, height: int) -> Iterator[np.ndarray]:
    with Camera(model, width, height) as camera:
        for time in np.arange(0, flight["time"][-1] + 1e-9, 1 / fps):
            row = _row(flight, float(time))
            yield _labelled(camera.image(flight["qpos"][row], flight["fan"][row]), flight, row)


def _labelled(picture: np.ndarray, flight: Trajectory, row: int) -> np.ndarray:
    """With time, height and tilt in the upper corner."""
    from PIL import Image, ImageDraw, ImageFont

    roll, pitch, yaw = flight.angles[row]
    tilt = np.degrees(np.arccos(np.clip(np.cos(roll) * np.cos(pitch), -1, 1)))
    rise = round(float(flight["qpos"][row, 2] - flight["qpos"][0, 2]), 2) + 0.0  # never -0.00
    lines = (
        f"{flight['time'][row]:.2f} s",
        f"rise {rise:.2f} m",
        f"tilt {tilt:.1f}°, yaw {np.degrees(yaw):.1f}°",
    )
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).multiline_text((8, 6), "\n".join(lines), fill="black", font=ImageFont.load_default(14))
    return np.asarray(image)


def _gif(pictures: Iterator[np.ndarray], fps: int) -> bytes:
    from PIL import Image

    first, *others = [Image.fromarray(picture) for picture in pictures]
    out = io.BytesIO()
    delay = max(10, round(100 / fps) * 10)
    first.save(out, format="gif", save_all=True, append_images=others, duration=delay, loop=0)
    return out.getvalue()


def _mp4(pictures: Iterator[np.ndarray], fps: int, width: int, height: int) -> bytes:
    import imageio_ffmpeg

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flight.mp4"
        encoder = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, codec="libx264", quality=7)
        try:
            encoder.send(None)
            for picture in pictures:
                encoder.send(np.ascontiguousarray(picture))
        except OSError as error:
            raise JetHR2Error(f"the video's encoder failed: {error}", "name a .gif instead") from None
        finally:
            encoder.close()
        return path.read_bytes()
