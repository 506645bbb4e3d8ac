"""Samples from wherever they lie."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from core_utils.data import DataError, fashion_mnist_small
from qdrop import miniature
from qdrop.data import batches, photographs, samples
from qdrop.errors import CalibrationError, QDropError
from qdrop.preprocessing import FASHION_MNIST, IMAGENET, Preprocessing, central_crop

SMALL = Preprocessing(8, 10)


def picture(file, colour, size=(12, 20)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def idx(file, array):
    file.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_the_embedded_images_are_what_the_miniature_sees():
    for part, pixels in (("train", fashion_mnist_small().x_train), ("test", fashion_mnist_small().x_test)):
        data = samples("fashion-mnist", part, FASHION_MNIST)
        assert data.labelled
        assert len(data) == len(pixels)
        assert torch.allclose(torch.stack([data[i][0] for i in range(5)]), miniature.normalised(pixels[:5]), atol=1e-6)


def test_grey_images_fill_the_channels_of_a_model_that_takes_colours():
    normal = Preprocessing(28, 28, (0.0, 0.5, 0.0), (1.0, 1.0, 0.5))
    image, _ = samples("fashion-mnist", "train", normal)[0]
    assert image.shape == (3, 28, 28)
    assert torch.allclose(image[1], image[0] - 0.5)
    assert torch.allclose(image[2], image[0] * 2)


def test_grey_images_of_another_size_are_refused():
    with pytest.raises(
        DataError, match=r"images of fashion-mnist are 28x28, the model is fed 224 \(shorter side 256\)"
    ):
        samples("fashion-mnist", "train", IMAGENET)


def test_idx_files_have_a_training_and_a_test_part(tmp_path):
    for name, count in (("train", 3), ("t10k", 2)):
        idx(tmp_path / f"{name}-images-idx3-ubyte", np.full((count, 8, 8), 255, np.uint8))
        idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    normal = Preprocessing(8, 8, (0.5,), (0.25,))
    test = samples(str(tmp_path), "test", normal)
    assert (len(samples(str(tmp_path), "train", normal)), len(test)) == (3, 2)
    assert torch.equal(test[1][0], torch.full((1, 8, 8), 2.0))
    assert int(test[1][1]) == 1


def test_a_flat_folder_of_images_has_no_labels_and_skips_other_files(tmp_path):
    picture(tmp_path / "b.png", (255, 0, 0))
    picture(tmp_path / "a.jpg", (0, 0, 0))
    (tmp_path / "notes.txt").write_text("no image")
    data = samples(str(tmp_path), "train", SMALL)
    assert [path.name for path in data.paths] == ["a.jpg", "b.png"]
    assert not data.labelled
    red = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.deviation)
    assert torch.allclose(data[1], red.view(3, 1, 1).expand(3, 8, 8), atol=1e-6)


def test_images_by_class_have_the_classes_numbers_for_labels(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        picture(tmp_path / name, (9, 9, 9))
    data = samples(str(tmp_path), "test", SMALL)
    assert [data[i][1] for i in range(3)] == [0, 0, 1]


def test_a_folder_with_parts_gives_the_training_part_or_the_validation_part(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png"):
        picture(tmp_path / name, (9, 9, 9))
    assert (len(samples(str(tmp_path), "train", SMALL)), len(samples(str(tmp_path), "test", SMALL))) == (2, 1)


def test_arrays_are_taken_as_they_are(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(4, 2, 3)), np.array([3, 1, 2, 0], np.int32)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    np.savez(tmp_path / "one.npz", tokens=np.arange(8).reshape(4, 2))
    both, one = (samples(str(tmp_path / name), "train", IMAGENET) for name in ("both.npz", "one.npz"))
    assert both[1][0].dtype == torch.float32
    assert torch.allclose(both[1][0].double(), torch.from_numpy(x[1]))
    assert int(both[0][1]) == 3
    assert one[3].tolist() == [6, 7]
    assert not one.labelled


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "holds no array"),
        ({"x": np.zeros((4, 2), np.uint8)}, "x is uint8 of shape"),
        ({"x": np.zeros(4)}, r"x is float64 of shape \[4\]"),
        ({"x": np.zeros((0, 3))}, r"x is float64 of shape \[0, 3\]"),
        ({"x": np.zeros((4, 3)), "y": np.zeros(3, int)}, r"y is int64 of shape \[3\] \(give 4 whole numbers\)"),
        ({"x": np.zeros((4, 3)), "y": np.zeros(4)}, "y is float64"),
        ({"x": np.array([["a"], [None]], object)}, "cannot be read"),
    ],
)
def test_arrays_that_no_model_takes_are_refused(tmp_path, arrays, complaint):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=complaint):
        samples(str(tmp_path / "a.npz"), "train", IMAGENET)


def test_a_damaged_or_missing_source_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", x=np.zeros((4, 3)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/1.png").write_bytes(b"no image")
    for name, complaint in (
        ("cut.npz", "cut.npz cannot be read"),
        ("none.npz", "none.npz does not exist"),
        ("none", "none does not exist"),
        ("empty", "empty is empty"),
    ):
        with pytest.raises(DataError, match=complaint):
            samples(str(tmp_path / name), "train", IMAGENET)
    with pytest.raises(DataError, match=r"1.png is missing, damaged or no image"):
        samples(str(tmp_path / "broken"), "train", IMAGENET)[0]


def test_batches_hold_all_samples_in_order_or_a_draw_of_some(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(10.0)[:, None])
    data = samples(str(tmp_path / "a.npz"), "train", IMAGENET)
    assert [batch.flatten().tolist() for batch in batches(data, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    drawn = [torch.cat(list(batches(data, 4, count=6, seed=seed))).flatten().tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 6
    for count in (0, 11):
        with pytest.raises(CalibrationError, match=f"{count} samples were asked for, the data set has 10"):
            batches(data, 4, count=count)


def test_the_central_crop_is_what_torchvision_makes_of_a_picture():
    from torchvision.transforms import functional

    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    resized = functional.resize(Image.fromarray(pixels), 24)
    expected = np.asarray(functional.center_crop(resized, 16))
    assert np.array_equal(central_crop(pixels, 16, 24), expected)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"size": 224, "resize": 200}, "resize must be at least size"),
        ({"mean": (0.5,)}, "mean and std take 1 or 3 values each, got 1 and 3"),
        ({"deviation": (0.1, 0.0, 0.1)}, "std must be positive"),
    ],
)
def test_a_preprocessing_that_makes_no_image_is_refused(settings, complaint):
    with pytest.raises(QDropError, match=complaint):
        Preprocessing(**settings)


def test_photographs_are_crops_of_real_pictures():
    crops = photographs(64)
    assert crops.shape == (21, 3, 64, 64)
    assert all(float(crop.std()) > 0.15 for crop in crops)
    assert len({crop.numpy().tobytes() for crop in crops}) == 21
    assert float(crops.min()) >= -127 / 128
    assert float(crops.max()) <= 1.0
