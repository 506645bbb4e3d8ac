"""Training and evaluation, on a few random recordings."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.training import Arrays, Loader, cosine, seed_everything
from snn_nda.augment import Geometric
from snn_nda.nda import NDA
from snn_nda.networks import tiny_vgg
from snn_nda.training import TrainConfig, by_epoch, evaluate, train

RNG = np.random.default_rng(0)
FRAMES = RNG.poisson(0.3, (12, 3, 2, 12, 12)).astype(np.float32)
LABELS = np.arange(12) % 3
CONFIG = TrainConfig(epochs=4, batch_size=4)


def network():
    seed_everything(0)
    return tiny_vgg(2, 3, widths=(4, 8), size=12)


def loader(**options):
    return Loader(Arrays(FRAMES, LABELS), 4, seed=1, **options)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(config=CONFIG, batches=None, policy="M2N1", **options):
    model = network()
    augment = None if policy is None else Geometric(NDA(policy))
    history = train(model, batches or loader(), config, augment=augment, progress=False, **options)
    return model, history


def test_training_learns_what_it_is_shown():
    model, history = trained(replace(CONFIG, epochs=40, learning_rate=1e-2), policy=None)
    assert history.last["loss"] < 0.5 * history.records[0]["loss"]
    assert evaluate(model, loader())["accuracy"] == 1.0


def test_the_number_of_workers_changes_nothing():
    one, many = (weights(trained(batches=loader(workers=count))[0]) for count in (0, 2))
    assert torch.equal(one, many)


def test_another_seed_of_the_loader_moves_recordings_otherwise():
    fixed = Loader(Arrays(FRAMES, LABELS), 12, seed=1, shuffle=False)
    runs = [weights(trained(batches=each)[0]) for each in (fixed, replace(fixed, seed=2))]
    assert not torch.equal(*runs)
    plain = [weights(trained(batches=each, policy=None)[0]) for each in (fixed, replace(fixed, seed=2))]
    assert torch.equal(*plain)


def test_every_epoch_sees_other_operations(monkeypatch):
    seen = []
    augment = Geometric(NDA("M2N1"))

    def spy(frames, labels, draw):
        seen.append(draw)
        return augment(frames, labels, draw)

    train(network(), loader(), CONFIG, augment=spy, progress=False)
    assert [draw.epoch for draw in seen] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert {draw.seed for draw in seen} == {1}
    for epoch in range(4):
        assert sorted(index for draw in seen if draw.epoch == epoch for index in draw.indices) == list(range(12))


@pytest.mark.parametrize("watch_last", [None, 2, 0])
def test_watched_data_are_measured_in_the_last_epochs(watch_last):
    model, history = trained(replace(CONFIG, watch_last=watch_last), watch={"train": loader(), "test": loader()})
    measured = [record["epoch"] for record in history.records if "test_accuracy" in record]
    assert measured == list(range(4))[(0 if watch_last is None else 4 - watch_last) :]
    if measured:
        assert history.last["train_accuracy"] == evaluate(model, loader())["accuracy"]
        assert history.last["test_loss"] == pytest.approx(evaluate(model, loader())["loss"])


def test_watching_changes_no_weight():
    assert torch.equal(weights(trained()[0]), weights(trained(watch={"test": loader()})[0]))


class StopError(Exception):
    """What the test interrupts a training with."""


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    config = replace(CONFIG, watch_last=2)
    whole, history = trained(config, watch={"test": loader()})
    calls = []

    class Stopping(Geometric):
        def __call__(self, *batch):
            calls.append(0)
            if len(calls) == 8:  # in the third epoch
                raise StopError
            return super().__call__(*batch)

    with Run.open(tmp_path / "run", {}) as run, pytest.raises(StopError):
        train(
            network(),
            loader(),
            config,
            augment=Stopping(NDA("M2N1")),
            watch={"test": loader()},
            run=run,
            progress=False,
        )
    seed_everything(99)
    with Run.open(tmp_path / "run", {}, resume=True) as run:
        resumed, again = trained(config, watch={"test": loader()}, run=run)
    assert torch.equal(weights(resumed), weights(whole))
    assert again == history


def test_the_released_codes_rate_stays_within_an_epoch():
    _, history = trained(replace(CONFIG, falls="epoch"))
    assert [record["learning_rate"] for record in history.records] == pytest.approx(
        [2e-3 * cosine(epoch / 4) for epoch in range(4)]
    )
    schedule = by_epoch(200)
    assert all(schedule(step / (200 * 36)) == cosine(step // 36 / 200) for step in range(200 * 36))


def test_the_rate_falls_at_every_step_by_default():
    history = trained()[1]
    assert history.last["learning_rate"] == pytest.approx(2e-3 * cosine(11 / 12))


def test_evaluation_weighs_recordings_and_not_batches():
    model = network().eval()
    frames, labels = torch.from_numpy(FRAMES), torch.from_numpy(LABELS)
    uneven = [(frames[:11], labels[:11]), (frames[11:], labels[11:])]
    scores = model(frames.transpose(0, 1)).mean(0)
    found = evaluate(model, uneven)
    assert found["accuracy"] == int((scores.argmax(1) == labels).sum()) / 12
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(scores, labels).item(), rel=1e-5)


def test_evaluation_leaves_the_mode_as_it_was():
    model = network().train()
    evaluate(model, loader())
    assert model.training


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(UserError, match="the loader is empty"):
        evaluate(network(), [])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"watch_last": -1}, "watch_last must not be negative"),
    ],
)
def test_a_configuration_outside_its_range_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        TrainConfig(**options)
