import cv2
import numpy as np
import PIL
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_s.kernels import opencv, pillow, tf1
from imagenet_s.kernels import torch as torch_kernels

SIDES = st.integers(min_value=1, max_value=70)
SHAPES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
FILTERS = ("nearest", *pillow.FILTERS)
PILLOW = int(PIL.__version__.partition(".")[0])


def noise(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def by_pillow(image, size, filter_name):
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling[filter_name.upper()]))


def by_opencv(image, size, operator):
    interpolation = getattr(cv2, f"INTER_{operator.upper().replace('-', '_')}")
    return cv2.resize(image, size[::-1], interpolation=interpolation)


def by_torch(image, size, mode, *, antialias=False):
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(planes, size, mode=mode, antialias=antialias)[0].permute(1, 2, 0).numpy()


def far(a, b):
    return np.abs(a.astype(float) - b).max()


@pytest.mark.parametrize("filter_name", FILTERS)
@given(SHAPES, SHAPES, SEEDS)
@settings(max_examples=40, deadline=None)
def test_pillows_filters_are_met_to_the_bit_in_its_own_pass_order(filter_name, shape, size, seed):
    image = noise(seed, shape)
    ours = pillow.resize(image, size, filter_name, order=pillow.pass_order(shape, size))
    assert np.array_equal(ours, by_pillow(image, size, filter_name))


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize(
    ("shape", "size"),
    [((375, 500), (256, 256)), ((500, 375), (256, 256)), ((640, 427), (256, 256)), ((96, 96), (299, 224))],
)
def test_pillows_filters_are_met_to_the_bit_at_the_sizes_of_photographs(filter_name, shape, size):
    image = noise(0, shape)
    ours = pillow.resize(image, size, filter_name, order=pillow.pass_order(shape, size))
    assert np.array_equal(ours, by_pillow(image, size, filter_name))


def test_the_passes_swap_from_pillow_13_on_when_the_height_shrinks_more_than_twice_as_much():
    assert pillow.pass_order((500, 375), (256, 256), 12) == "horizontal-first"
    assert pillow.pass_order((500, 375), (256, 256), 13) == "vertical-first"  # 244 rows lost, 119 columns
    assert pillow.pass_order((494, 375), (256, 256), 13) == "horizontal-first"  # 238 rows, exactly twice 119
    assert pillow.pass_order((495, 375), (256, 256), 13) == "vertical-first"
    assert pillow.pass_order((375, 500), (256, 256), 13) == "horizontal-first"
    assert pillow.pass_order((100, 50), (90, 200), 13) == "vertical-first"
    assert pillow.pass_order((100, 50), (120, 200), 13) == "horizontal-first"


@pytest.mark.skipif(PILLOW < 13, reason="Pillow before 13 has one order")
def test_the_order_of_the_passes_changes_pixels():
    image = noise(1, (500, 375))
    ours, theirs = pillow.resize(image, (256, 256), "lanczos"), by_pillow(image, (256, 256), "lanczos")
    # at most 21 levels on noise, says the specification's section 8
    assert 5 <= far(ours, theirs) <= 21
    assert np.mean(ours != theirs) > 0.1


@pytest.mark.parametrize("filter_name", pillow.FILTERS)
def test_weights_sum_to_one_and_lie_within_the_image(filter_name):
    for n_in, n_out in ((100, 37), (37, 100), (1, 5), (5, 1), (8, 8)):
        first, count, weight = pillow.weights(n_in, n_out, filter_name)
        assert weight.sum(axis=1) == pytest.approx(1)
        assert first.min() >= 0
        assert (first + count).max() <= n_in
        assert np.abs(pillow.fixed_point(n_in, n_out, filter_name)[2] / 2**22 - weight).max() <= 2**-23


@pytest.mark.parametrize("operator", ["nearest", "nearest-exact"])
@given(SHAPES, SHAPES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_opencvs_nearest_are_met_to_the_bit(operator, shape, size, seed):
    image = noise(seed, shape)
    assert np.array_equal(opencv.resize(image, size, operator), by_opencv(image, size, operator))


def test_opencv_4_and_5_part_where_a_centre_falls_on_an_edge():
    # output 26 of 106 is centred at 12.0 of 48; OpenCV 4.12 takes pixel 12, OpenCV 5.0 pixel 11
    assert [opencv.nearest_exact(48, 106, major)[26] for major in (4, 5)] == [12, 11]
    assert np.array_equal(opencv.nearest_exact(375, 256, 4), opencv.nearest_exact(375, 256, 5))


@pytest.mark.parametrize("operator", ["linear", "cubic", "lanczos4"])
@given(SHAPES, SHAPES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_opencvs_interpolation_is_met_within_a_level(operator, shape, size, seed):
    image = noise(seed, shape)
    assert far(opencv.resize(image, size, operator), by_opencv(image, size, operator)) <= 1


@given(SHAPES, SHAPES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_opencvs_area_is_the_rounded_mean_when_shrinking(shape, other, seed):
    size = tuple(map(min, shape, other))
    image = noise(seed, shape)
    assert far(opencv.exact(image, size, "area"), by_opencv(image, size, "area")) <= 0.501


@given(SHAPES, SHAPES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_opencvs_area_is_its_own_linear_when_a_side_grows(shape, size, seed):
    image = noise(seed, shape)
    assert far(opencv.resize(image, size, "area"), by_opencv(image, size, "area")) <= 1


@pytest.mark.parametrize(
    ("mode", "antialias"),
    [("nearest", False), ("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)],
)
@given(SHAPES, SHAPES, SEEDS)
@settings(max_examples=40, deadline=None)
def test_torch_is_met_to_the_bit(mode, antialias, shape, size, seed):
    # Without vector instructions torch 2.14 gives wrong columns where a width is 1.
    assume(torch.backends.cpu.get_cpu_capability() != "DEFAULT" or min(shape[1], size[1]) > 1)
    image = noise(seed, shape)
    assert np.array_equal(
        torch_kernels.resize(image, size, mode, antialias=antialias), by_torch(image, size, mode, antialias=antialias)
    )


@given(SHAPES, SHAPES, SEEDS)
@settings(max_examples=40, deadline=None)
def test_torchs_nearest_exact_is_met_but_where_a_centre_falls_on_an_edge(shape, size, seed):
    image = noise(seed, shape)
    clear = [(2 * np.arange(n_out) + 1) * n_in % (2 * n_out) != 0 for n_in, n_out in zip(shape, size, strict=True)]
    views = (torch_kernels.resize(image, size, "nearest-exact"), by_torch(image, size, "nearest-exact"))
    ours, theirs = (view[clear[0]][:, clear[1]] for view in views)
    assert np.array_equal(ours, theirs)  # on an edge, torch's vector instructions decide


def test_tf1_is_corner_aligned_and_rounds_half_to_even():
    ramp = np.arange(16, dtype=np.uint8)[None, :, None].repeat(3, 2)
    assert tf1.resize(ramp, (1, 8))[0, :, 0].tolist() == list(range(0, 16, 2))
    assert tf1.resize(ramp, (1, 32))[0, :, 0].tolist()[:8] == [0, 0, 1, 2, 2, 2, 3, 4]
    image = noise(3, (11, 13))
    row, column = tf1.taps(11, 7), tf1.taps(13, 20)
    for y, x in ((0, 0), (3, 11), (6, 19)):
        (top, bottom, down), (left, right, across) = ([part[i] for part in taps] for taps, i in ((row, y), (column, x)))
        upper = image[top, left] * (1 - across) + image[top, right] * across
        lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
        assert far(tf1.resize(image, (7, 20))[y, x], upper * (1 - down) + lower * down) <= 0.5001
