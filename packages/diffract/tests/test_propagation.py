"""Propagated fields against closed forms, and the operator's own transpose against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import GRID, golden_field
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from diffract import Grid, ShapeError, propagate, transfer_function
from diffract import propagation as module

WAVELENGTH = 0.75e-3


def naive(field, H):
    return jnp.fft.ifft2(jnp.fft.fft2(field, s=H.shape) * H)[..., : field.shape[-2], : field.shape[-1]]


@pytest.mark.parametrize("method", ["rs", "blas"])
def test_a_gaussian_beam_widens_and_turns_as_it_should(method):
    waist, grid = 5 * WAVELENGTH, Grid((256, 256), 0.3e-3, WAVELENGTH)
    z = np.pi * waist**2 / WAVELENGTH  # one Rayleigh length
    squared = grid.y[:, None] ** 2 + grid.x**2
    beam = np.exp(-squared / waist**2)
    found = np.asarray(propagate(beam.astype(np.complex64), transfer_function(grid, z, method)))
    intensity = np.abs(found) ** 2
    width = np.sqrt(2 * (intensity * grid.x**2).sum() / intensity.sum()) * np.sqrt(2)
    assert width == pytest.approx(waist * np.sqrt(2), rel=0.005)
    middle = found[128, 128] * np.exp(-2j * np.pi * z / WAVELENGTH)
    assert np.angle(middle) == pytest.approx(-np.pi / 4, abs=0.01)  # Gouy's phase
    radius = 2 * z  # of curvature at one Rayleigh length
    off = found[128, 138] * np.exp(-2j * np.pi * z / WAVELENGTH)
    turned = np.pi * grid.x[138] ** 2 / (WAVELENGTH * radius)
    assert np.angle(off / middle * np.exp(-1j * turned)) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("z", [20e-3, 40e-3, 75e-3])
def test_intensity_on_the_axis_behind_a_round_aperture(z):
    radius, fine = 10 * WAVELENGTH, 4
    grid = Grid((161, 161), 0.1e-3 * fine / 4, WAVELENGTH)
    sub = (np.arange(161 * fine) - (161 * fine) // 2) * grid.pitch / fine
    disc = (sub[:, None] ** 2 + sub**2 <= radius**2).astype(float)
    aperture = disc[: 161 * fine, : 161 * fine].reshape(161, fine, 161, fine).mean((1, 3))
    H = transfer_function(grid, z, "rs", dtype=np.complex128)
    found = abs(np.fft.ifft2(np.fft.fft2(aperture, H.shape) * H)[80, 80]) ** 2
    k, R = 2 * np.pi / WAVELENGTH, np.hypot(z, radius)
    assert found == pytest.approx(abs(np.exp(1j * k * z) - z / R * np.exp(1j * k * R)) ** 2, rel=0.02)


def test_a_grating_images_itself_at_its_talbot_distance():
    period = 8 * WAVELENGTH
    grid = Grid((20, 160), WAVELENGTH / 2.5, WAVELENGTH)  # eight periods: a periodic window
    grating = (1 + np.cos(2 * np.pi * grid.x / period)) / 2 * np.ones((20, 1))
    axial = np.sqrt(WAVELENGTH**-2 - period**-2)
    talbot = 1 / (1 / WAVELENGTH - axial)  # exact for the one order that it has
    H = transfer_function(grid, talbot, "asm", pad=1)
    found = np.abs(propagate(grating.astype(np.complex64), H)) ** 2
    np.testing.assert_allclose(found, grating**2, atol=2e-4)
    half = np.abs(propagate(grating.astype(np.complex64), transfer_function(grid, talbot / 2, "asm", pad=1))) ** 2
    np.testing.assert_allclose(half, np.roll(grating**2, 10, 1), atol=2e-4)


def test_a_lens_focuses_to_airys_radius():
    grid = Grid((192, 192), 0.3e-3, WAVELENGTH)
    diameter, f = 40e-3, 100e-3
    squared = grid.y[:, None] ** 2 + grid.x**2
    lens = np.exp(-2j * np.pi / WAVELENGTH * (np.sqrt(squared + f**2) - f)) * (squared <= diameter**2 / 4)
    spot = np.abs(propagate(lens.astype(np.complex64), transfer_function(grid, f))) ** 2
    profile = np.asarray(spot[96, 96:])
    first = int(np.argmax(np.diff(profile) > 0))
    assert grid.x[96 + first] == pytest.approx(1.22 * WAVELENGTH * f / diameter, abs=1.2 * grid.pitch)


@settings(max_examples=3)
@given(
    shape=st.tuples(st.integers(3, 12), st.integers(3, 12)), batch=st.integers(1, 3), seed=st.integers(0, 99),
    pruned=st.booleans(),
)  # fmt: skip
def test_any_shape_agrees_with_the_plain_formula_and_a_loop(shape, batch, seed, pruned):
    rng = np.random.default_rng(seed)
    grid = Grid(shape, 0.3e-3, WAVELENGTH)
    H = transfer_function(grid, 2e-3, "blas")
    field = (rng.normal(size=(batch, 2, *shape)) + 1j * rng.normal(size=(batch, 2, *shape))).astype(np.complex64)
    before = module.PRUNED_FROM
    module.PRUNED_FROM = 0 if pruned else before
    try:
        jax.clear_caches()
        found = np.asarray(propagate(field, H))
        one = np.asarray(propagate(field[0, 1], H))
    finally:
        module.PRUNED_FROM = before
        jax.clear_caches()
    np.testing.assert_allclose(found, naive(field, H), atol=2e-5)
    np.testing.assert_allclose(found[0, 1], one, atol=1e-6)


def test_gradients_of_field_and_transfer_function_equal_plain_autodiff(monkeypatch):
    monkeypatch.setattr(module, "PRUNED_FROM", 0)
    jax.clear_caches()
    rng = np.random.default_rng(1)
    field = jnp.asarray(rng.normal(size=(3, 12, 9)) + 1j * rng.normal(size=(3, 12, 9)), jnp.complex64)
    H = jnp.asarray(transfer_function(Grid((12, 9), 0.3e-3, WAVELENGTH), 2e-3, shift=(1e-4, 3e-4)))
    weight = jnp.asarray(rng.normal(size=(3, 12, 9)), jnp.float32)

    def loss(operator):
        return lambda field, H: (weight * jnp.abs(operator(field, H)) ** 2).sum()

    ours, plain = (jax.grad(loss(operator), (0, 1))(field, H) for operator in (propagate, naive))
    for a, b in zip(ours, plain, strict=True):
        assert float(jnp.linalg.norm(a - b)) < 1e-5 * float(jnp.linalg.norm(b))
    jax.clear_caches()


def test_gradients_hold_in_double_precision_against_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        H = transfer_function(Grid((16, 16), 0.3e-3, WAVELENGTH), 2e-3, dtype=np.complex128)
        weight = rng.normal(size=(16, 16))

        def loss(real, imaginary):
            return (weight * jnp.abs(propagate(real + 1j * imaginary, H)) ** 2).sum()

        check_grads(loss, tuple(rng.normal(size=(2, 16, 16))), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_the_operator_is_linear_and_reciprocal():
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(2, 48, 48)) + 1j * rng.normal(size=(2, 48, 48))).astype(np.complex64)
    H = transfer_function(GRID, 7e-3)
    there, back = (np.asarray(propagate(each, H)) for each in (a, b))
    np.testing.assert_allclose(propagate(2 * a - 3j * b, H), 2 * there - 3j * back, atol=1e-4)
    assert np.vdot(np.conj(a), back) == pytest.approx(np.vdot(np.conj(there), b), rel=1e-4)


def test_moving_the_field_moves_what_comes_of_it():
    field = np.pad(golden_field()[12:36, 12:36], 12).astype(np.complex64)
    H = transfer_function(GRID, 2e-3)
    moved = np.asarray(propagate(np.roll(field, (3, -2), (0, 1)), H))
    np.testing.assert_allclose(moved[3:, :-2], np.asarray(propagate(field, H))[:-3, 2:], atol=1e-5)


def test_compiled_and_eager_agree_and_reals_are_fields():
    H = transfer_function(GRID, 2e-3)
    real = np.abs(golden_field()).astype(np.float32)
    np.testing.assert_allclose(jax.jit(propagate)(real, H), propagate(real + 0j, H), atol=1e-6)


def test_what_is_no_field_is_refused():
    H = transfer_function(GRID, 2e-3, pad=1, method="asm")
    with pytest.raises(ShapeError, match=r"\(64, 64\) does not fit into a transfer function of shape \(48, 48\)"):
        propagate(np.ones((64, 64), np.complex64), H)
    with pytest.raises(ValueError, match="not finite"):
        propagate(np.full((48, 48), np.nan, np.complex64), H)
