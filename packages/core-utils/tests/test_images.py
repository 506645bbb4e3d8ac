"""Images for training: CIFAR, ImageNet, and what their items go through."""

import numpy as np
import pytest

from core_utils.data import DataError
from core_utils.images import (
    CropAndFlip,
    RandomResizedCrop,
    central_crop,
    cifar,
    imagenet,
    normalised,
    random_box,
)

pytest.importorskip("PIL")
torch = pytest.importorskip("torch")


def loader(dataset, *arguments, **options):
    from core_utils.training import Loader

    return Loader(dataset, *arguments, **options)


def test_a_crop_is_a_window_of_the_image_in_a_black_frame():
    image = np.arange(2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4) + 1
    framed = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    framed[0, framed[0] == 0], framed[1, framed[1] == 0] = -1, -2
    windows = {
        framed[:, y : y + 4, x : x + 4][..., ::step].tobytes() for y in range(3) for x in range(3) for step in (1, -1)
    }
    crops = {
        CropAndFlip((-1.0, -2.0), padding=1)((image, 3), np.random.default_rng(seed))[0].tobytes()
        for seed in range(300)
    }
    assert crops == windows
    assert len(windows) == 18


def test_random_boxes_keep_area_and_shape():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(300, 400, rng) for _ in range(500)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 400
    assert bottom.max() <= 300
    assert 0.07 < (width * height / 120_000).min() < 0.12
    assert (width * height / 120_000).max() > 0.85
    assert 0.73 < (width / height).min() < 0.8
    assert 1.25 < (width / height).max() < 1.36


def test_an_image_too_narrow_for_a_random_box_gives_its_centre():
    assert random_box(1000, 3, np.random.default_rng(0)) == (0, 498, 3, 502)


def test_a_resized_crop_of_one_colour_is_that_colour():
    image = np.full((30, 40, 3), (255, 0, 51), np.uint8)
    crop, label = RandomResizedCrop((0.5, 0.5, 0.5), (0.5, 0.25, 1.0), size=8)((image, 2), np.random.default_rng(0))
    assert crop.dtype == np.float32
    assert label == 2
    np.testing.assert_allclose(crop, np.broadcast_to(np.array([1, -2, -0.3])[:, None, None], (3, 8, 8)), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 32), (40, 16)])
def test_the_central_crop_is_of_the_scaled_image(shape):
    """Of an image that already has the right shorter side, 8/7 of 14, it is a cut."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = (shape[0] - 14) // 2, (shape[1] - 14) // 2
    np.testing.assert_array_equal(central_crop(image, 14), image[top : top + 14, left : left + 14])


def write_cifar10(folder, images, labels):
    rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], axis=1)
    for number, part in enumerate(np.split(rows[:-10], 5), start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(rows[-10:].tobytes())


@pytest.fixture
def cifar_batches(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (110, 3, 32, 32), dtype=np.uint8)
    labels = np.tile(np.arange(10), 11)
    write_cifar10(tmp_path, images, labels)
    return tmp_path, images, labels


def test_cifar_is_normalised_and_held_out_from_training(cifar_batches):
    folder, images, labels = cifar_batches
    sets = cifar(folder, validation=0.2, seed=1)
    held = sets.split["validation"]
    kept = np.setdiff1d(np.arange(100), held)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (80, 20, 10)
    assert np.bincount(labels[held]).tolist() == [2] * 10
    mean = np.array([0.4914, 0.4822, 0.4465])[:, None, None]
    deviation = np.array([0.2023, 0.1994, 0.2010])[:, None, None]
    for part, indices in ((sets.train, kept), (sets.validation, held), (sets.test, range(100, 110))):
        for index, source in enumerate(indices):
            image, label = part[index]
            np.testing.assert_allclose(image, (images[source] / 255 - mean) / deviation, atol=1e-5)
            assert image.dtype == np.float32
            assert label == labels[source]
    assert (sets.num_classes, sets.channels, sets.size) == (10, 3, 32)
    np.testing.assert_allclose(sets.augment.black, (-mean / deviation).ravel(), rtol=1e-6)


def test_cifar_in_a_loader(cifar_batches):
    sets = cifar(cifar_batches[0])
    images, labels = next(iter(loader(sets.train, 6, transform=sets.augment)))
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_cifar_100_has_its_own_normalisation(tmp_path):
    rows = np.zeros((200, 3074), np.uint8)
    rows[:, 1] = np.tile(np.arange(100), 2)
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(rows.tobytes())
    sets = cifar(tmp_path, validation=0.5)
    assert (sets.num_classes, len(sets.train), len(sets.validation)) == (100, 100, 100)
    np.testing.assert_allclose(
        sets.test[0][0][:, 0, 0], [-0.5071 / 0.2675, -0.4867 / 0.2565, -0.4408 / 0.2761], rtol=1e-5
    )


def test_a_cifar_class_without_training_images_is_named(tmp_path):
    images, labels = np.zeros((60, 3, 32, 32), np.uint8), np.arange(60) % 5
    labels[-1] = 7
    write_cifar10(tmp_path, images, labels)
    with pytest.raises(DataError, match="class 5 has no training item"):
        cifar(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 256, (20, 16 + number, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{name}_{number}.png")
    return tmp_path


def test_imagenet_has_crops_of_one_size(pictures):
    sets = imagenet(pictures, size=14, validation=0.25, seed=0)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (6, 2, 4)
    assert (sets.num_classes, sets.channels, sets.size) == (2, 3, 14)
    assert [name.split("/")[:2] for name in sets.split["validation"]] == [
        ["train", "n01440764"],
        ["train", "n01443537"],
    ]
    assert [sets.test[index][1] for index in range(4)] == [0, 0, 1, 1]
    from PIL import Image

    pixels = np.asarray(Image.open(pictures / "val" / "n01440764" / "n01440764_0.png"))  # 20 x 16, 8/7 of 14 wide
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    np.testing.assert_array_equal(sets.test[0][0], normalised(pixels[3:17, 1:15], mean, deviation))
    images, labels = next(iter(loader(sets.train, 6, transform=sets.augment)))
    assert images.shape == (6, 3, 14, 14)
    assert images.dtype == torch.float32
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    again, _ = next(iter(loader(sets.train, 6, transform=sets.augment, workers=1)))
    assert torch.equal(images, again)


def test_a_class_that_is_missing_from_train_or_val_is_named(pictures):
    (pictures / "val" / "n01440764").rename(pictures / "val" / "n99")
    with pytest.raises(DataError, match="val has no class folder n01440764"):
        imagenet(pictures)
