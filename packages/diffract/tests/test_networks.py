"""Networks: what must not change their images, what must move them, and gradients through everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from diffract import (
    ConfigError,
    DiffractiveNetwork,
    Displacement,
    Geometry,
    Grid,
    Misalignment,
    SamplingError,
    ShapeError,
    Stream,
    diffused,
    pcc,
    stream,
    transfer_function,
)
from diffract.displacements import longer, through_tilted, turned
from diffract.networks import fields_behind, paths

GRID = Grid((32, 32), 0.3e-3, 0.75e-3)
PLANES = Geometry(3e-3, 2e-3, 2e-3, 3e-3, 3)


def network(grid=GRID, planes=PLANES, seed=0, spread=1.0):
    made = DiffractiveNetwork(grid, planes)
    rng = np.random.default_rng(seed)
    made.phases = nnx.Param(jnp.asarray(spread * rng.normal(size=made.phases.shape), jnp.float32))
    return made


def field_of(grid=GRID, seed=1, batch=2):
    """Spots with slow phases, well within the grid."""
    rng = np.random.default_rng(seed)
    y, x = grid.y[:, None] / grid.extent[0], grid.x / grid.extent[1]
    window = np.exp(-((y / 0.15) ** 2) - (x / 0.15) ** 2)
    slopes = rng.uniform(-9, 9, (2, batch, 1, 1))
    return jnp.asarray(window * np.exp(1j * (slopes[0] * y + slopes[1] * x)), jnp.complex64)


def smooth_phases(grid, n, seed=2):
    rng = np.random.default_rng(seed)
    gain = np.exp(-2 * (np.pi * 1.5e-3) ** 2 * (grid.fy[:, None] ** 2 + grid.fx**2))
    drawn = np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, *grid.shape))) * gain).real
    return (drawn / drawn.std()).astype(np.float32)


def still(n, lateral=(0.0, 0.0)):
    return Displacement(jnp.tile(jnp.asarray(lateral, jnp.float32), (n, 1)), jnp.zeros(n))


def test_phases_count_modulo_two_pi_and_a_common_phase_of_the_light_is_invisible():
    net, field = network(), field_of()
    image = net(field)
    np.testing.assert_allclose(net(field * np.exp(0.7j)), image, atol=1e-6)
    net.phases = nnx.Param(net.phases[...] + 2 * np.pi)
    np.testing.assert_allclose(net(field), image, atol=2e-6)


def test_an_untrained_network_is_free_space():
    net = DiffractiveNetwork(GRID, PLANES)
    fields = net.fields(field_of())
    assert len(fields) == 4
    np.testing.assert_allclose(np.abs(fields[-1]) ** 2, net(field_of()), rtol=1e-5, atol=1e-9)
    assert float(jnp.abs(net.phases[...]).max()) == 0


def test_turning_everything_turns_the_image():
    grid = Grid((33, 33), 0.3e-3, 0.75e-3)
    net, field = network(grid), field_of(grid)
    image = np.asarray(net(field))
    net.phases = nnx.Param(jnp.rot90(net.phases[...], axes=(1, 2)))
    np.testing.assert_allclose(net(jnp.rot90(field, axes=(1, 2))), np.rot90(image, axes=(1, 2)), atol=1e-6)


def test_a_batch_is_a_loop_and_grids_need_not_be_square():
    grid = Grid((20, 31), 0.3e-3, 0.75e-3)
    net, field = network(grid), field_of(grid, batch=6)
    images = np.asarray(net(field))
    for one, image in zip(field, images, strict=True):
        np.testing.assert_allclose(net(one), image, atol=1e-7)
    np.testing.assert_allclose(net(field.reshape(2, 3, 20, 31)).reshape(6, 20, 31), images, atol=1e-7)


def test_no_displacement_is_bitwise_the_same_as_none():
    net, field = network(), field_of()
    np.testing.assert_array_equal(net(field, still(3)), net(field))


def test_a_layer_moved_by_whole_pixels_is_a_rolled_layer():
    grid = Grid((64, 64), 0.3e-3, 0.75e-3)
    net, rolled, field = network(grid), network(grid), field_of(grid)
    phases = smooth_phases(grid, 3)
    net.phases = nnx.Param(jnp.asarray(phases))
    moved = phases.copy()
    moved[1] = np.roll(phases[1], (2, -3), (0, 1))
    rolled.phases = nnx.Param(jnp.asarray(moved))
    lateral = jnp.zeros((3, 2)).at[1].set(jnp.asarray([2.0, -3.0]) * grid.pitch)
    found, expected = np.asarray(net(field, Displacement(lateral, jnp.zeros(3)))), np.asarray(rolled(field))
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(net(field) - expected) > 0.05 * np.linalg.norm(expected)


def test_moving_all_layers_and_the_light_moves_the_image():
    grid = Grid((64, 64), 0.3e-3, 0.75e-3)
    net, field = network(grid), field_of(grid)
    net.phases = nnx.Param(jnp.asarray(smooth_phases(grid, 3)))
    moved = net(jnp.roll(field, (2, 1), (1, 2)), still(3, (2 * grid.pitch, grid.pitch)))
    expected = np.roll(np.asarray(net(field)), (2, 1), (1, 2))
    assert np.linalg.norm(moved - expected) < 2e-3 * np.linalg.norm(expected)


def test_an_axial_displacement_is_another_distance():
    farther = Geometry(3e-3, 2.2e-3, 1.8e-3, 3e-3, 2)
    net, other = network(planes=Geometry(3e-3, 2e-3, 2e-3, 3e-3, 2)), network(planes=farther)
    axial = jnp.asarray([0.2e-3, 0.0])
    found, expected = np.asarray(net(field_of(), Displacement(jnp.zeros((2, 2)), axial))), np.asarray(other(field_of()))
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_a_layer_turned_by_a_quarter_is_a_quarter_turned_layer():
    layer = jnp.exp(1j * jnp.asarray(np.random.default_rng(0).normal(size=(9, 9)), jnp.float32))
    np.testing.assert_allclose(turned(layer, jnp.asarray(np.pi / 2)), jnp.rot90(layer, -1), atol=1e-5)
    np.testing.assert_allclose(turned(layer, jnp.asarray(0.0)), layer, atol=1e-6)


@pytest.mark.slow
def test_tilting_an_empty_layer_changes_nothing_and_a_mirror_of_waves_is_met_where_it_stands():
    window = GRID.padded(2)
    field = field_of()
    smooth = jnp.fft.ifft2(jnp.fft.fft2(field) * (np.hypot(GRID.fy[:, None], GRID.fx) < 0.4 / 0.75e-3))
    smooth = (smooth * np.exp(-((GRID.y[:, None] / 2.5e-3) ** 2) - (GRID.x / 2.5e-3) ** 2)).astype(jnp.complex64)
    nothing = jnp.ones(GRID.shape, jnp.complex64)
    behind = through_tilted(smooth, nothing, jnp.asarray([0.05, -0.03]), GRID, window)
    assert np.linalg.norm(behind - smooth) < 0.02 * np.linalg.norm(smooth)
    layer = jnp.exp(1j * jnp.asarray(np.random.default_rng(3).normal(size=GRID.shape), jnp.float32))
    upright = through_tilted(smooth, layer, jnp.zeros(2), GRID, window)
    assert np.linalg.norm(upright - smooth * layer) < 1e-3 * np.linalg.norm(smooth)


def test_a_further_distance_is_the_phase_that_waves_gain_on_it():
    window = GRID.padded(1)
    squared = window.wavelength**-2 - window.fy[:, None] ** 2 - window.fx**2
    found = np.asarray(longer(window, 0.1e-3))
    np.testing.assert_allclose(found[squared > 0], np.exp(2j * np.pi * 1e-4 * np.sqrt(squared[squared > 0])), atol=1e-5)
    np.testing.assert_allclose(
        np.abs(found[squared < 0]), np.exp(-2e-4 * np.pi * np.sqrt(-squared[squared < 0])), rtol=1e-4
    )
    assert np.abs(longer(window, -0.1e-3)).max() <= 1 + 1e-6  # nothing grows backwards


def test_gradients_through_loss_shift_and_distance_hold_against_differences():
    with jax.enable_x64(True):
        grid = Grid((16, 16), 0.3e-3, 0.75e-3)
        transfers = jnp.stack(
            [jnp.asarray(transfer_function(grid, z, dtype=np.complex128)) for z in (3e-3, 2e-3, 2e-3, 3e-3)]
        )
        rng = np.random.default_rng(0)
        field = jnp.asarray(rng.normal(size=(16, 16)) + 1j * rng.normal(size=(16, 16)))
        target = jnp.asarray(rng.random((16, 16)))

        @jax.jit
        def loss(phases, lateral, axial):
            displacement = Displacement(1e-4 * lateral, 1e-4 * axial)
            path = paths(transfers, 2, displacement, grid.padded(2))
            last = fields_behind(jnp.exp(1j * phases), path, field, displacement, grid, 2)[-1]
            return -pcc(jnp.abs(last) ** 2, target)

        at = rng.normal(size=(2, 16, 16)), rng.normal(size=(2, 2)), jnp.asarray([0.3, 0.9])
        check_grads(loss, at, order=1, modes=["rev"], atol=2e-5, rtol=2e-5)


def test_a_diffuser_multiplies_every_object():
    field, screens = field_of(batch=3), np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32)
    found = diffused(field, screens)
    assert found.shape == (3, 4, 32, 32)
    np.testing.assert_allclose(found[2, 1], field[2] * np.exp(1j * screens[1]), atol=1e-6)
    with pytest.raises(ShapeError, match=r"real phases \[n, 32, 32\]"):
        diffused(field, np.zeros((4, 16, 16), np.float32))


def test_misalignments_lie_within_their_ranges_and_initial_phases_are_drawn():
    displacement = Misalignment(lateral=0.3e-3, axial=1e-4, rotation=0.1, tilt=0.2).sample(stream(0, Stream.NEW), 500)
    for values, most in (
        (displacement.lateral, 0.3e-3), (displacement.axial, 1e-4), (displacement.rotation, 0.1), (displacement.tilt, 0.2),
    ):  # fmt: skip
        assert 0.97 * most < float(jnp.abs(values).max()) <= most
        assert abs(float(values.mean())) < 0.1 * most
    assert Misalignment().none
    drawn = DiffractiveNetwork(GRID, PLANES, init="uniform", rngs=nnx.Rngs(params=0)).phases[...]
    assert 0 <= float(drawn.min()) < 0.05
    assert 6.2 < float(drawn.max()) < 2 * np.pi + 1e-6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Geometry(3e-3, 0.0, 2e-3, 3e-3, 2), ConfigError, "diffuser_to_layer must be positive"),
        (lambda: Geometry(3e-3, 2e-3, 2e-3, 3e-3, 0), ConfigError, "n_layers must be at least 1"),
        (lambda: Misalignment(lateral=-1.0), ConfigError, "lateral must not be negative"),
        (lambda: DiffractiveNetwork(GRID, PLANES, init="uniform"), ConfigError, "uniform with rngs"),
        (lambda: network()(jnp.zeros((16, 16), jnp.complex64)), ShapeError, r"\(16, 16\).*\(32, 32\)"),
        (
            lambda: DiffractiveNetwork(GRID, Geometry(40e-3, 2e-3, 2e-3, 3e-3, 2), method="asm"),
            SamplingError, "errs by about",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_network_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
