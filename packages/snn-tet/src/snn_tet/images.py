"""Images as data sets: normalised, and those of ImageNet cropped around the centre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core_utils.data import ImageFolder

Item = tuple[np.ndarray, int]
"""What a data set yields: frames or an image, and its label."""

CIFAR10_NORMAL = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_NORMAL = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET_NORMAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel."""


@dataclass(frozen=True, eq=False)
class NormalImages:
    """Small images in memory, normalised when they are asked for.

    Attributes:
        pixels: uint8 [n, C, H, W].
        labels: int64 [n].
        mean: of each channel.
        deviation: of each channel.
    """

    pixels: np.ndarray
    labels: np.ndarray
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return normalised(self.pixels[index].transpose(1, 2, 0), self.mean, self.deviation), int(self.labels[index])


@dataclass(frozen=True, eq=False)
class WholeImages:
    """Image files as they are: uint8 [height, width, 3]."""

    folder: ImageFolder
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        file = int(self.indices[index])
        return self.folder.read(file), int(self.folder.labels[file])


@dataclass(frozen=True, eq=False)
class CentralCrops(WholeImages):
    """Image files, scaled, cropped around the centre and normalised: float32 [3, size, size]."""

    size: int

    def __getitem__(self, index: int) -> Item:
        image, label = super().__getitem__(index)
        return normalised(central_crop(image, self.size), *IMAGENET_NORMAL), label


def central_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image whose shorter side is scaled to 8/7 of `size`: 256 for 224.

    Args:
        image: uint8 [height, width, 3].
        size: height and width of the result, pixels.

    Returns:
        uint8 [size, size, 3].
    """
    shorter, (height, width, _) = round(size * 8 / 7), image.shape
    rows, columns = (max(shorter, shorter * each // min(height, width)) for each in (height, width))
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    return scaled(image, (columns, rows))[top : top + size, left : left + size]


def scaled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image scaled to (width, height), bilinear with antialiasing, in 8 bits: what torchvision makes of a picture."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def normalised(image: np.ndarray, mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray:
    """(image / 255 - mean) / deviation with the channels first.

    Args:
        image: uint8 [height, width, channels].
        mean: of each channel.
        deviation: of each channel.

    Returns:
        float32 [channels, height, width].
    """
    values = (image / np.float32(255) - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
