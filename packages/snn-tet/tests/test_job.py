"""Whole trainings as configurations."""

from typing import get_args

import pytest

from core_utils.errors import UserError
from core_utils.settings import settings
from snn_tet.job import JobConfig, Preset, make_network, preset_file
from snn_tet.training import Stage


@pytest.mark.parametrize("name", get_args(Preset))
def test_every_preset_is_a_whole_configuration(name):
    config = settings(JobConfig, file=preset_file(name)).complete
    assert config.dataset == name
    assert config.encoding == ("frames" if name == "cifar10-dvs" else "direct")


def test_presets_hold_the_papers_figures():
    dvs = settings(JobConfig, file=preset_file("cifar10-dvs"))
    assert (dvs.network, dvs.time_steps, dvs.lam, dvs.epochs, dvs.batch_size) == ("vggsnn", 10, 1e-3, 150, 128)
    cifar = settings(JobConfig, file=preset_file("cifar100"))
    assert (cifar.network, cifar.time_steps, cifar.learning_rate, cifar.optimizer) == ("resnet19", 6, 1e-3, "adam")


def test_stages_are_read_with_the_rates_they_name():
    config = JobConfig(time_steps=5, learning_rate=2e-3, stages=("2:30", "5:5", "5:1:1e-5"))
    assert config.parsed_stages() == [Stage(2, 30, 2e-3), Stage(5, 5, 5e-4), Stage(5, 1, 1e-5)]


@pytest.mark.parametrize("text", ["2", "2:x", "2:3:4:5", "", "2:3:fast"])
def test_a_stage_that_cannot_be_read_is_named(text):
    with pytest.raises(UserError, match="stages must be like 2:25"):
        JobConfig(stages=(text,))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train_per_class": 0}, "train_per_class must be at least 1"),
        ({"validation": 1.0, "dataset": "cifar10"}, "validation must lie in"),
        ({"workers": -1}, "workers must not be negative"),
        ({"stages": ("2:3",)}, "stages must end at time_steps 5"),
    ],
)
def test_a_configuration_out_of_range_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        JobConfig(**options)


def test_the_same_seed_makes_the_same_network():
    from types import SimpleNamespace

    import torch

    data = SimpleNamespace(channels=2, num_classes=10, size=24)
    one, two, other = (make_network(JobConfig(seed=seed), data).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["readout.weight"], other["readout.weight"])
