"""Data in their published layouts, on small folders that these tests write."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from core_utils.training import Loader
from snasnet.datasets import CIFAR_NORMAL, IMAGENET_NORMAL, load_data
from snasnet.samples import central_part
from snasnet.specs import DatasetSpec


def write_image(path, colour, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, quality=95)


def write_cifar10(folder, per_class=10):
    """The binary version: a label byte and 3072 pixels a row; every pixel of a row is 20 times its label."""
    folder.mkdir()
    for number in range(1, 6):
        labels = np.repeat(np.arange(10, dtype=np.uint8), per_class // 5)
        rows = np.column_stack([labels, np.repeat(20 * labels[:, None], 3072, axis=1)])
        (folder / f"data_batch_{number}.bin").write_bytes(rows.tobytes())
    (folder / "test_batch.bin").write_bytes(rows[::2].tobytes())
    return folder


def write_tiny(folder, rearranged):
    for label, name in enumerate(("n01", "n02")):
        for number in range(4):
            write_image(folder / f"train/{name}/images/{name}_{number}.JPEG", (100 * label, 0, 0))
    lines = []
    for number, name in enumerate(("n02", "n01", "n02")):
        where = f"val/{name}/images" if rearranged else "val/images"
        write_image(folder / where / f"val_{number}.JPEG", (100 * (name == "n02"), 0, 0))
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n")
    if not rearranged:
        (folder / "val/val_annotations.txt").write_text("".join(lines))
    return folder


def write_recordings(folder, count=20):
    """AEDAT 2.0: recording k of a class holds brighter events at (6 k, 4), one a millisecond."""
    for name in ("frog", "ship"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            content = b"#!AER-DAT2.0\r\n"
            for time in range(9 + number):
                content += struct.pack(">II", (127 - 6 * number) << 8 | (127 - 4) << 1, 1000 * time)
            (folder / name / f"cifar10_{name}_{number}.aedat").write_bytes(content)
    return folder


def labels_of(part):
    return [int(part[index][1]) for index in range(len(part))]


def test_digits_are_normal_and_split_by_class():
    data = load_data("digits")
    assert data.spec == DatasetSpec(1, 8, 10)
    assert abs(float(data.train.columns[0].mean())) < 0.05
    held, trained = np.bincount(labels_of(data.validation)), np.bincount(labels_of(data.train))
    assert (held == np.round((held + trained) / 10)).all()
    assert len(data.train) + held.sum() == 1437
    assert len(data.test) == 360
    other = load_data("digits", seed=1)
    assert not torch.equal(other.validation.columns[0], data.validation.columns[0])
    assert torch.equal(other.test.columns[0], data.test.columns[0])


def test_the_batch_is_of_training_samples_each_once():
    data = load_data("digits")
    batch = data.batch(20, 3)
    assert torch.equal(batch, data.batch(20, 3))
    train = {image.numpy().tobytes() for image in data.train.columns[0]}
    assert {image.numpy().tobytes() for image in batch} <= train
    assert len({image.numpy().tobytes() for image in batch}) == 20
    with pytest.raises(ValueError, match=r"--batch must lie in 2\.\.\d+, the number of training images, got 5000"):
        data.batch(5000, 0)


def test_cifar_is_normalised_held_out_and_augmented(tmp_path):
    data = load_data("cifar10", write_cifar10(tmp_path / "cifar"))
    assert data.spec == DatasetSpec(3, 32, 10)
    assert sorted(labels_of(data.validation)) == list(range(10))
    assert (len(data.train), len(data.test)) == (90, 10)
    image, label = data.test[7]
    expected = (20 * label / 255 - np.array(CIFAR_NORMAL[10][0])) / CIFAR_NORMAL[10][1]
    np.testing.assert_allclose(image, np.broadcast_to(expected[:, None, None], (3, 32, 32)), rtol=1e-5)
    black = -(np.array(CIFAR_NORMAL[10][0]) / CIFAR_NORMAL[10][1]).astype(np.float32)[:, None, None]
    shifted = [(np.abs(image.numpy() - black) < 1e-6).all(0).any() for image in data.batch(60, 0)]
    assert 0.5 < np.mean(shifted) <= 1  # most crops reach into the black frame
    with pytest.raises(ValueError, match=r"has 10 classes .dataset cifar100 has 100"):
        load_data("cifar100", tmp_path / "cifar")


@pytest.mark.parametrize("rearranged", [False, True])
def test_tinyimagenet_is_read_in_both_layouts(tmp_path, rearranged):
    data = load_data("tinyimagenet", write_tiny(tmp_path / "tiny", rearranged))
    assert data.spec == DatasetSpec(3, 64, 2)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 3)
    assert sorted(labels_of(data.test)) == [0, 1, 1]
    red = [(0 - IMAGENET_NORMAL[0][0], 100 / 255 - IMAGENET_NORMAL[0][0])[label] for label in labels_of(data.test)]
    found = [data.test[index][0][0].mean() * IMAGENET_NORMAL[1][0] for index in range(3)]
    np.testing.assert_allclose(found, red, atol=0.01)
    assert data.augment.padding == 8


def test_annotations_that_lead_astray_are_refused(tmp_path):
    folder = write_tiny(tmp_path / "tiny", rearranged=False)
    annotations = folder / "val/val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn03\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt, line 1: no class 'n03' in train"):
        load_data("tinyimagenet", folder)
    annotations.write_text("../../../secret.JPEG\tn01\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match="lies outside"):
        load_data("tinyimagenet", folder)
    annotations.write_text("")
    with pytest.raises(ValueError, match="names no image"):
        load_data("tinyimagenet", folder)


def test_image_folders_keep_their_size_or_are_scaled(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
            for number in range(count):
                write_image(tmp_path / part / name / f"{number}.png", colour, (24, 16))
    data = load_data("images", tmp_path)
    assert data.spec == DatasetSpec(3, (16, 24), 2)
    assert data.test[1][0].shape == (3, 16, 24)
    scaled = load_data("images", tmp_path, image_size=8)
    assert scaled.spec == DatasetSpec(3, 8, 2)
    assert scaled.test[1][0].shape == (3, 8, 8)
    write_image(tmp_path / "test/a/0.png", (0, 0, 0), (8, 8))
    with pytest.raises(ValueError, match=r"0.png has 8 x 8 pixels, others 16 x 24 .set image_size"):
        data.test[0]
    (tmp_path / "test/b").rename(tmp_path / "test/c")
    with pytest.raises(ValueError, match="class b is in only one of train and test"):
        load_data("images", tmp_path)


def test_the_central_part_is_the_centre_of_the_scaled_image():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 15:25] = 255
    part = central_part(image, (10, 10))
    assert part.shape == (10, 10, 3)
    assert part[:, 4:6].min() == 255
    assert part[:, 0].max() < 128


def test_recordings_become_frames_of_their_first_nine_tenths(tmp_path):
    data = load_data("events", write_recordings(tmp_path / "dvs"), time_steps=3, image_size=16)
    assert data.spec == DatasetSpec(2, 16, 2)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 4, 4)
    frames, label = data.test[3]  # recording 19 of the ship, at (114, 4): (14.25, 0.5) of 16
    assert (frames.shape, frames.dtype, label) == ((3, 2, 16, 16), np.float32, 1)
    assert not frames[:, 0].any()
    assert np.unravel_index(frames[0, 1].argmax(), (16, 16)) == (0, 14)
    assert data.batch(6, 0).shape == (3, 6, 2, 16, 16)
    images, labels = next(iter(Loader(data.train, 4)))
    assert (images.shape, len(labels)) == ((4, 3, 2, 16, 16), 4)
    with pytest.raises(ValueError, match=r"cifar10_frog_\d+.aedat: .*pixel|outside"):
        load_data("events", tmp_path / "dvs", time_steps=3, sensor=(64, 64))
    with pytest.raises(ValueError, match="too few"):
        load_data("events", write_recordings(tmp_path / "few", 1))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"name": "mnist"}, "dataset must be one of digits, fashion, cifar10"),
        ({"name": "cifar10"}, "dataset cifar10 needs its folder"),
        ({"name": "digits", "folder": "x"}, "the digits are embedded"),
        ({"name": "fashion", "image_size": 8}, "image_size must be at least 1, and is for images and events only"),
    ],
)
def test_data_that_cannot_be_are_named(words, complaint, tmp_path):
    if "folder" in words:
        words = {**words, "folder": tmp_path}
    with pytest.raises(ValueError, match=complaint):
        load_data(**words)


def test_a_class_of_one_image_holds_nothing_out(tmp_path):
    for part in ("train", "test"):
        write_image(tmp_path / part / "a/0.png", (0, 0, 0), (8, 8))
    with pytest.raises(ValueError, match="class 0 has 1 items, too few to hold out 10%"):
        load_data("images", tmp_path)
