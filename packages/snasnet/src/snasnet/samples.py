"""Image files and recordings as items: (image float32 [C, H, W] or frames float32 [T, 2, H, W], label)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core_utils.data import DataError, read_image
from core_utils.errors import UserError
from core_utils.images import Item, normalised, scaled
from core_utils.spiking.events import events_to_frames, read_events, resize_frames

Normal = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, pixels in [0, 1]."""


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
        return normalised(image, *self.normal), int(self.labels[index])


def central_part(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The centre of an image scaled until it just covers `shape`; bilinear with antialiasing.

    Args:
        image: uint8 [height, width, 3].
        shape: height and width of the result, pixels.
    """
    factor = max(wanted / given for wanted, given in zip(shape, image.shape, strict=False))
    height, width = (max(wanted, round(factor * given)) for wanted, given in zip(shape, image.shape, strict=False))
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    return scaled(image, (width, height))[top : top + shape[0], left : left + shape[1]]


def recording_frames(path: Path, time_steps: int, sensor: tuple[int, int], size: int) -> np.ndarray:
    """The frames of a recording: slices of equal numbers of events, counts divided by the recording's largest.

    Args:
        path: of the recording.
        time_steps: T; what is left over goes to the last slice.
        sensor: width and height of the camera, pixels.
        size: height and width of the frames, pixels; scaled with antialiasing.

    Returns:
        float32 in [0, 1], [T, 2, size, size].

    Raises:
        DataError: the file cannot be read, or holds too few events or such outside the sensor; names it.
    """
    try:
        counts = events_to_frames(read_events(path), time_steps, sensor, by="number")
    except DataError:
        raise
    except UserError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from None
    return resize_frames(counts / max(1, counts.max()), size, "bilinear")
