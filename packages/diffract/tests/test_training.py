"""Training: what it reaches, what it remembers, and that neither interruptions nor devices change it."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from core_utils.data import DataError
from core_utils.errors import CheckFailed
from core_utils.runs import Run, RunError
from diffract import (
    ConfigError,
    Design,
    Stream,
    evaluate,
    load_objects,
    pcc,
    placed,
    propagate,
    stream,
    train,
    training,
)
from diffract.gradients import Batch, Weights, gradient
from diffract.losses import imaging_loss
from diffract.networks import intensity

SMALL = Design.preset("mini").with_(
    shape=(32, 32),
    method="auto",
    pad=2.0,
    object_side=20,
    geometry__n_layers=2,
    train__epochs=3,
    train__steps_per_epoch=4,
    train__pairs=4,
    train__n=4,
)


@pytest.fixture(scope="module")
def digits():
    return load_objects()


def test_a_short_training_sees_through_new_diffusers(digits):
    design = Design.preset("mini").with_(train__epochs=3, train__steps_per_epoch=10)
    result = train(design, digits.train)
    assert [record["epoch"] for record in result.history] == [0, 1, 2]
    losses = [record["loss"] for record in result.history]
    assert losses == sorted(losses, reverse=True)
    new = design.screens[0].sample(stream(0, Stream.NEW), 4)
    test = placed(digits.test[:8], design.grid, design.object_side)
    assert evaluate(result.network, test, new).mean > 0.6
    assert evaluate(design.network(), test, new).mean < 0.55
    assert result.known.shape == (16, 64, 64)
    assert not np.isclose(result.known[0], new[0]).any(axis=(0, 1)).all()


def test_the_accumulated_gradient_is_that_of_the_plain_loss_on_one_device_and_on_two(digits):
    design = SMALL
    net = design.network()
    rng = np.random.default_rng(0)
    phases = jnp.asarray(rng.normal(size=net.phases.shape), jnp.float32)
    targets = jnp.asarray(placed(digits.train[:4], design.grid, 20))
    screens = jnp.asarray(rng.normal(size=(3, 32, 32)), jnp.float32)
    fields = propagate(targets, net.transfers[...][0])
    pairs = np.stack(np.meshgrid(np.arange(4), np.arange(3), indexing="ij"), -1).reshape(-1, 2)
    batch = Batch(fields, targets, screens, jnp.asarray(pairs))

    def plain(phases):
        through = fields[:, None] * jnp.exp(1j * screens)
        output = intensity(phases, net.transfers[...], through, None, design.grid, design.pad)
        return imaging_loss(output, targets[:, None], threshold=0.05), pcc(output, targets[:, None]).mean()

    (loss, alike), expected = jax.jit(jax.value_and_grad(plain, has_aux=True))(phases)
    scale = float(jnp.abs(expected).max())
    options = {"weights": Weights(threshold=0.05), "grid": design.grid, "pad": design.pad}
    for chunk, mesh in ((1, None), (4, None), (2, Mesh(np.array(jax.devices()[:2]), ("pairs",)))):
        found, figures = jax.jit(
            lambda p, c=chunk, m=mesh: gradient(p, net.transfers[...], batch, chunk=c, mesh=m, **options)
        )(phases)
        assert float(jnp.abs(found - expected).max()) < 1e-5 * scale
        assert float(figures[0]) == pytest.approx(float(loss), abs=1e-5)
        assert float(figures[1]) == pytest.approx(float(alike), abs=1e-5)


def test_memory_of_a_step_does_not_grow_with_the_number_of_pairs():
    net, temporary = SMALL.network(), []
    for n in (1, 8):
        pairs = np.stack([np.zeros(n, int), np.arange(n)], 1)
        images = jnp.zeros((1, 32, 32))
        batch = Batch(images + 0j, images, jnp.zeros((n, 32, 32)), jnp.asarray(pairs))
        step = jax.jit(lambda p, b: gradient(p, net.transfers[...], b, grid=SMALL.grid, pad=SMALL.pad))
        temporary.append(step.lower(net.phases[...], batch).compile().memory_analysis().temp_size_in_bytes)
    assert (temporary[1] - temporary[0]) / 7 < 2 * 32 * 32 * 8  # the diffuser itself, far from a window of 64 x 64


def test_two_devices_train_as_one_does(digits):
    one, two = (train(SMALL, digits.train, devices=devices) for devices in (1, 2))
    a, b = (np.asarray(each.network.phases[...]) for each in (one, two))
    assert np.abs(a).max() > 0.1
    np.testing.assert_allclose(a, b, atol=2e-3)  # Adam amplifies rounding where gradients are near zero
    with pytest.raises(ConfigError, match="3 devices do not divide 4"):
        train(SMALL, digits.train, devices=3)


def bits(result):
    return np.asarray(result.network.phases[...]).tobytes(), result.known.tobytes()


@pytest.mark.parametrize("stop", [4, 7])
def test_a_training_that_is_stopped_anywhere_goes_on_bit_for_bit(digits, tmp_path, monkeypatch, stop):
    design = SMALL.with_(train__lateral="0.3 mm")
    whole = train(design, digits.train, tmp_path / "whole")
    step, calls = training._step, []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments, **options)

    monkeypatch.setattr(training, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        train(design, digits.train, tmp_path / "cut")
    assert len(calls) == stop
    with pytest.raises(RunError, match="unfinished run"):
        train(design, digits.train, tmp_path / "cut")
    resumed = train(design, digits.train, tmp_path / "cut", resume=True)
    assert len(calls) == 12
    assert bits(resumed) == bits(whole)
    assert bits(train(design, digits.train, tmp_path / "cut")) == bits(whole)  # a finished run is read
    assert len(calls) == 12
    without_time = [[{k: v for k, v in r.items() if k != "seconds"} for r in each.history] for each in (resumed, whole)]
    assert without_time[0] == without_time[1]


def test_a_checkpoint_of_another_design_is_refused(digits, tmp_path):
    train(SMALL.with_(train__epochs=1), digits.train, tmp_path)
    with pytest.raises(RunError, match=r'pitch is "0\.3 mm" there, "0\.31 mm" here'):
        train(SMALL.with_(train__epochs=1, pitch="0.31 mm"), digits.train, tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(digits, tmp_path):
    design = SMALL.with_(train__epochs=2)
    with Run.open(tmp_path, design) as run:
        train(design.with_(train__epochs=1), digits.train, run)
        kept = run.load_state("training")
        broken, step = [], training._step

        def poisoned(phases, *rest, **options):
            broken.append(1)
            return step(phases * np.nan if len(broken) == 2 else phases, *rest, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "_step", poisoned)
            with pytest.raises(CheckFailed, match=r"the loss is nan at epoch 1, step 1; phases ran from"):
                train(design, digits.train, run)
        assert run.load_state("training")[1] == kept[1]


def test_every_epoch_has_diffusers_of_its_own_and_lengths_share_them():
    first, second = (training.epoch_screens(SMALL, epoch) for epoch in (0, 1))
    assert first.shape == (4, 32, 32)
    assert not np.allclose(first, second)
    mixed = training.epoch_screens(SMALL.with_(diffuser__sigma=("0.8 lambda", "2.5 lambda"), train__n=5), 0)
    rough = np.abs(np.diff(mixed, axis=2)).mean((1, 2))
    assert (rough[::2] > 2 * rough[1::2].max()).all()
    assert training.epoch_screens(SMALL.with_(diffuser__kind="none"), 0).shape == (0, 32, 32)


def test_all_pairs_and_no_diffusers_train_too_and_validation_is_logged(digits, tmp_path):
    design = SMALL.with_(train__pairs=None, train__batch_size=2, train__epochs=1, train__validate_every=1)
    result = train(design, digits.train, tmp_path, validation=digits.validation)
    assert set(result.history[0]) >= {"pcc_known", "pcc_new", "pcc_none"}
    bare = train(design.with_(diffuser__kind="none"), digits.train, validation=digits.validation)
    assert "pcc_new" not in bare.history[0]
    assert len(bare.known) == 0


def test_objects_that_cannot_be_imaged_are_named(digits):
    images = digits.train[:10].copy()
    for number, value, complaint in ((3, np.nan, "holds NaN"), (5, 1.5, "leaves"), (7, None, "is constant")):
        bad = images.copy()
        if value is None:
            bad[number] = 0.5
        else:
            bad[number, 0, 0] = value
        with pytest.raises(DataError, match=f"object {number} {complaint}"):
            train(SMALL, bad)
    with pytest.raises(ConfigError, match="batch_size 20 is more than the 10 objects"):
        train(SMALL.with_(train__pairs=None, train__batch_size=20), images)
