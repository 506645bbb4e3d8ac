"""What is timed answers the same question on both sides."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffract import Geometry, Grid, benchmarks, pcc, transfer_function


@pytest.fixture(autouse=True)
def give_the_cores_back():
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


def naive(fields, phases, transfers):
    for m, z in enumerate(benchmarks.DISTANCES):
        H = transfers[z]
        padded = jnp.fft.fft2(fields, s=H.shape) * H
        fields = jnp.fft.ifft2(padded)[..., : benchmarks.SIDE, : benchmarks.SIDE]
        fields = fields * jnp.exp(1j * phases[m]) if m < benchmarks.LAYERS else fields
    return jnp.abs(fields) ** 2


def test_our_side_gives_loss_and_gradient_of_the_plain_formula(monkeypatch):
    monkeypatch.setattr(benchmarks, "SIDE", 48)
    fields, objects, phases = benchmarks.inputs()
    grid = Grid((48, 48), benchmarks.PITCH, benchmarks.WAVELENGTH)
    loss, gradient = benchmarks.ours()()
    transfers = {z: transfer_function(grid, z, "rs") for z in benchmarks.DISTANCES}

    @jax.jit
    def plain(phases):
        return -pcc(naive(fields, phases, transfers), objects).mean()

    value, expected = jax.value_and_grad(plain)(phases)
    assert loss == pytest.approx(float(value), abs=1e-5)
    assert np.linalg.norm(gradient - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("peer", ["torchoptics", "svetlanna"])
def test_the_peer_gives_the_same_loss_and_gradient(peer, monkeypatch):
    pytest.importorskip(peer)
    monkeypatch.setattr(benchmarks, "SIDE", 48)
    loss, gradient = getattr(benchmarks, peer)()()
    ours_loss, ours = benchmarks.ours_asm()()
    assert loss == pytest.approx(ours_loss, abs=1e-4)
    assert np.linalg.norm(gradient - ours) < 2e-3 * np.linalg.norm(ours)


def test_the_geometry_is_the_published_one():
    assert Geometry.luo2022().distances == benchmarks.DISTANCES
