"""Targets, baselines and what is read off images."""

import numpy as np
import pytest

from diffract import ConfigError, Geometry, Grid, baselines, evaluate, pcc, targets

GRID = Grid((240, 240), 0.3e-3, 0.75e-3)


@pytest.mark.parametrize("orientation", ["vertical", "horizontal"])
@pytest.mark.parametrize("period", [7.2e-3, 8.4e-3, 9.6e-3, 10.8e-3, 12.0e-3])
def test_the_period_of_published_bars_is_read_off_them(period, orientation):
    pattern = targets.bars(GRID, period, orientation=orientation)
    assert pattern.max() == 1
    assert pattern.sum() * GRID.pitch**2 == pytest.approx(3 * period / 2 * 2.5 * period, rel=1e-3)
    found = targets.estimate_period(pattern + 0.05, GRID, orientation)
    assert found.resolved
    assert found.period == pytest.approx(period, rel=0.01)


def test_blurred_bars_are_not_resolved_and_give_no_period():
    from scipy.ndimage import gaussian_filter

    pattern = targets.bars(GRID, 7.2e-3)
    sharp = targets.estimate_period(gaussian_filter(pattern, 3), GRID, "vertical")
    assert sharp.period == pytest.approx(7.2e-3, rel=0.02)
    for image in (gaussian_filter(pattern, 12), np.ones((240, 240)), np.random.default_rng(0).random((240, 240))):
        found = targets.estimate_period(image, GRID, "vertical")
        assert not found.resolved
        assert np.isnan(found.period)


def test_bars_must_fit_and_a_star_has_its_spokes():
    with pytest.raises(ConfigError, match="do not fit"):
        targets.bars(GRID, 40e-3)
    star = targets.siemens(GRID, spokes=12)
    ring = star[120 + np.rint(60 * np.sin(np.linspace(0, 2 * np.pi, 2000))).astype(int),
                120 + np.rint(60 * np.cos(np.linspace(0, 2 * np.pi, 2000))).astype(int)]  # fmt: skip
    assert (np.diff(ring) > 0).sum() == 12


def test_a_lens_images_upright_and_free_space_and_refocusing_are_what_they_say():
    grid, planes = Grid((96, 96), 0.3e-3, 0.75e-3), Geometry(20e-3, 2e-3, 2e-3, 40e-3, 4)
    letter = np.zeros((1, 96, 96), np.float32)
    letter[0, 34:62, 36:42] = letter[0, 34:40, 36:58] = 1  # no symmetry
    lens = baselines.lens(grid, planes)
    image = np.asarray(lens(lens.illuminated(letter)))
    assert float(pcc(image, letter)[0]) > 0.75
    assert float(pcc(image[:, ::-1], letter)[0]) < 0.7
    assert evaluate(baselines.refocus(grid, planes), letter, None).mean > 0.94
    assert evaluate(lens, letter, None).mean > evaluate(baselines.free_space(grid, planes), letter, None).mean
    flat = np.zeros((1, *grid.shape), np.float32)
    assert evaluate(lens, letter, flat).mean == evaluate(lens, letter, None).mean
    with pytest.raises(ConfigError, match="before the diffuser"):
        baselines.lens(grid, planes, focal_length=5e-3)


def test_evaluation_counts_what_has_no_correlation_and_chunks_change_nothing():
    grid, planes = Grid((24, 24), 0.3e-3, 0.75e-3), Geometry(3e-3, 2e-3, 2e-3, 3e-3, 2)
    space = baselines.free_space(grid, planes)
    rng = np.random.default_rng(0)
    objects = rng.random((5, 24, 24)).astype(np.float32)
    objects[3] = 0.5
    screens = rng.normal(size=(3, 24, 24)).astype(np.float32)
    table = evaluate(space, objects, screens)
    assert table.pcc.shape == (5, 3)
    assert table.undefined == 1
    assert np.isnan(table.pcc[3]).all()
    assert table.mean == pytest.approx(np.nanmean(table.pcc))
    assert table.std == pytest.approx(np.nanmean(table.pcc, 0).std(ddof=1))
    assert (table.efficiency <= 1).all()
    np.testing.assert_allclose(evaluate(space, objects, screens, chunk=4).pcc, table.pcc, atol=1e-6)
    with pytest.raises(ConfigError, match="needs objects"):
        evaluate(space, objects[:0], screens)
    with pytest.raises(Exception, match="do not belong"):
        evaluate(space, objects, screens[:, :8])
