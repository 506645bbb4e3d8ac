"""What becomes of an image before a model sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdrop.errors import QDropError


@dataclass(frozen=True)
class Preprocessing:
    """Scale the shorter side, crop the centre, subtract the mean, divide by the deviation. The defaults are ImageNet's.

    Attributes:
        size: height and width that the model sees, pixels.
        resize: length of the shorter side before the crop, pixels.
        mean: of each channel, as a fraction of 255; as many as the model has channels, 1 or 3.
        deviation: of each channel, likewise.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1 or self.resize < self.size:
            raise QDropError(f"resize must be at least size, and size at least 1, got {self.resize} and {self.size}")
        if len(self.mean) != len(self.deviation) or len(self.mean) not in (1, 3):
            raise QDropError(f"mean and std take 1 or 3 values each, got {len(self.mean)} and {len(self.deviation)}")
        if not all(value > 0 for value in self.deviation):
            raise QDropError(f"std must be positive, got {' '.join(map(str, self.deviation))}")

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colours."""
        return len(self.mean)

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """One picture.

        Args:
            pixels: uint8 [height, width, 3].

        Returns:
            float32 [channels, size, size].
        """
        return self.normalised(central_crop(pixels, self.size, self.resize))

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """A picture of the right size: uint8 [h, w, 3] to float32 [channels, h, w]; grey is the mean of the colours."""
        values = pixels if self.channels == 3 else pixels.mean(-1, keepdims=True)
        mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
        return np.ascontiguousarray(((values / np.float32(255) - mean) / deviation).transpose(2, 0, 1), np.float32)


IMAGENET = Preprocessing()
FASHION_MNIST = Preprocessing(28, 28, (0.286,), (0.353,))


def central_crop(pixels: np.ndarray, size: int, resize: int) -> np.ndarray:
    """The centre of a picture whose shorter side is scaled to `resize`, as torchvision scales it.

    Args:
        pixels: uint8 [height, width, 3].
        size: height and width of the result, pixels.
        resize: length of the shorter side, pixels.

    Returns:
        uint8 [size, size, 3].
    """
    scaled = shorter_side(pixels, resize)
    top, left = (round((length - size) / 2) for length in scaled.shape[:2])
    return scaled[top : top + size, left : left + size]


def shorter_side(pixels: np.ndarray, length: int) -> np.ndarray:
    """A picture scaled, bilinear with antialiasing, until its shorter side is `length` pixels."""
    from PIL import Image

    height, width, _ = pixels.shape
    rows, columns = (length * each // min(height, width) for each in (height, width))
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR))
