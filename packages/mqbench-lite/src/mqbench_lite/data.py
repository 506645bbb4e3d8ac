"""Labelled images to calibrate on, to train on and to test with: embedded, from IDX files, from folders of images."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Subset

from core_utils.data import DataError, fashion_mnist_small, idx_folder, image_folder, read_image
from core_utils.training import Arrays, Loader
from mqbench_lite.errors import MQBenchError

Part = Literal["train", "test"]
FOLDERS: dict[Part, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test")}
"""Where ImageNet and its like keep the parts."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What becomes of an image file: its shorter side scaled, its centre cropped, normalised. The defaults are ImageNet's.

    Attributes:
        size: height and width that the model sees, pixels.
        resize: length of the shorter side before the crop, pixels.
        mean: of each channel, as a share of 255.
        std: standard deviation, likewise.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise MQBenchError(f"preprocessing: size {self.size} must lie in 1 to resize, {self.resize}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise MQBenchError("preprocessing: mean and std take 1 or 3 values each, and std positive ones")

    def normalised(self, pixels: np.ndarray) -> Float[Tensor, "n c h w"]:
        """Images, uint8 [n, h, w] or [n, h, w, 3], as the model sees them; grey ones fill every channel."""
        images = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
        images = images[:, None] if images.dim() == 3 else images.movedim(3, 1)
        if images.shape[1] == 3 and len(self.mean) == 1:
            images = images.mean(1, keepdim=True)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


IMAGENET = Preprocessing()
FASHION_MNIST = Preprocessing(size=28, resize=28, mean=(0.286,), std=(0.353,))


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of a folder by class, read when they are asked for: (float32 [c, size, size], class number).

    Attributes:
        paths: the files.
        labels: int64 [n].
        preprocessing: of every image.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = _central(read_image(self.paths[index]), self.preprocessing)
        return self.preprocessing.normalised(pixels[None])[0], int(self.labels[index])


@functools.lru_cache(maxsize=4)
def samples(source: Path | None, part: Part, preprocessing: Preprocessing) -> Arrays | ImageFiles:
    """Opens one part of a data set.

    Args:
        source: None for the embedded images; a folder of IDX files; a folder with `train` and `val` (or `test`), each
            with a folder of images by class, as ImageNet has them.
        part: `train` or `test`.
        preprocessing: of image files; the other two are only normalised.

    Returns:
        The part; the same object when it is asked for again.

    Raises:
        DataError: there is nothing of the kind, or it cannot be read; the message names the file.
    """
    if source is None or any(source.glob("*-images-idx3-ubyte*")):
        split = fashion_mnist_small() if source is None else idx_folder(source)
        x, y = (split.x_train, split.y_train) if part == "train" else (split.x_test, split.y_test)
        if x.shape[1:] != (preprocessing.size, preprocessing.size):
            raise DataError(f"images of {x.shape[1]}x{x.shape[2]} do not fit a network for {preprocessing.size} pixels")
        return Arrays(preprocessing.normalised(x), torch.from_numpy(y))
    folders = [source / name for name in FOLDERS[part] if (source / name).is_dir()]
    if not folders:
        raise DataError(
            f"{source} has no folder {' or '.join(FOLDERS[part])}", "lay it out as ImageNet is, or as IDX files"
        )
    listed = image_folder(folders[0])
    return ImageFiles(tuple(listed.paths), np.asarray(listed.labels, np.int64), preprocessing)


def some(data: Any, count: int, batch_size: int, seed: int) -> Loader:
    """Batches of some samples, drawn without replacement.

    Args:
        data: of `samples`.
        count: how many.
        batch_size: samples in a batch; the last one may be smaller.
        seed: decides which.

    Raises:
        MQBenchError: there are fewer.
    """
    if not 1 <= count <= len(data):
        raise MQBenchError(f"{count} calibration images were asked for, there are {len(data)}")
    chosen = np.random.default_rng([seed, 17]).permutation(len(data))[:count]
    return Loader(Subset(data, chosen.tolist()), min(batch_size, count), shuffle=False)


def _central(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The centre of a picture whose shorter side was scaled, bilinear with antialiasing: uint8 [size, size, 3]."""
    from PIL import Image

    height, width, _ = pixels.shape
    scaled = (preprocessing.resize * side // min(height, width) for side in (width, height))
    picture = np.asarray(Image.fromarray(pixels).resize(tuple(scaled), Image.Resampling.BILINEAR))
    top, left = (round((side - preprocessing.size) / 2) for side in picture.shape[:2])
    return picture[top : top + preprocessing.size, left : left + preprocessing.size]
