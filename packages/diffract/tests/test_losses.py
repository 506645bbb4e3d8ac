"""Loss terms against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffract import energy_penalty, imaging_loss, pcc

RNG = np.random.default_rng(0)
OUTPUT = RNG.random((3, 8, 9)).astype(np.float32)
TARGET = (RNG.random((3, 8, 9)) * (RNG.random((3, 8, 9)) > 0.5)).astype(np.float32)


def test_correlation_is_pearsons_of_each_image():
    expected = [np.corrcoef(o.ravel(), g.ravel())[0, 1] for o, g in zip(OUTPUT, TARGET, strict=True)]
    np.testing.assert_allclose(pcc(OUTPUT, TARGET), expected, atol=1e-6)


@settings(max_examples=15)
@given(exponent=st.integers(-12, 12), offset=st.floats(0, 2), seed=st.integers(0, 50))
def test_correlation_depends_neither_on_scale_nor_on_offset(exponent, offset, seed):
    output = np.random.default_rng(seed).random((8, 9)).astype(np.float32)
    found = pcc((10.0**exponent * (output + offset)).astype(np.float32), TARGET[0])
    assert float(found) == pytest.approx(float(pcc(output, TARGET[0])), abs=2e-5)
    assert -1 <= float(found) <= 1


def test_gradients_of_dim_images_are_as_useful_as_of_bright_ones():
    gradient = jax.grad(lambda o: pcc(o, TARGET[0]))
    bright, dim = gradient(jnp.asarray(OUTPUT[0])), gradient(jnp.asarray(1e-9 * OUTPUT[0]))
    np.testing.assert_allclose(1e-9 * dim, bright, rtol=2e-3, atol=1e-6)
    step = 1e-2 * np.asarray(bright)
    gained = float(pcc(OUTPUT[0] + step, TARGET[0]) - pcc(OUTPUT[0], TARGET[0]))
    assert gained == pytest.approx(float((np.asarray(bright) * step).sum()), rel=0.02)


def test_constant_images_have_no_correlation():
    assert np.isnan(float(pcc(OUTPUT[0], np.ones((8, 9), np.float32))))
    assert np.isnan(float(pcc(np.zeros((8, 9), np.float32), TARGET[0])))


def test_the_penalty_is_light_beside_minus_half_the_light_on_the_object_over_its_area():
    mask = TARGET > 0
    for o, m, found in zip(OUTPUT, mask, energy_penalty(OUTPUT, TARGET), strict=True):
        assert float(found) == pytest.approx((o[~m].sum() - 0.5 * o[m].sum()) / m.sum(), rel=1e-5)
    higher = energy_penalty(OUTPUT, TARGET, threshold=0.5)
    assert float(higher[0]) > float(energy_penalty(OUTPUT, TARGET)[0])
    assert float(energy_penalty(OUTPUT[0], np.zeros((8, 9), np.float32))) == pytest.approx(OUTPUT[0].sum(), rel=1e-5)


def test_a_perfect_image_costs_minus_one_minus_beta_times_its_mean_brightness():
    found = imaging_loss(TARGET, TARGET)
    brightness = np.mean([g[g > 0].mean() for g in TARGET])
    assert float(found) == pytest.approx(-1 - 0.5 * brightness, rel=1e-5)
