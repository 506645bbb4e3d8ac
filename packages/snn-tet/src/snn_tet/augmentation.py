"""What training items go through: `transform(item, rng)` for a `Loader`, item by item, in NumPy.

An item is (frames or image, label). One draw belongs to one item, so all time steps of a recording move alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from snn_tet.images import Item, normalised, scaled

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Share of the image's area, and width over height, of a random resized crop (Szegedy et al. 2015)."""


@dataclass(frozen=True)
class FlipAndRoll:
    """Mirrors half of the recordings left to right and rolls all around both axes.

    Attributes:
        shift: largest roll either way in x and in y, pixels; whole and uniform.

    Reference: arXiv 2202.11946, released code.
    """

    shift: int = 5

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        """Frames [T, 2, H, W] of the same shape."""
        frames, label = item
        if rng.random() < 0.5:
            frames = frames[..., ::-1]
        down, right = rng.integers(-self.shift, self.shift, 2, endpoint=True)
        return np.roll(frames, (down, right), axis=(-2, -1)), label


@dataclass(frozen=True)
class CropAndFlip:
    """Crops an image of the same size from one with a black frame and mirrors half of them, as CIFAR is trained on.

    Attributes:
        black: value of a black pixel in each channel, shape [C].
        padding: width of the frame, pixels.
    """

    black: tuple[float, ...]
    padding: int = 4

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        """Image [C, H, W] of the same shape."""
        image, label = item
        channels, height, width = image.shape
        framed = np.empty((channels, height + 2 * self.padding, width + 2 * self.padding), image.dtype)
        framed[:] = np.array(self.black, image.dtype)[:, None, None]
        framed[:, self.padding : self.padding + height, self.padding : self.padding + width] = image
        top, left = rng.integers(0, 2 * self.padding, 2, endpoint=True)
        crop = framed[:, top : top + height, left : left + width]
        return np.ascontiguousarray(crop[..., ::-1] if rng.random() < 0.5 else crop), label


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of an image, scaled, half of them mirrored, normalised, as ImageNet is trained on.

    Attributes:
        mean: of each channel, in [0, 1].
        deviation: standard deviation of each channel.
        size: height and width of the result, pixels.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    size: int = 224

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        """From uint8 [height, width, 3] to float32 [3, size, size]."""
        image, label = item
        left, top, right, bottom = random_box(image.shape[0], image.shape[1], rng)
        crop = scaled(image[top:bottom, left:right], (self.size, self.size))
        return normalised(crop[:, ::-1] if rng.random() < 0.5 else crop, self.mean, self.deviation), label


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part; the largest central one after ten that stick out."""
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = int(rng.integers(height - down + 1)), int(rng.integers(width - across + 1))
            return left, top, left + across, top + down
    across, down = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    top, left = (height - down) // 2, (width - across) // 2
    return left, top, left + across, top + down
