"""Data sets whose items are made when they are asked for, and the paper's augmentation of images.

An item is (image float32 [C, H, W] or frames float32 [T, 2, H, W], label).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from core_utils.data import DataError, read_image
from core_utils.errors import UserError
from core_utils.spiking.events import events_to_frames, read_events, resize_frames

Item = tuple[np.ndarray, int]


@runtime_checkable
class Items(Protocol):
    """A data set: a length, and items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> object: ...


@dataclass(frozen=True)
class Normal:
    """Pixels as networks see them: (pixel / 255 - mean) / deviation.

    Attributes:
        mean: of each channel, in [0, 1].
        deviation: standard deviation of each channel.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """From uint8 [C, H, W] to float32 of the same shape."""
        mean, deviation = (np.array(each, np.float32)[:, None, None] for each in (self.mean, self.deviation))
        return (pixels / np.float32(255) - mean) / deviation

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel becomes, by channel."""
        return tuple(self(np.zeros((len(self.mean), 1, 1), np.uint8)).ravel().tolist())


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images in memory.

    Attributes:
        images: uint8 [n, C, H, W].
        labels: int64 [n].
        normal: what is done to an image that is asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    normal: Normal

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return self.normal(self.images[index]), int(self.labels[index])


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files, all in colour and of one size.

    Attributes:
        paths: of the files.
        labels: int64 [n].
        normal: what is done to an image that is asked for.
        shape: height and width, pixels.
        scale: scale the shorter side to fit and take the centre; otherwise a file of another size is an error.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    normal: Normal
    shape: tuple[int, int]
    scale: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        image = read_image(self.paths[index])
        if self.scale:
            image = central_part(image, self.shape)
        elif image.shape[:2] != self.shape:
            found, wanted = (f"{height} x {width}" for height, width in (image.shape[:2], self.shape))
            raise DataError(f"{self.paths[index]} has {found} pixels, others {wanted}", "set image_size to scale all")
        return self.normal(image.transpose(2, 0, 1)), int(self.labels[index])


@dataclass(frozen=True, eq=False)
class EventFrames:
    """Recordings of an event camera as frames; each file is read whenever it is asked for.

    Events are cut into T slices of equal numbers, the rest goes to the last; counts are divided by the recording's
    largest and scaled to the wanted size with antialiasing.

    Attributes:
        paths: of the recordings.
        labels: int64 [n].
        time_steps: T.
        sensor: width and height of the camera, pixels.
        size: height and width of the frames, pixels.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    time_steps: int
    sensor: tuple[int, int]
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index]
        try:
            counts = events_to_frames(read_events(path), self.time_steps, self.sensor, by="number")
        except DataError:
            raise
        except UserError as error:
            raise DataError(f"{path}: {error.message}", error.hint) from None
        return resize_frames(counts / max(1, counts.max()), self.size, "bilinear"), int(self.labels[index])


@dataclass(frozen=True)
class CropAndFlip:
    """A crop of an image with a black frame, of the image's own size, and a flip of every second by lot.

    Attributes:
        black: value of a black pixel in each channel.
        padding: width of the frame, pixels.

    Reference: released code of arXiv 2201.10355: a frame of 4 pixels around 32 x 32, of 8 around 64 x 64.
    """

    black: tuple[float, ...]
    padding: int

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        """An image [C, H, W] of the same shape."""
        image, label = item
        height, width = image.shape[-2:]
        down, right = rng.integers(-self.padding, self.padding, 2, endpoint=True).tolist()
        moved = np.empty_like(image)
        moved[:] = np.array(self.black, image.dtype)[:, None, None]
        rows, columns = _overlap(down, height), _overlap(right, width)
        moved[:, rows[0], columns[0]] = image[:, rows[1], columns[1]]
        return np.ascontiguousarray(moved[..., ::-1] if rng.random() < 0.5 else moved), label


def central_part(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The centre of an image scaled until it just covers `shape`; bilinear with antialiasing.

    Args:
        image: uint8 [height, width, 3].
        shape: height and width of the result, pixels.
    """
    from PIL import Image

    factor = max(wanted / given for wanted, given in zip(shape, image.shape, strict=False))
    height, width = (max(wanted, round(factor * given)) for wanted, given in zip(shape, image.shape, strict=False))
    scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    return scaled[top : top + shape[0], left : left + shape[1]]


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where what is moved by `shift` lies afterwards, and where it lay."""
    kept = length - abs(shift)
    after, before = max(0, shift), max(0, -shift)
    return slice(after, after + kept), slice(before, before + kept)
