import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from core_utils.errors import UserError
from core_utils.spiking.events import (
    EVENT,
    EventCamera,
    posed_event_frames,
    random_pose,
    simulate_events,
    simulate_frames,
)

pytestmark = pytest.mark.bare

CLEAN = {"mismatch": 0.0, "noise": 0.0}
VARIANTS = {
    "saccade": EventCamera(),
    "circle": EventCamera(trajectory="circle", time_steps=3, micro_steps=2, micro_step=1),
    "random": EventCamera(trajectory="random", mismatch=0.5),
    "refractory": EventCamera(refractory=20_000),
    "bandwidth": EventCamera(bandwidth=5.0),
}


def pictures(n=6, side=24, seed=0):
    """Smooth blobs with a few sharp edges, in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((n, side, side + 3)), (0, 2, 2))
    return ((noise > 0) * np.clip(0.5 + 3 * noise, 0, 1)).astype(np.float32)


def point(n, down, right, side=28):
    """A blob at an offset from the centre, the same in every image."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.repeat(np.exp(-((y - down) ** 2 + (x - right) ** 2) / 4)[None], n, axis=0)


def centres(images):
    """Centre of mass (down, right) from the middle of every image."""
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    down, right = ((images * place).sum((1, 2)) / images.sum((1, 2)) - place.mean() for place in (y, x))
    return np.stack([down, right])


def log_intensity(image, displacement):
    return np.log(0.1 + ndimage.shift(image, displacement, order=1, mode="grid-constant"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_are_the_events_binned(variant):
    camera, images = VARIANTS[variant], pictures()
    counts, recordings = simulate_frames(images, 7, camera), simulate_events(images, 7, camera)
    expected = np.zeros_like(counts)
    for image, events in enumerate(recordings):
        np.add.at(expected[image], (events["t"] // camera.bin_duration, events["p"], events["y"], events["x"]), 1)
    assert counts.sum() > 100
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recordings_are_ordered_and_inside_their_duration(variant):
    camera = VARIANTS[variant]
    for events in simulate_events(pictures(), 7, camera):
        assert events.dtype == EVENT
        assert (np.diff(events["t"]) >= 0).all()
        assert events["t"].min() >= 0
        assert events["t"].max() < camera.time_steps * camera.bin_duration


@pytest.mark.parametrize("trajectory", ["saccade", "circle"])
def test_signed_events_add_up_to_the_change_of_log_intensity(trajectory):
    """After every bin: theta times the signed count is L - L_start, up to one theta."""
    camera, images = EventCamera(trajectory=trajectory, **CLEAN), pictures()
    path = camera.path(1, np.random.default_rng())[:, 0]
    counts = simulate_frames(images, 0, camera)
    signed = np.cumsum(counts[:, :, 1] - counts[:, :, 0], axis=1) * camera.threshold
    for image, total in zip(images, signed, strict=True):
        start = log_intensity(image, path[0])
        for step in range(camera.time_steps):
            change = log_intensity(image, path[(step + 1) * camera.micro_steps]) - start
            assert np.abs(change - total[step]).max() < camera.threshold + 1e-4
            assert step == camera.time_steps - 1 or np.abs(change).max() > 1


def test_stamps_are_linear_in_the_log_intensity():
    """One pixel, one micro-step from dark to bright: log(1.1 / 0.1) / 0.25 = 9.59, so 9 events, evenly spaced."""
    camera = EventCamera(time_steps=3, micro_steps=1, micro_step=100_000, amplitude=2.0, **CLEAN)
    image = np.zeros((1, 9, 9))
    image[0, :, 0:4] = 1.0
    (events,) = simulate_events(image, 0, camera)
    steps = camera.path(1, np.random.default_rng())[:, 0, 1]
    assert steps == pytest.approx(np.array([-2 / 3, 4 / 3, -2 / 3, -2 / 3]))
    row = events[(events["y"] == 4) & (events["x"] == 4) & (events["t"] < 100_000)]
    assert row["p"].tolist() == [1] * 9
    total = np.log(1.1 / 0.1)
    np.testing.assert_allclose(row["t"], (np.arange(9) + 1) * 0.25 / total * 100_000, atol=2)


def test_brightening_is_polarity_one():
    camera = EventCamera(time_steps=1, micro_steps=3, amplitude=3.0, **CLEAN)
    image = np.zeros((1, 9, 9))
    image[0, :, :4] = 1.0  # bright on the left; the first leg of the saccade takes the picture to the right
    (events,) = simulate_events(image, 0, camera)
    first = events[(events["t"] < camera.micro_step) & (events["y"] == 4)]
    assert set(first["p"][first["x"] >= 3]) == {1}


@pytest.mark.parametrize("trajectory", ["saccade", "circle", "random"])
def test_paths_are_closed_centred_and_of_their_amplitude(trajectory):
    path = EventCamera(time_steps=30, trajectory=trajectory).path(50, np.random.default_rng(0))
    np.testing.assert_allclose(path[0], path[-1], atol=1e-12)
    np.testing.assert_allclose((path[:40:40] + path[40:80:40] + path[80:120:40]) / 3, 0, atol=1e-12)
    extent = np.ptp(path, axis=0)
    assert extent.max() <= 3.0 * np.sqrt(1.25)  # the longest side of the triangle
    assert trajectory == "random" or extent.max() == pytest.approx(3.0, abs=0.01)


def test_random_trajectories_differ_between_images():
    same = np.repeat(pictures(1), 2, axis=0)
    counts = simulate_frames(same, 0, EventCamera(trajectory="random", **CLEAN))
    assert not np.array_equal(counts[0], counts[1])
    counts = simulate_frames(same, 0, EventCamera(**CLEAN))
    np.testing.assert_array_equal(counts[0], counts[1])


def test_seed_decides_everything():
    images = pictures()
    first, again, other = (simulate_frames(images, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, simulate_frames(images, np.random.default_rng(3)))
    for events, copy in zip(simulate_events(images, 3), simulate_events(images, 3), strict=True):
        np.testing.assert_array_equal(events, copy)


def test_a_higher_threshold_gives_fewer_events():
    totals = [simulate_frames(pictures(), 0, EventCamera(threshold=theta, **CLEAN)).sum() for theta in (0.1, 0.2, 0.4)]
    assert totals[0] > totals[1] > totals[2] > 0


def test_limited_bandwidth_gives_fewer_events():
    totals = [simulate_frames(pictures(), 0, EventCamera(bandwidth=hz, **CLEAN)).sum() for hz in (None, 10.0, 1.0)]
    assert totals[0] > totals[1] > totals[2]


def test_refractory_pixels_rest():
    camera = EventCamera(refractory=4000, **CLEAN)
    free, rested = (simulate_events(pictures(1), 0, EventCamera(refractory=r, **CLEAN))[0] for r in (0, 4000))
    gaps = []
    for pixel in range(24 * 27):
        own = rested["t"][rested["y"] * 27 + rested["x"] == pixel]
        gaps.extend(np.diff(own))
    assert 0 < len(rested) < len(free)
    assert camera.refractory <= min(gaps) < 1.2 * camera.refractory


def test_still_camera_sees_noise_alone_at_its_rate():
    """0.01 an event per bin, polarity and pixel: 57,600 expected of 5.76 million, standard deviation 240."""
    counts = simulate_frames(np.zeros((1000, 24, 24)), 0, EventCamera(amplitude=0.0))
    assert counts.sum() == pytest.approx(57_600, abs=4 * 240)
    np.testing.assert_allclose(counts.sum((0, 3, 4)), 5760, atol=4 * 76)
    assert not simulate_frames(pictures(), 0, EventCamera(amplitude=0.0, noise=0.0)).any()


def test_uint8_and_floating_pictures_are_the_same():
    whole = (pictures() * 255).astype(np.uint8)
    np.testing.assert_array_equal(simulate_frames(whole, 0), simulate_frames(whole.astype(np.float32) / 255, 0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_hold_every_image_in_order(variant, monkeypatch):
    camera = dataclasses.replace(VARIANTS[variant], noise=0.0)
    monkeypatch.setattr("core_utils.spiking.events.camera.CHUNK", 4)
    images = pictures(9) * np.linspace(0, 1, 9, dtype=np.float32)[:, None, None]
    counts, recordings = simulate_frames(images, 7, camera), simulate_events(images, 7, camera)
    assert counts.sum((1, 2, 3, 4)).tolist() == [len(events) for events in recordings]
    assert len(recordings[0]) == 0
    assert len(recordings[8]) > 1.5 * len(recordings[1]) > 0


def test_nothing_comes_of_no_image():
    empty = np.zeros((0, 28, 28), np.uint8)
    assert simulate_events(empty, 0) == []
    assert posed_event_frames(empty, 0).shape == (0, 5, 2, 24, 24)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "options",
    [
        {"trajectory": "line"},
        {"time_steps": 0},
        {"micro_steps": 0},
        {"threshold": 0.0},
        {"bandwidth": 0.0},
        {"noise": -0.1},
        {"amplitude": float("nan")},
        {"refractory": -1},
    ],
)
def test_bad_camera_settings_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        EventCamera(**options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((28, 28)), r"\[n, height, width\], got shape \[28, 28\]"),
        (np.full((1, 8, 8), 255.0), r"must lie in \[0, 1\]"),
        (np.full((1, 8, 8), np.nan), r"must lie in \[0, 1\]"),
        (np.zeros((1, 8, 8), np.int64), "uint8 or floating"),
    ],
)
@pytest.mark.parametrize("function", [simulate_frames, simulate_events, random_pose, posed_event_frames])
def test_bad_pictures_are_refused(function, images, message):
    with pytest.raises(UserError, match=message):
        function(images, 0)


def test_no_pose_is_the_image_itself():
    images = pictures()
    np.testing.assert_array_equal(random_pose(images, 0, mirror=0.0, rotation=0.0, shift=0.0), images)


def test_mirror_is_left_to_right_with_its_probability():
    images = np.repeat(pictures(1), 2000, axis=0)
    np.testing.assert_array_equal(random_pose(images, 0, mirror=1.0, rotation=0.0, shift=0.0), images[:, :, ::-1])
    half = random_pose(images, 0, mirror=0.5, rotation=0.0, shift=0.0)
    assert np.mean([np.array_equal(image, images[0]) for image in half]) == pytest.approx(0.5, abs=0.05)


def test_rotation_turns_about_the_centre_within_its_range():
    down, right = centres(random_pose(point(500, 0, 7), 0, mirror=0.0, rotation=20.0, shift=0.0))
    np.testing.assert_allclose(np.hypot(down, right), 7, atol=0.05)
    angle = np.rad2deg(np.arctan2(down, right))
    assert -20.5 < angle.min() < -19
    assert 19 < angle.max() < 20.5
    assert angle.std() == pytest.approx(20 / np.sqrt(3), rel=0.1)


def test_shift_moves_within_its_range():
    moved = centres(random_pose(point(500, 0, 0), 0, mirror=0.0, rotation=0.0, shift=3.0))
    assert np.abs(moved).max() == pytest.approx(3.0, abs=0.1)
    np.testing.assert_allclose(moved.std(axis=1), 3 / np.sqrt(3), rtol=0.1)
    assert abs(np.corrcoef(moved)[0, 1]) < 0.15
    larger = random_pose(point(500, 0, 0), 0, size=56, mirror=0.0, rotation=0.0, shift=3.0)
    np.testing.assert_allclose(centres(larger), moved, atol=0.1)  # pixels of the result


def test_size_scales_the_whole_image():
    down, right = centres(random_pose(point(1, 4, -7), 0, size=24, mirror=0.0, rotation=0.0, shift=0.0))
    assert (down[0], right[0]) == pytest.approx((4 * 24 / 28, -7 * 24 / 28), abs=0.02)


def test_what_leaves_the_picture_is_gone_and_zeros_come_in():
    posed = random_pose(np.ones((200, 8, 8)), 0, mirror=0.0, rotation=0.0, shift=20.0)
    assert posed.min() == 0
    assert posed.max() == pytest.approx(1.0, abs=1e-6)
    assert (posed.sum((1, 2)) == 0).any()


def test_miniature_is_clipped_counts_of_posed_pictures():
    images = (pictures(50, 28)[:, :, :28] * 255).astype(np.uint8)
    frames = posed_event_frames(images, 5)
    assert frames.shape == (50, 5, 2, 24, 24)
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(np.unique(frames), np.arange(4, dtype=np.float32) / 3)
    rng = np.random.default_rng(5)
    counts = simulate_frames(random_pose(images, rng, size=24), rng)
    np.testing.assert_array_equal(frames, np.minimum(counts, 3) / np.float32(3))
    np.testing.assert_array_equal(frames, posed_event_frames(images, 5))
    assert posed_event_frames(images, 5, time_steps=3, size=16).shape == (50, 3, 2, 16, 16)
