"""Transfer functions against waves whose propagation is known."""

import numpy as np
import pytest
from golden import ENERGIES, ENERGY, GRID, energy, golden_field

from diffract import ConfigError, Grid, SamplingError, propagate, transfer_function
from diffract.grids import smooth

Z = 7e-3


def exact(grid, z, method="asm", **options):
    return transfer_function(grid, z, method, dtype=np.complex128, **options)


def through(field, H):
    """In double precision, without the operator under test."""
    P, Q = H.shape
    return np.fft.ifft2(np.fft.fft2(field, (P, Q)) * H)[: field.shape[0], : field.shape[1]]


@pytest.mark.parametrize("z", ENERGIES)
def test_golden_energies_of_rs_and_asm(z):
    field = golden_field()
    assert energy(field) == pytest.approx(ENERGY, abs=1e-6)
    rs, asm, difference = ENERGIES[z]
    a = through(field, exact(GRID, z, "rs"))
    b = through(field, exact(GRID, z, "asm", evanescent="decay"))
    assert energy(a) == pytest.approx(rs, abs=1e-6)
    assert energy(b) == pytest.approx(asm, abs=1e-6)
    assert np.linalg.norm(a - b) / np.linalg.norm(a) == pytest.approx(difference, abs=1e-6)
    single = np.asarray(propagate(field.astype(np.complex64), transfer_function(GRID, z, "rs")))
    assert energy(single) == pytest.approx(rs, rel=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 0), (0, 5), (-4, 7)])
def test_plane_waves_gain_their_longitudinal_phase(row, column):
    grid = Grid((32, 40), 0.3e-3, 0.75e-3)
    fy, fx = grid.fy[row], grid.fx[column]
    wave = np.exp(2j * np.pi * (fy * grid.y[:, None] + fx * grid.x))
    found = through(wave, exact(grid, Z, pad=1))
    expected = wave * np.exp(2j * np.pi * Z * np.sqrt(grid.wavelength**-2 - fy**2 - fx**2))
    np.testing.assert_allclose(found, expected, atol=1e-11)


def test_a_medium_shortens_the_wavelength():
    vacuum, glass = (Grid((16, 16), 1e-4, 0.75e-3, index=n) for n in (1.0, 1.5))
    np.testing.assert_allclose(exact(glass, Z), exact(Grid((16, 16), 1e-4, 0.5e-3), Z))
    assert vacuum.medium_wavelength == 1.5 * glass.medium_wavelength


def test_distances_add_up_and_come_back():
    near, far = exact(GRID, 3e-3), exact(GRID, 4e-3)
    np.testing.assert_allclose(near * far, exact(GRID, Z), atol=1e-12)
    back = exact(GRID, -Z)
    product = back * exact(GRID, Z)
    propagating = np.hypot(*np.meshgrid(*(np.fft.fftfreq(96, 0.3e-3),) * 2)) < 1 / 0.75e-3
    np.testing.assert_allclose(product[propagating], 1, atol=1e-12)
    assert (back[~propagating] == 0).all()


def test_energy_is_conserved_in_a_periodic_window_and_never_grows_after_cropping():
    rng = np.random.default_rng(0)
    smooth_field = through(rng.normal(size=(48, 48)) + 0j, exact(GRID, 0.0, pad=1, evanescent="drop"))
    kept = through(smooth_field, exact(GRID, Z, pad=1, evanescent="drop"))
    assert energy(kept) == pytest.approx(energy(smooth_field), rel=1e-12)
    for method in ("rs", "asm", "blas"):
        assert energy(through(golden_field(), exact(GRID, Z, method))) <= ENERGY


def test_the_four_methods_agree_where_all_hold():
    grid = Grid((128, 128), 1e-3, 0.75e-3)
    beam = np.exp(-(grid.y[:, None] ** 2 + grid.x**2) / (2 * (15e-3) ** 2))
    fields = [through(beam, exact(grid, 200e-3, method)) for method in ("rs", "asm", "blas", "fresnel")]
    for other in fields[1:]:
        assert np.linalg.norm(other - fields[0]) < 2e-3 * np.linalg.norm(fields[0])


def test_a_shift_by_whole_pixels_rolls_the_field():
    still = through(golden_field(), exact(GRID, Z, "blas"))
    moved = through(golden_field(), exact(GRID, Z, "blas", shift=(2 * GRID.pitch, -3 * GRID.pitch)))
    np.testing.assert_allclose(moved[4:-4, 4:-4], np.roll(still, (2, -3), (0, 1))[4:-4, 4:-4], atol=1e-12)


def test_auto_takes_rs_where_it_is_sampled_and_asm_where_it_is_too_short():
    np.testing.assert_array_equal(exact(GRID, Z, "auto"), exact(GRID, Z, "rs"))
    np.testing.assert_array_equal(exact(GRID, 0.3e-3, "auto"), exact(GRID, 0.3e-3, "asm"))
    np.testing.assert_array_equal(exact(GRID, 40e-3, "auto", pad=1.5), exact(GRID, 40e-3, "blas", pad=1.5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"z": float("nan")}, ConfigError, "z must be finite"),
        ({"z": Z, "method": "exact"}, ConfigError, "method must be one of auto, rs, asm, blas, fresnel"),
        ({"z": Z, "evanescent": "grow"}, ConfigError, "evanescent must be auto, decay or drop"),
        ({"z": -Z, "evanescent": "decay"}, SamplingError, "grow backwards"),
        ({"z": Z, "method": "rs", "pad": 1.5}, SamplingError, "rs needs a window of 95 pixels or more for 48, got 72"),
        ({"z": Z, "pad": 0.5}, ConfigError, "pad must be at least 1"),
    ],
)
def test_what_cannot_be_computed_is_refused(arguments, error, message):
    arguments = {"method": "asm", **arguments}
    if arguments["method"] == "exact" or arguments.get("evanescent") == "grow":
        pytest.importorskip("beartype")  # the literal types refuse these first when they are checked
        with pytest.raises(Exception, match=r"exact|grow"):
            transfer_function(GRID, **arguments)
        return
    with pytest.raises(error, match=message):
        transfer_function(GRID, **arguments)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"pitch": 0.0}, "pitch must be positive"),
        ({"wavelength": float("nan")}, "wavelength must be positive and finite"),
        ({"pitch": 0.3}, "another unit"),
        ({"pitch": 1e-9}, "another unit"),
        ({"shape": (0, 4)}, "shape must be two positive"),
        ({"index": -1.0}, "index must be positive"),
    ],
)
def test_grids_refuse_what_cannot_be_meant(facts, message):
    with pytest.raises(ConfigError, match=message):
        Grid(**{"shape": (8, 8), "pitch": 0.3e-3, "wavelength": 0.75e-3, **facts})


def test_windows_have_sides_that_transform_fast():
    assert [smooth(n) for n in (1, 7, 97, 479, 481)] == [1, 8, 100, 480, 486]
    assert Grid((48, 31), 0.3e-3, 0.75e-3).padded(2).shape == (96, 64)
    assert Grid((7, 11), 0.3e-3, 0.75e-3).padded(1).shape == (7, 11)
