import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_s.colour import Nv12
from imagenet_s.errors import PipelineError
from imagenet_s.probes import synthetic_picture

EVERY = pytest.mark.parametrize(
    "trip",
    [Nv12(*choice) for choice in itertools.product(("bt601", "bt709"), ("limited", "full"), ("nearest", "linear"))],
)
GREYS = np.arange(256, dtype=np.uint8)[None, :, None].repeat(4, 0).repeat(3, 2)


@EVERY
def test_greys_survive_within_a_level(trip):
    assert np.abs(trip(GREYS).astype(int) - GREYS).max() <= (1 if trip.range == "limited" else 0)


@EVERY
@given(st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=30, deadline=None)
def test_a_flat_colour_loses_only_its_rounding(trip, colour):
    flat = np.full((3, 5, 3), colour, np.uint8)
    # half a level of luma and chroma each, stretched by the inverse matrix's largest row
    bound = 0.5 * np.abs(np.linalg.inv(trip._matrix)).sum(axis=1).max() + 1
    assert np.abs(trip(flat).astype(int) - flat).max() <= bound < 4.5


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_limited_luma_rises_219_levels_where_full_rises_255(matrix):
    limited, full = (Nv12(matrix, span).encode(GREYS)[0][0].astype(float) for span in ("limited", "full"))
    assert full.tolist() == list(range(256))
    slope, start = np.polyfit(full, limited, 1)
    assert slope == pytest.approx(219 / 255, abs=1e-3)
    assert start == pytest.approx(16, abs=0.05)


def test_the_limited_bt601_matrix_is_the_standards():
    # specification, section 2.4
    expected = [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
    assert np.abs(Nv12()._matrix * 255 - expected).max() < 1e-3
    luma, chroma = Nv12().encode(np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert luma.tolist() == [[81, 81], [81, 81]]
    assert chroma.tolist() == [[[90, 240]]]


def test_chroma_is_the_mean_of_two_by_two_pixels_and_luma_is_not():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = (255, 0, 0)
    luma, chroma = Nv12(range="full").encode(image)
    assert luma.tolist() == [[76, 0], [0, 0]]
    assert chroma[0, 0].tolist() == [round(128 + (85 - 128) / 4), round(128 + 127.5 / 4)]
    assert Nv12(range="full")(image)[1, 1].max() > 0  # red has leaked


@EVERY
def test_saturated_edges_bleed_into_their_neighbours_and_not_further(trip):
    image = np.zeros((16, 17, 3), np.uint8)
    image[:, :9] = (255, 0, 0)
    image[:, 9:] = (0, 0, 255)
    error = np.abs(trip(image).astype(int) - image).max(axis=(0, 2))
    reach = 2 if trip.chroma_upsample == "nearest" else 3
    assert 60 < error.max() <= 160
    assert error[: 9 - reach].max() <= 2
    assert error[9 + reach :].max() <= 2


def test_linear_chroma_is_nearer_on_smooth_colour():
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.stack([2 * x + 60, 220 - 2 * x, 2 * y + 60], axis=-1).astype(np.uint8)
    error = {
        way: np.abs(Nv12(chroma_upsample=way)(smooth).astype(int) - smooth).mean() for way in ("nearest", "linear")
    }
    assert error["linear"] < error["nearest"]


@EVERY
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8, 3), (9, 9)])
def test_odd_sizes_keep_their_shape(trip, shape):
    image = synthetic_picture(*shape)
    assert trip(image).shape == (*shape, 3)
    assert trip.encode(image)[1].shape == ((shape[0] + 1) // 2, (shape[1] + 1) // 2, 2)


def test_it_is_a_value():
    assert Nv12() == Nv12("bt601", "limited", "nearest")
    assert hash(Nv12()) != hash(Nv12("bt709"))
    wrong = Nv12()
    object.__setattr__(wrong, "matrix", "bt2020")  # as a file might have it, past the tests' type checks
    with pytest.raises(PipelineError, match="matrix='bt2020'; expected one of bt601, bt709"):
        wrong.__post_init__()
