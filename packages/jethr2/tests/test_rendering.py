import functools
import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from flying import robot
from PIL import Image

from jethr2 import Controller, ParameterError, simulate
from jethr2.errors import JetHR2Error
from jethr2.rendering import SKY, Camera, choose_backend, save_video, storyboard


@functools.cache
def flight():
    model, trim = robot()
    return simulate(model, Controller(model, trim), 1.8, trim=trim)


@pytest.fixture
def camera():
    try:
        camera = Camera(robot()[0], 160, 160)
    except JetHR2Error as error:
        pytest.skip(str(error))
    with camera:
        yield camera


def test_the_robot_stands_between_sky_and_floor(camera):
    picture = camera.image(robot()[1].qpos)
    assert picture.shape == (160, 160, 3)
    assert tuple(picture[2, 2]) == SKY
    assert tuple(picture[-2, 2]) != SKY
    # Something that is neither: the orange fans.
    assert ((picture[..., 0].astype(int) - picture[..., 2]) > 60).sum() > 20


def test_jets_show_where_the_fans_push(camera):
    qpos = np.array(robot()[1].qpos)
    qpos[2] += 0.5
    off, on = camera.image(qpos, np.zeros(4)), camera.image(qpos, np.ones(4))
    changed = np.flatnonzero((off.astype(int) != on).any(axis=(1, 2)))
    assert len(changed) > 10
    assert changed.mean() > 80  # under the fans: the picture's lower half


def test_a_robot_that_is_turned_over_looks_it(camera):
    qpos = np.array(robot()[1].qpos)
    qpos[2] = 1.5
    upright = camera.image(qpos)
    qpos[3:7] = [0, 1, 0, 0]
    assert (upright != camera.image(qpos)).any(axis=2).mean() > 0.05


@pytest.mark.usefixtures("camera")
def test_a_storyboard_holds_its_frames_side_by_side_and_the_robot_climbs():
    board = np.asarray(Image.open(io.BytesIO(storyboard(robot()[0], flight(), frames=4, width=96, height=192))))
    assert board.shape == (192, 4 * 96, 3)
    orange = (board[..., 0].astype(int) - board[..., 2]) > 60
    rows = [np.flatnonzero(orange[:, 96 * k : 96 * (k + 1)].any(axis=1)).mean() for k in range(4)]
    assert rows[3] < rows[2] < rows[0]


@pytest.mark.usefixtures("camera")
def test_a_storyboard_takes_times_within_the_flight_only():
    with pytest.raises(ParameterError, match=r"within the flight, 0 to 1\.8 s, got 2\.0"):
        storyboard(robot()[0], flight(), [0.0, 2.0])
    with pytest.raises(ParameterError, match="frames must be at least 1"):
        storyboard(robot()[0], flight(), frames=0)


@pytest.mark.usefixtures("camera")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # the encoder is a program; other tests loaded JAX
def test_a_video_lasts_as_long_as_the_flight(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = save_video(robot()[0], flight(), tmp_path / "v.mp4", fps=10, width=64, height=64)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == 19
    assert seconds == pytest.approx(1.9, abs=0.05)


@pytest.mark.usefixtures("camera")
def test_without_an_encoder_the_video_is_a_gif_and_says_so(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else found(name))
    with pytest.warns(UserWarning, match=r"imageio-ffmpeg is not installed .*v\.gif instead"):
        path = save_video(robot()[0], flight(), tmp_path / "v.mp4", fps=5, width=64, height=64)
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.info["duration"]) == ("GIF", 10, 200)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("v.avi", {}, r"ends in \.mp4 or \.gif"),
        ("v.mp4", {"fps": 0}, "fps must be at least 1"),
        ("v.mp4", {"width": 100}, "width must be a multiple of 16"),
    ],
)
def test_videos_that_cannot_be_are_named(tmp_path, name, options, complaint):
    with pytest.raises(ParameterError, match=complaint):
        save_video(robot()[0], flight(), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def shell(code, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=120
    )


CODE = """
import mujoco
from jethr2.rendering import Camera
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>")
try:
    with Camera(model, 64, 64) as camera:
        print(camera.image(model.qpos0).shape)
except ValueError as error:
    print(error)
"""


def test_without_a_backend_one_line_names_what_to_set_and_install():
    result = shell(CODE, MUJOCO_GL="off")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "cannot render, MUJOCO_GL='off' gives no picture" in result.stdout
    assert "MUJOCO_GL=egl and install libegl1" in result.stdout


@pytest.mark.usefixtures("camera")
@pytest.mark.skipif(sys.platform != "linux", reason="EGL")
def test_mujoco_may_be_imported_first():
    assert shell(CODE).stdout == "(64, 64, 3)\n"


def test_a_backend_that_was_chosen_stays(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    choose_backend()
    assert os.environ["MUJOCO_GL"] == "osmesa"
