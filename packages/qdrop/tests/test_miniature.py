"""The small net, its training, and its images."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from core_utils.data import fashion_mnist_small
from qdrop import miniature
from qdrop.errors import CalibrationError


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(miniature, "EPOCHS", 1)


def test_the_net_has_the_size_that_its_description_says():
    net = miniature.ResidualNet()
    assert sum(value.numel() for value in net.parameters()) == 77_754
    sizes = [net.stem(torch.zeros(2, 1, 28, 28))]
    for block in net.blocks:
        sizes.append(block(sizes[-1]))
    assert [tuple(each.shape) for each in sizes] == [(2, 16, 14, 14), (2, 16, 14, 14), (2, 32, 7, 7), (2, 64, 4, 4)]
    assert isinstance(net.blocks[0].shortcut, torch.nn.Identity)


def test_one_epoch_learns_and_the_file_gives_the_same_net(quick, tmp_path):
    state = torch.get_rng_state()
    net = miniature.float_net(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    images, labels = miniature.evaluation_images()
    scores = net(images)
    assert (scores.argmax(1) == labels).float().mean() > 0.6  # of ten classes, after 62 steps
    file = next(tmp_path.glob("float-*.safetensors"))
    before = file.stat().st_mtime_ns
    assert torch.equal(miniature.float_net(tmp_path)(images), scores)
    assert file.stat().st_mtime_ns == before


def test_two_processes_that_ask_at_once_train_once_and_get_the_same_net(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from qdrop import miniature
folder = Path({str(tmp_path)!r})
def train(net, split, epochs):
    (folder / f"trained-{{sys.argv[1]}}").write_text("")
    time.sleep(1)
miniature._train = train
net = miniature.float_net(folder)
print(float(sum(value.double().abs().sum() for value in net.parameters())))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    sums = [process.communicate(timeout=60)[0] for process in processes]
    assert sums[0] == sums[1] != ""
    assert len(list(tmp_path.glob("trained-*"))) == 1


def test_another_recipe_is_another_file(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(miniature, "_train", lambda *_: None)
    miniature.float_net(tmp_path)
    monkeypatch.setattr(miniature, "EPOCHS", 2)
    miniature.float_net(tmp_path)
    assert len(list(tmp_path.glob("float-*.safetensors"))) == 2


@pytest.mark.slow
def test_the_float_net_is_as_accurate_as_documented(tmp_path):
    net = miniature.float_net(tmp_path)
    images, labels = miniature.evaluation_images()
    assert (net(images).argmax(1) == labels).float().mean() > 0.875  # 89.2 % measured; 2,000 images


def test_calibration_draws_are_of_the_training_part_and_decided_by_the_seed():
    drawn = miniature.calibration(3, 64)
    assert torch.equal(drawn, miniature.calibration(3, 64))
    assert not torch.equal(drawn, miniature.calibration(4, 64))
    known = {row.tobytes() for row in miniature.normalised(fashion_mnist_small().x_train).numpy()}
    rows = {row.tobytes() for row in drawn.numpy()}
    assert len(rows) == 64
    assert rows <= known


def test_calibration_may_come_from_some_classes_alone():
    split = fashion_mnist_small()
    labels = {
        row.tobytes(): y for row, y in zip(miniature.normalised(split.x_train).numpy(), split.y_train, strict=True)
    }
    drawn = miniature.calibration(0, 200, classes=(7, 8))
    assert {int(labels[row.tobytes()]) for row in drawn.numpy()} == {7, 8}


@pytest.mark.parametrize("count", [0, 1601])
def test_more_images_than_there_are_is_an_error(count):
    with pytest.raises(CalibrationError, match=f"{count} calibration images were asked for, there are 1 to 1600"):
        miniature.calibration(0, count, classes=(0, 1))


def test_images_are_normalised_to_about_zero_mean_and_unit_deviation():
    pixels = np.array([[[0, 255], [51, 102]]], np.uint8)
    expected = (torch.tensor([[[[0.0, 1.0], [0.2, 0.4]]]]) - 0.286) / 0.353
    assert torch.allclose(_normalised_of_any_size(pixels), expected)
    train = miniature.normalised(fashion_mnist_small().x_train)
    assert abs(train.mean()) < 0.01
    assert abs(train.std() - 1) < 0.01


def _normalised_of_any_size(pixels):
    padded = np.zeros((1, 28, 28), np.uint8)
    padded[:, :2, :2] = pixels
    return miniature.normalised(padded)[:, :, :2, :2]


def test_the_learning_rate_rises_then_falls():
    assert [miniature.one_cycle(share) for share in (0.0, 0.125, 0.25, 0.625, 1.0)] == pytest.approx(
        [0, 0.5, 1, 0.5, 0]
    )
