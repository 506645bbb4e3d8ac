"""Diffusers against the statistics that they are asked for, and the published ones."""

import math

import jax
import numpy as np
import pytest

from diffract import (
    ConfigError,
    Grid,
    RandomDiffuser,
    SamplingWarning,
    ShapeError,
    Stream,
    correlation_length,
    diffuser_distance,
    expected_distance,
    stream,
    unique_bank,
)

WAVELENGTH = 0.75e-3
GRID = Grid((240, 240), 0.3e-3, WAVELENGTH)
KEY = stream(0, Stream.NEW)


def test_strength_is_what_was_asked_for_on_any_grid():
    for pitch, side in ((0.3e-3, 64), (0.15e-3, 128)):
        grid = Grid((side, side), pitch, WAVELENGTH)
        kind = RandomDiffuser(grid, sigma=1.5 * WAVELENGTH, rms_phase=1.2)
        screens = np.asarray(kind.sample(KEY, 200))
        assert screens.dtype == np.float32
        assert np.sqrt((screens**2).mean()) == pytest.approx(1.2, rel=0.03)


def test_screens_are_stationary_to_their_edges():
    screens = np.asarray(RandomDiffuser(GRID, sigma=4 * WAVELENGTH, rms_phase=1.0).sample(KEY, 100))
    for part in (screens[:, :20], screens[:, 110:130], screens[:, :, -20:]):
        assert part.std() == pytest.approx(1.0, rel=0.08)
    assert abs(np.corrcoef(screens[:, 0].ravel(), screens[:, -1].ravel())[0, 1]) < 0.1  # no wrapping around


@pytest.mark.parametrize("of", ["phase", "transmittance"])
@pytest.mark.parametrize("sigma", [2.0, 4.0])
def test_measured_correlation_lengths_meet_their_formulas(of, sigma):
    grid = Grid((512, 512), 0.3e-3, WAVELENGTH)
    kind = RandomDiffuser(grid, sigma=sigma * WAVELENGTH, rms_phase=1.05 if sigma == 4 else 2.1)
    measured = correlation_length(kind.sample(KEY, 8), grid, of)
    assert measured == pytest.approx(kind.expected_L(of), rel=0.05)
    by_length = RandomDiffuser(grid, correlation_length=2 * math.sqrt(math.pi) * sigma * WAVELENGTH, rms_phase=1.0)
    assert by_length.sigma == pytest.approx(sigma * WAVELENGTH)


# Means over 20 diffusers of 240 x 240 pixels (specification, section 2.3): rms, L of phase and of transmittance over the
# wavelength, mean distances unwrapped and wrapped.
@pytest.mark.parametrize(
    ("sigma", "rms", "of_phase", "of_transmittance", "unwrapped", "wrapped"),
    [(4.0, 1.12, 12.9, 11.3, 1.25, 2.62), (2.0, 2.16, 7.0, 3.8, 2.43, 2.23)],
)
def test_the_literal_recipe_has_the_published_statistics(sigma, rms, of_phase, of_transmittance, unwrapped, wrapped):
    kind = RandomDiffuser(GRID, sigma=sigma * WAVELENGTH, preset="luo2022")
    screens = kind.sample(KEY, 60)
    values = np.asarray(screens, np.float64)
    assert values.mean() == pytest.approx(2 * np.pi * 0.74 * 25, abs=0.3)  # the mean height is kept
    assert values.std((1, 2)).mean() == pytest.approx(rms, rel=0.05)
    assert correlation_length(screens, GRID, "phase") / WAVELENGTH == pytest.approx(of_phase, rel=0.07)
    assert correlation_length(screens, GRID) / WAVELENGTH == pytest.approx(of_transmittance, rel=0.07)
    halves = screens[:30], screens[30:]
    assert float(diffuser_distance(*halves, "unwrapped").mean()) == pytest.approx(unwrapped, rel=0.05)
    assert float(diffuser_distance(*halves, "paper_wrapped").mean()) == pytest.approx(wrapped, rel=0.05)


def test_published_strength_follows_from_white_noise_and_its_pixel():
    kind = RandomDiffuser(GRID, sigma=4 * WAVELENGTH, height_std=8 * WAVELENGTH)
    assert kind.rms_phase == pytest.approx(2 * np.pi * 0.74 * 8 * 0.4 / (2 * math.sqrt(math.pi) * 4))
    assert kind.rms_phase == pytest.approx(1.05, abs=0.005)
    coarse = RandomDiffuser(GRID, sigma=4 * WAVELENGTH, height_std=8 * WAVELENGTH, white_noise_pitch=0.6e-3)
    assert coarse.rms_phase == pytest.approx(2 * kind.rms_phase)
    np.testing.assert_allclose(kind.height(np.full((1, 2, 2), 2 * np.pi, np.float32)), WAVELENGTH / 0.74, rtol=1e-6)


def test_the_published_threshold_hangs_without_wrapping_and_is_refused_with_the_reason():
    kind = RandomDiffuser(Grid((64, 64), 0.3e-3, WAVELENGTH), sigma=1.5 * WAVELENGTH, rms_phase=1.05)
    assert expected_distance(kind, "unwrapped") == pytest.approx(2 / math.sqrt(math.pi) * 1.05)
    with pytest.raises(ConfigError, match=r"1 of 2 diffusers are 2\.5 rad apart after 22 draws.*1\.1[0-9] rad apart"):
        unique_bank(kind, KEY, 2, threshold=2.5, kind="unwrapped", max_attempts=20)
    with pytest.raises(ConfigError, match="pi / 2 is the most"):
        unique_bank(kind, KEY, 2, threshold=1.6, max_attempts=5)


def test_a_bank_holds_distinct_screens_and_expected_distances_are_met():
    kind = RandomDiffuser(Grid((64, 64), 0.3e-3, WAVELENGTH), sigma=1.5 * WAVELENGTH, rms_phase=1.2)
    bank = unique_bank(kind, KEY, 8, threshold=1.15)
    first, second = np.triu_indices(8, 1)
    distances = np.asarray(diffuser_distance(bank[first], bank[second]))
    assert (distances > 1.15).all()
    free = np.asarray(diffuser_distance(kind.sample(KEY, 300)[:150], kind.sample(KEY, 300)[150:]))
    assert free.mean() == pytest.approx(expected_distance(kind), rel=0.05)  # few grains: removing the mean costs 3 %
    np.testing.assert_array_equal(unique_bank(kind, KEY, 3, threshold=0.0), kind.sample(KEY, 3))


def test_the_physical_distance_sees_neither_wraps_nor_a_common_phase():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 0.3, (16, 16)).astype(np.float32)
    assert float(diffuser_distance(a, a + 2 * np.pi * rng.integers(-3, 3, (16, 16)) + 0.7)) == pytest.approx(
        0, abs=1e-5
    )
    uniform = rng.uniform(0, 2 * np.pi, (2, 256, 256))
    assert float(diffuser_distance(*uniform)) == pytest.approx(np.pi / 2, abs=0.02)


def test_streams_never_meet():
    keys = {tuple(np.asarray(stream(0, each, i)).tolist()) for each in Stream for i in range(50)}
    assert len(keys) == len(Stream) * 50
    assert not np.array_equal(jax.random.normal(stream(0, Stream.TRAINING, 1), (4,)), jax.random.normal(KEY, (4,)))


def test_what_makes_no_diffuser_is_refused():
    with pytest.raises(ConfigError, match="either sigma or correlation_length"):
        RandomDiffuser(GRID, rms_phase=1.0)
    with pytest.raises(ConfigError, match="either rms_phase or height_std"):
        RandomDiffuser(GRID, sigma=1e-3)
    with pytest.raises(ConfigError, match="sigma must be positive"):
        RandomDiffuser(GRID, sigma=-1.0, rms_phase=1.0)
    with pytest.raises(ConfigError, match="sets the strength itself"):
        RandomDiffuser(GRID, preset="luo2022", rms_phase=1.0)
    with pytest.raises(ConfigError, match="n must be at least 1"):
        RandomDiffuser(GRID, sigma=1e-3, rms_phase=1.0).sample(KEY, 0)
    with pytest.raises(ShapeError, match=r"\(8, 8\).*\(8, 9\)"):
        diffuser_distance(np.zeros((8, 8)), np.zeros((8, 9)))
    with pytest.warns(SamplingWarning, match="close to white noise"):
        RandomDiffuser(GRID, sigma=0.1e-3, rms_phase=1.0)
    with pytest.warns(SamplingWarning, match="too few grains"):
        RandomDiffuser(GRID, sigma=30e-3, rms_phase=1.0)


def test_too_few_points_give_no_length():
    noise = np.random.default_rng(0).normal(size=(1, 64, 64))
    assert math.isnan(correlation_length(noise, Grid((64, 64), 0.3e-3, WAVELENGTH), "phase"))
