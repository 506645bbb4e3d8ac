"""The round trip through NV12."""

import numpy as np
import pytest

from imagenet_s import Nv12
from imagenet_s.errors import PipelineError


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("levels", ["limited", "full"])
@pytest.mark.parametrize("upsample", ["nearest", "linear"])
def test_grey_images_come_back_within_one_level(matrix, levels, upsample):
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    back = Nv12(matrix, levels, upsample)(grey)
    assert np.abs(back.astype(int) - grey).max() <= 1


def test_a_flat_colour_comes_back_within_two_levels():
    for colour in ((255, 0, 0), (0, 0, 255), (12, 200, 90)):
        image = np.full((6, 8, 3), colour, np.uint8)
        assert np.abs(Nv12()(image).astype(int) - image).max() <= 2


def test_limited_range_stores_what_the_standard_says():
    """BT.601: red is Y 81, Cb 90, Cr 240; seen here by a second decoder's formula."""
    y, cb, cr = 16 + 65.481, 128 - 37.797, 128 + 112.0
    red = 255 / 219 * (round(y) - 16) + 255 / 112 * (1 - 0.299) * (round(cr) - 128)
    back = Nv12()(np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert back[0, 0, 0] == min(255, round(red))
    assert round(cb) == 90


def test_chroma_of_fine_stripes_is_averaged():
    stripes = np.zeros((4, 8, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    back = Nv12()(stripes).astype(int)
    chroma = back[..., 0] - back[..., 2]
    assert np.abs(chroma[:, 2::2] - chroma[:, 3::2]).max() < 80  # 255 before


def test_odd_sizes_keep_their_shape():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert Nv12(chroma_upsample="linear")(image).shape == (5, 7, 3)


def test_unknown_values_are_named(monkeypatch):
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(PipelineError, match=r"matrix must be one of bt601, bt709"):
        Nv12(matrix="bt2020")
