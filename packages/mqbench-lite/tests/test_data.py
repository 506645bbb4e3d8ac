import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from core_utils.data import DataError, fashion_mnist_small
from mqbench_lite.data import FASHION_MNIST, ImageFiles, Preprocessing, samples, some
from mqbench_lite.errors import MQBenchError


def test_the_embedded_images_are_normalised_as_published():
    data, split = samples(None, "test", FASHION_MNIST), fashion_mnist_small()
    image, label = data[7]
    assert (len(data), tuple(image.shape), int(label)) == (2000, (1, 28, 28), int(split.y_test[7]))
    expected = (split.x_test[7].astype(np.float64) / 255 - 0.286) / 0.353
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


def test_idx_files_are_read_as_the_embedded_ones_are(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("t10k", 3)):
        pixels, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8)
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    data = samples(tmp_path, "test", FASHION_MNIST)
    assert (len(data), [int(label) for _, label in data]) == (3, [0, 1, 2])
    np.testing.assert_allclose(data[2][0][0], (pixels[2] / 255 - 0.286) / 0.353, atol=1e-6)


def test_a_folder_like_imagenets_gives_central_crops_by_class(tmp_path):
    for part in ("train", "val"):
        for number, name in enumerate(("n01", "n02")):
            (tmp_path / part / name).mkdir(parents=True)
            pixels = np.zeros((20, 40, 3), np.uint8)
            pixels[:, 15:25] = [255, 0, 0]  # the centre is red
            Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    seen = Preprocessing(size=8, resize=20, mean=(0.0,) * 3, std=(1.0,) * 3)
    data = samples(tmp_path, "test", seen)
    assert isinstance(data, ImageFiles)
    image, label = data[1]
    assert (tuple(image.shape), label) == ((3, 8, 8), 1)
    torch.testing.assert_close(image, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8))


def test_a_folder_of_nothing_and_images_of_another_size_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no folder val or test"):
        samples(tmp_path, "test", FASHION_MNIST)
    with pytest.raises(DataError, match="images of 28x28 do not fit a network for 224 pixels"):
        samples(None, "train", Preprocessing())


def test_calibration_images_are_drawn_by_the_seed_without_replacement():
    data = samples(None, "train", FASHION_MNIST)
    drawn = [torch.cat([images for images, _ in some(data, 100, 32, seed)]) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(torch.unique(drawn[0].flatten(1), dim=0)) == 100
    with pytest.raises(MQBenchError, match="9000 calibration images were asked for, there are 8000"):
        some(data, 9000, 32, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": 9, "resize": 8}, "size 9 must lie in 1 to resize, 8"), ({"mean": (0.5, 0.5)}, "1 or 3 values each")],
)
def test_preprocessing_that_means_nothing_is_refused(options, words):
    with pytest.raises(MQBenchError, match=words):
        Preprocessing(**options)
