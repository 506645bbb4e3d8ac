"""A training as one configuration."""

import typing
from dataclasses import replace

import pytest
import torch

from core_utils.errors import UserError
from core_utils.settings import settings
from snn_nda.augment import Draw, Geometric, Mixed, Photometric
from snn_nda.datasets import DataSets, miniature_data
from snn_nda.errors import FlipError
from snn_nda.job import (
    JobConfig,
    Preset,
    PretrainJob,
    evaluation_loader,
    held_out,
    load_data,
    make_augment,
    make_network,
    preset_file,
    unseen,
)


def sets(safe=True, label_map=None, validation=None):
    return DataSets(
        train=[0],
        validation=validation,
        test=[1, 2],
        num_classes=11,
        size=24,
        label_safe_flip=safe,
        label_map=label_map or {},
    )


@pytest.mark.parametrize("name", typing.get_args(Preset))
def test_a_preset_is_the_papers_training(name):
    config = settings(JobConfig, file=preset_file(name))
    assert (config.dataset, config.time_steps, config.size, config.method) == (name, 10, 48, "nearest")
    assert (config.epochs, config.batch_size, config.learning_rate, config.weight_decay) == (200, 256, 1e-3, 1e-4)
    assert (config.falls, config.network) == ("epoch", "resnet19" if name == "n-cars" else "vgg11")
    augment = make_augment(config, sets())
    policy = augment.nda.policy
    if name == "n-cars":
        assert (policy.flip, policy.magnitude, "cutout" in policy.ops) == (0.5, 2, True)
    else:
        level = {"cifar10-dvs": 2, "n-caltech101": 1}[name]
        assert (policy.flip, policy.magnitude, policy.ops) == (0.0, level, ("roll", "rotate", "shear"))


def test_words_choose_the_augmentation():
    config = JobConfig()
    assert make_augment(replace(config, policy="none"), sets()) is None
    assert isinstance(make_augment(replace(config, policy="photometric"), sets()), Photometric)
    assert isinstance(make_augment(config, sets()), Geometric)
    mixed = make_augment(replace(config, policy="none", mix="cutmix"), sets())
    assert isinstance(mixed, Mixed)
    assert (mixed.how, mixed.num_classes, mixed.first) == ("cutmix", 11, None)
    assert make_augment(replace(config, mix="mixup"), sets()).first.nda.policy.num_ops == 1


def test_gestures_change_their_labels_with_the_mirror_and_digits_are_refused():
    augment = make_augment(JobConfig(), sets(safe=False, label_map={1: 2, 2: 1}))
    _, labels = augment(torch.zeros(40, 1, 2, 8, 8), torch.ones(40, dtype=torch.long), Draw(0, 0, tuple(range(40))))
    assert set(labels.tolist()) == {1, 2}
    with pytest.raises(FlipError, match="the policy mirrors"):
        make_augment(JobConfig(), sets(safe=False))
    assert isinstance(make_augment(PretrainJob(), sets(safe=False)), Geometric)


def test_what_is_watched_is_the_validation_part_where_there_is_one():
    assert (unseen(sets()), held_out(sets())) == ("test", [1, 2])
    with_part = sets(validation=[3])
    assert (unseen(with_part), held_out(with_part)) == ("validation", [3])


def test_a_seed_decides_the_weights():
    data = miniature_data(0, train_per_class=1, test_per_class=1)
    first, again, other = (make_network(JobConfig(seed=seed), data).readout.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert make_network(JobConfig(network="vgg11"), data)(torch.zeros(1, 2, 2, 24, 24)).shape == (1, 2, 10)


def test_the_miniature_is_loaded_in_the_asked_size():
    data = load_data(JobConfig(train_per_class=2, test_per_class=3, time_steps=4), None)
    assert (len(data.train), len(data.test)) == (20, 30)
    assert data.train[0][0].shape == (4, 2, 24, 24)
    frames, labels = next(iter(evaluation_loader(JobConfig(), data.test)))
    assert (frames.shape[0], labels.tolist()) == (30, [int(data.test[index][1]) for index in range(30)])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train_per_class": 0}, "train_per_class must be at least 1"),
        ({"test_per_class": 0}, "test_per_class must be at least 1"),
        ({"validation": 1.0}, r"validation must lie in \[0, 1\)"),
        ({"workers": -1}, "workers must not be negative"),
        ({"sensor": (3, 3)}, "sensor and label_safe_flip of miniature are known"),
        ({"policy": "M1N9"}, "policy 'M1N9' cannot be used: num_ops must lie between 0 and 4"),
    ],
)
@pytest.mark.parametrize("config", [JobConfig, PretrainJob])
def test_a_configuration_outside_its_range_is_refused(config, options, complaint):
    with pytest.raises(UserError, match=complaint):
        config(**options)


def test_a_training_that_would_measure_nothing_is_refused_before_it_starts():
    with pytest.raises(UserError, match="watch_last must be at least 1"):
        JobConfig(watch_last=0)
