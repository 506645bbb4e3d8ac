"""Training, its configuration, and the miniature that it learns."""

import numpy as np
import pytest
import torch

from core_utils.data import fashion_mnist_small
from core_utils.errors import CheckFailed, UserError
from core_utils.runs import Run
from core_utils.training import Arrays, Loader, seed_everything
from snn_tet import (
    Loaders,
    Stage,
    TrainConfig,
    posed_miniature,
    sdt_loss,
    tet_loss,
    time_inheritance,
    tiny_vgg,
    train,
)
from snn_tet.miniature import SIZE


@pytest.fixture(scope="module")
def split():
    return posed_miniature(0, train_per_class=4, test_per_class=2, time_steps=3)


def trained(split, config, run=None, **more):
    seed_everything(config.seed)
    model = tiny_vgg()
    loaders = Loaders(Loader(Arrays(split.x_train, split.y_train), config.batch_size, seed=config.seed))
    return model, train(model, loaders, config, run=run, progress=False, **more)


@pytest.mark.parametrize("loss", ["tet", "sdt"])
def test_the_loss_falls(split, loss):
    _, history = trained(split, TrainConfig(time_steps=3, loss=loss, epochs=12, batch_size=10))
    losses = [record["loss"] for record in history.records]
    assert losses[-1] < 0.7 * losses[0]
    assert history.last["learning_rate"] < 0.01 * TrainConfig().learning_rate * 10


@pytest.mark.parametrize(
    ("loss", "function"), [("tet", lambda o, y: tet_loss(o, y, lam=0.3, phi=0.5)), ("sdt", sdt_loss)]
)
def test_the_first_loss_is_that_of_the_configuration(split, loss, function):
    config = TrainConfig(time_steps=3, loss=loss, lam=0.3, phi=0.5, epochs=1, batch_size=40)
    _, history = trained(split, config)
    seed_everything(config.seed)
    ((frames, labels),) = Loader(Arrays(split.x_train, split.y_train), 40, seed=config.seed)
    expected = function(tiny_vgg()(frames.transpose(0, 1)), labels)
    assert history.records[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_resumed_training_ends_bit_identical(split, tmp_path):
    config = TrainConfig(time_steps=3, epochs=4, batch_size=10)
    whole, _ = trained(split, config)
    with Run.open(tmp_path, config) as run:
        seed_everything(0)
        model = tiny_vgg()
        loaders = Loaders(Loader(Arrays(split.x_train, split.y_train), 10, seed=0))
        hook = model.register_forward_pre_hook(interrupt_at(call=7))
        with pytest.raises(KeyboardInterrupt):
            train(model, loaders, config, run=run, progress=False)
        hook.remove()
    with Run.open(tmp_path, config, resume=True) as run:
        resumed, _ = trained(split, config, run)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def interrupt_at(call):
    import os

    calls = []

    def hook(module, inputs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), 2)

    return hook


def test_frames_that_are_not_finite_stop_with_the_step_named(split):
    frames = split.x_train.copy()
    frames[7] = np.nan
    seed_everything(0)
    loaders = Loaders(Loader(Arrays(frames, split.y_train), 10, seed=0))
    with pytest.raises(CheckFailed, match=r"the norm of the gradient became nan at step \d \(epoch 0, batch \d\)"):
        train(tiny_vgg(), loaders, TrainConfig(time_steps=3, epochs=2), progress=False)


def test_validation_accuracy_is_logged_every_epoch(split):
    loaders = Loaders(
        *(Loader(Arrays(x, y), 10) for x, y in ((split.x_train, split.y_train), (split.x_test, split.y_test)))
    )
    history = train(tiny_vgg(), loaders, TrainConfig(time_steps=3, epochs=2), progress=False)
    assert len(history.records) == 2
    assert all(0 <= record["validation_accuracy_one_step"] <= 1 for record in history.records)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"time_steps": -1}, "time_steps must be at least 1, got -1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"lam": 2.0}, "lam must lie in"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_a_configuration_out_of_range_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        TrainConfig(**options)


def test_the_test_set_is_fixed_and_the_training_set_follows_the_seed(split):
    other = posed_miniature(1, train_per_class=4, test_per_class=2, time_steps=3)
    again = posed_miniature(0, train_per_class=4, test_per_class=2, time_steps=3)
    assert np.array_equal(other.x_test, split.x_test)
    assert np.array_equal(again.x_train, split.x_train)
    assert not np.array_equal(other.x_train, split.x_train)


def test_recordings_are_frames_in_the_unit_interval(split):
    assert split.x_train.shape == (40, 3, 2, SIZE, SIZE)
    assert split.x_train.dtype == np.float32
    assert set(np.unique(np.round(3 * split.x_train, 5))) == {0.0, 1.0, 2.0, 3.0}
    assert np.bincount(split.y_test).tolist() == [2] * 10


def test_a_folder_of_idx_files_takes_the_place_of_the_embedded_images(tmp_path, split):
    images = fashion_mnist_small()
    for part, x, y in (("train", images.x_train, images.y_train), ("t10k", images.x_test, images.y_test)):
        shape = b"".join(size.to_bytes(4, "big") for size in x.shape)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + x.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + len(y).to_bytes(4, "big") + bytes(y.tolist())
        )
    from_folder = posed_miniature(0, train_per_class=4, test_per_class=2, time_steps=3, data=tmp_path)
    assert np.array_equal(from_folder.x_train, split.x_train)
    assert np.array_equal(from_folder.x_test, split.x_test)


def test_time_inheritance_hands_the_weights_on(split, monkeypatch):
    """The second stage starts from the first one's weights and running averages, with its own rate and a new Adam."""
    seen = []
    original = train

    def spy(model, loaders, config, **more):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        history = original(model, loaders, config, **more)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return history

    monkeypatch.setattr("snn_tet.training.train", spy)

    def loaders(time_steps):
        return Loaders(Loader(Arrays(split.x_train[:, :time_steps], split.y_train), 10, seed=0))

    stages = [Stage(1, 8, 2e-3), Stage(3, 4, 5e-4)]
    histories = time_inheritance(tiny_vgg(), stages, loaders, TrainConfig(), progress=False)
    assert [len(history.records) for history in histories] == [8, 4]
    assert all(torch.equal(seen[1][name], seen[2][name]) for name in seen[1])
    first, second = ([record["loss"] for record in history.records] for history in histories)
    assert first[-1] < 0.8 * first[0]
    assert second[-1] < second[0]
    assert [record["stage"] for record in (histories[0].last, histories[1].last)] == [
        "stage-0-1-steps",
        "stage-1-3-steps",
    ]


def test_stages_resume_where_they_were(split, tmp_path):
    def loaders(time_steps):
        return Loaders(Loader(Arrays(split.x_train[:, :time_steps], split.y_train), 10, seed=0))

    def run_stages(run=None, call=None):
        seed_everything(0)
        model = tiny_vgg()
        if call is not None:
            model.register_forward_pre_hook(interrupt_at(call))
        time_inheritance(model, [Stage(1, 2, 2e-3), Stage(3, 2, 5e-4)], loaders, TrainConfig(), run=run, progress=False)
        return model.state_dict()

    whole = run_stages()
    with Run.open(tmp_path, {}) as run, pytest.raises(KeyboardInterrupt):
        run_stages(run, call=13)  # in the second stage
    with Run.open(tmp_path, {}, resume=True) as run:
        resumed = run_stages(run)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("stage", [(0, 1, 1e-3), (1, 0, 1e-3), (1, 1, 0.0), (1, 1, float("nan"))])
def test_a_stage_out_of_range_is_refused(stage):
    with pytest.raises(UserError, match="a stage needs"):
        Stage(*stage)
    with pytest.raises(UserError, match="at least one stage"):
        time_inheritance(tiny_vgg(), [], lambda steps: None, TrainConfig())
