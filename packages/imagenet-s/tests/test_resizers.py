import sys

import cv2
import numpy as np
import pytest
import pyvips
import torch
from example_images import PICTURE
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from imagenet_s import resizing as registry
from imagenet_s.errors import PipelineError
from imagenet_s.kernels import pillow
from imagenet_s.probes import synthetic_picture
from imagenet_s.resizing import PAPER, register_resizer, resize_all, resizer, resizers

NAMES = tuple(resizers())
EVERY = pytest.mark.parametrize("name", NAMES)
SIDES = st.integers(min_value=1, max_value=60)
# operators whose taps lie mirrored about the centre of the image
SYMMETRIC = (
    *(f"pillow-{way}" for way in ("bilinear", "hamming", "bicubic", "lanczos")),
    *(f"pillow12-{way}" for way in ("bilinear", "hamming", "bicubic", "lanczos")),
    *(f"torch-{way}" for way in ("bilinear", "bicubic", "bilinear-aa", "bicubic-aa")),
    *(f"opencv-{way}" for way in ("linear", "area", "cubic", "lanczos4")),
    *(f"kornia-{way}" for way in ("bilinear", "bicubic")),
)


def resized(name, image, size):
    return resizer(name).resize(image, size)


def far(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def noise(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def ramp(width, height=2):
    return np.arange(width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)


@EVERY
def test_the_result_has_the_size_and_the_type_that_were_asked_for(name):
    for size in ((20, 28), (33, 17), (80, 111), (1, 1), (40, 10)):
        pixels = resized(name, PICTURE, size)
        assert pixels.shape == (*size, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable


@EVERY
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=8, deadline=None)
def test_a_constant_image_stays_constant(name, shape, size, colour):
    pixels = resized(name, np.full((*shape, 3), colour, np.uint8), size)
    most = 5 if name == "swscale-fast-bilinear" else 0  # its own rounding; 5 was the most over 6000 colours and shapes
    assert far(pixels, np.full((*size, 3), colour, np.uint8)) <= most


@EVERY
@given(st.tuples(SIDES, SIDES), st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_resizing_to_the_same_size_changes_nothing(name, shape, seed):
    image = noise(seed, shape)
    assert np.array_equal(resized(name, image, shape), image)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_kernels_commute_with_a_flip(name):
    image = synthetic_picture(40, 56)
    for size in ((21, 30), (64, 90), (20, 28)):
        flipped = resized(name, image[:, ::-1].copy(), size)
        assert far(flipped[:, ::-1], resized(name, image, size)) <= 1


@pytest.mark.parametrize("name", ["opencv-nearest", "tf1-bilinear", "torch-nearest"])
def test_corner_aligned_operators_do_not_commute_with_a_flip(name):
    image = synthetic_picture(40, 56)
    flipped = resized(name, image[:, ::-1].copy(), (20, 28))
    assert far(flipped[:, ::-1], resized(name, image, (20, 28))) > 20


def test_the_centred_nearest_operators_are_one_where_no_centre_falls_on_an_edge():
    for shape, size in (((375, 500), (256, 256)), ((97, 95), (28, 31)), ((23, 31), (47, 71)), ((640, 427), (256, 256))):
        image = noise(0, shape)
        views = [
            resized(name, image, size) for name in ("pillow-nearest", "opencv-nearest-exact", "torch-nearest-exact")
        ]
        assert np.array_equal(views[0], views[1])
        assert np.array_equal(views[0], views[2])


def test_the_corner_aligned_nearest_operators_are_one():
    for shape, size in (((375, 500), (256, 256)), ((96, 97), (28, 31)), ((20, 30), (47, 71))):
        image = noise(0, shape)
        assert np.array_equal(resized("opencv-nearest", image, size), resized("torch-nearest", image, size))


def test_opencv_linear_is_area_at_exactly_half():
    image = noise(2, (64, 96))
    assert np.array_equal(resized("opencv-linear", image, (32, 48)), resized("opencv-area", image, (32, 48)))
    assert far(resized("opencv-linear", image, (32, 47)), resized("opencv-area", image, (32, 47))) > 20


@pytest.mark.parametrize("photograph", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
def test_torch_antialiased_is_pillow_within_a_level_on_landscape_photographs(way, photograph):
    image = load_sample_image(photograph)
    assert far(resized(f"torch-{way}-aa", image, (256, 256)), resized(f"pillow-{way}", image, (256, 256))) == 1


def test_torch_antialiased_bicubic_is_pillow_within_two_levels_on_noise():
    image = noise(4, (300, 450))  # on one value in 200000 here it is 2
    difference = resized("torch-bicubic-aa", image, (256, 256)).astype(int) - resized(
        "pillow-bicubic", image, (256, 256)
    )
    assert np.abs(difference).max() == 2
    assert np.mean(np.abs(difference) > 1) < 1e-4


@pytest.mark.parametrize("way", list(pillow.FILTERS))
def test_pillow_12_and_13_agree_on_landscapes(way):
    image = noise(5, (300, 450))
    assert np.array_equal(resized(f"pillow12-{way}", image, (256, 256)), resized(f"pillow-{way}", image, (256, 256)))


def test_a_ramp_shrunk_by_half_tells_the_grids_apart():
    image, size = ramp(32), (1, 16)
    i = np.arange(16)
    expected = {
        "pillow-box": 2 * i + 1,  # 2i + 0.5, rounded half up
        "opencv-linear": 2 * i + 1,
        "opencv-nearest": 2 * i,
        "pillow-nearest": 2 * i + 1,
        "opencv-nearest-exact": 2 * i + 1,
        "torch-nearest": 2 * i,
        "tf1-bilinear": 2 * i,
    }
    for name, values in expected.items():
        assert resized(name, image, size)[0, :, 0].tolist() == values.tolist(), name


@pytest.mark.parametrize("name", [name for name in NAMES if "nearest" not in name and name != "swscale-fast-bilinear"])
def test_an_impulse_enlarged_keeps_its_mass(name):
    image = np.full((16, 16, 3), 100, np.uint8)  # grey about it, so that negative lobes are not clipped
    image[7, 7] = 200
    response = resized(name, image, (48, 48)).astype(float)[:, :, 0] - 100
    assert response.sum() / 9 == pytest.approx(100, abs=7)  # 48 x 48 values, each rounded
    assert response.max() > 25


def test_antialiased_operators_average_what_others_skip():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    contrast = {name: int(np.ptp(resized(name, stripes, (18, 18))[4:-4, 4:-4])) for name in NAMES}
    # the stripes' period, 2, is far below the new grid's, 3.6
    smooth = (
        "pillow-bilinear",
        "torch-bilinear-aa",
        "opencv-area",
        "vips-linear",
        "swscale-bilinear",
        "pillow12-hamming",
    )
    rough = ("opencv-linear", "torch-bilinear", "opencv-nearest", "kornia-bilinear", "opencv-cubic")
    assert max(contrast[name] for name in smooth) < 80 < 150 < min(contrast[name] for name in rough)


def test_the_papers_eleven_are_known():
    assert len(PAPER) == len(set(PAPER)) == 11
    assert set(PAPER) <= set(NAMES)
    assert all(resizer(name).available for name in NAMES)
    assert all(one.version and one.description for one in resizers().values())


def test_many_at_once_give_the_pixels_of_one_by_one():
    views = dict(resize_all(PICTURE, (20, 21), NAMES))
    assert tuple(views) == NAMES
    for name, pixels in views.items():
        assert np.array_equal(pixels, resized(name, PICTURE, (20, 21)))


@EVERY
def test_sides_of_zero_are_refused(name):
    with pytest.raises(PipelineError, match="each side must be at least 1"):
        resized(name, PICTURE, (0, 4))
    with pytest.raises(PipelineError, match="each side must be at least 1"):
        resized(name, PICTURE[:, :0], (4, 4))


def test_a_missing_library_is_listed_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert not resizer("vips-cubic").available
    assert "pip install 'imagenet-s[vips]'" in resizer("vips-cubic").why_not
    with pytest.raises(ImportError, match=r"imagenet-s\[vips\]"):
        resized("vips-cubic", PICTURE, (4, 4))


def test_an_unknown_resizer_is_answered_with_near_names():
    with pytest.raises(PipelineError, match="unknown resizer 'pillow-bilnear'; near: pillow-bilinear"):
        resizer("pillow-bilnear")


def test_a_resizer_of_ones_own_joins_the_registry(monkeypatch):
    monkeypatch.setattr(registry, "_RESIZERS", dict(registry._RESIZERS))
    register_resizer("black", lambda image, size: np.zeros((*size, 3), np.uint8), "2", "no light")
    assert resized("black", PICTURE, (2, 3)).sum() == 0
    assert resizer("black").version == "2"
    register_resizer("wrong", lambda image, size: image)
    with pytest.raises(PipelineError, match=r"uint8 \(40, 56, 3\), not uint8 \(2, 3, 3\)"):
        resized("wrong", PICTURE, (2, 3))
    with pytest.raises(PipelineError, match="taken or not usable"):
        register_resizer("black", lambda image, size: image)


def test_the_users_threads_are_as_before():
    before = cv2.getNumThreads(), torch.get_num_threads(), pyvips.concurrency_get()
    try:
        cv2.setNumThreads(2)
        torch.set_num_threads(2)
        pyvips.concurrency_set(2)
        inside = []
        original = cv2.resize
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cv2, "resize", lambda *a, **k: (inside.append(cv2.getNumThreads()), original(*a, **k))[1])
            for name in ("opencv-linear", "torch-bilinear", "vips-linear"):
                resized(name, PICTURE, (4, 4))
        assert inside == [1]
        assert (cv2.getNumThreads(), torch.get_num_threads(), pyvips.concurrency_get()) == (2, 2, 2)
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
        pyvips.concurrency_set(before[2])
