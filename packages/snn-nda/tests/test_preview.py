"""Pictures of transforms: panels, colours, and time."""

import io

import numpy as np
import pytest
from PIL import Image

from snn_nda.errors import FramesError
from snn_nda.params import Cutout, HFlip, Params, Roll
from snn_nda.policies import PAPER, Policy
from snn_nda.preview import BRIGHTER, DARKER, coloured, examples, preview_gif, preview_png


@pytest.fixture
def frames():
    frames = np.zeros((4, 2, 24, 24), np.float32)
    frames[:, 1, 4:8, 4:20] = 1
    frames[2, 0, 10:20, 4:8] = 2
    return frames


def test_every_operation_goes_as_far_as_the_policy():
    shown = examples(PAPER, (24, 24))
    assert shown["mirror"] == Params((HFlip(),))
    assert shown["roll 2, 2 px"] == Params((Roll(dy=2, dx=2),))
    assert shown["cutout 8 px"] == Params((Cutout(y=12, x=12, length=8),))
    assert "rotate 10°" in examples(Policy(rotate=10.0), (24, 24))


def test_colours_tell_polarities_apart():
    picture = coloured(np.array([[[0.0, 4.0, 0.0, 1.0]], [[0.0, 0.0, 4.0, 0.0]]]), 4.0)
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[0, 1].tolist() == DARKER.tolist()
    assert picture[0, 2].tolist() == BRIGHTER.tolist()
    assert picture[0, 3].tolist() == [255 - (255 - value) // 2 - (255 - value) % 2 for value in DARKER.tolist()]


def test_the_grid_is_a_png(frames):
    picture = Image.open(io.BytesIO(preview_png(frames, PAPER, title="bars")))
    assert picture.format == "PNG"
    colours = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert tuple(DARKER.tolist()) in colours
    assert (255, 255, 255) in colours


def test_the_gif_runs_through_the_time_steps(frames):
    picture = Image.open(io.BytesIO(preview_gif(frames, PAPER, milliseconds=120)))
    assert picture.format == "GIF"
    assert picture.n_frames == 4
    assert picture.info["loop"] == 0
    shown = []
    for step in range(4):
        picture.seek(step)
        assert picture.info["duration"] == 120
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        shown.append(int((np.abs(pixels - DARKER).sum(-1) < 40).sum()))
    assert shown[2] > 2500  # 40 pixels in 8 panels, 3 x 3 on the screen, are 2880; some are cut or turned away
    assert max(shown[0], shown[1], shown[3]) == 0


@pytest.mark.parametrize("shape", [(2, 24, 24), (4, 3, 24, 24), (0, 2, 24, 24)])
def test_what_cannot_be_shown_is_named(shape):
    with pytest.raises(FramesError, match="a preview shows frames"):
        preview_png(np.zeros(shape, np.float32), PAPER)


def test_a_recording_without_events_is_white():
    assert preview_png(np.zeros((2, 2, 8, 8), np.float32), PAPER)[:4] == b"\x89PNG"
