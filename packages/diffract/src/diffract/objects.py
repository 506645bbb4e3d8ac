"""Objects: small images in, amplitudes on the grid out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from core_utils.data import LARGEST_IMAGE, DataError, digits, idx_folder
from diffract.errors import ShapeError
from diffract.grids import Grid

Images: TypeAlias = Float[np.ndarray, "_ h w"]
VALIDATION = 6
"""One in so many training images, the last ones, is held out (10,000 of MNIST's 60,000)."""
_PICTURES = {".png", ".tif", ".tiff"}


@dataclass(frozen=True, eq=False)
class Objects:
    """Images in [0, 1], float32, of one size.

    Attributes:
        train: [n, h, w].
        validation: held out of the published training part.
        test: of the published test part; never looked at in training.
    """

    train: Images
    validation: Images
    test: Images


def load_objects(source: Path | None = None) -> Objects:
    """Reads objects, or takes scikit-learn's digits (8 x 8).

    Args:
        source: a folder with MNIST's IDX files or with PNG or TIFF images, a .npy file [n, h, w], or a .npz file with
            `x_train` and `x_test`. Where there is no test part, one in five images is.

    Raises:
        DataError: a file that is missing, damaged, or of another form; names it.
    """
    if source is None:
        split = digits()
        return _parted(split.x_train / np.float32(16), split.x_test / np.float32(16))
    if source.is_dir():
        if any(source.glob("train-images-idx3-ubyte*")):
            split = idx_folder(source)
            return _parted(_unit(split.x_train, source), _unit(split.x_test, source))
        return _cut(_pictures(source))
    if source.suffix not in (".npy", ".npz"):
        raise DataError(f"--data {source} is neither a folder nor a .npy or .npz file")
    try:
        content = np.load(source, allow_pickle=False)
        if source.suffix == ".npy":
            return _cut(_unit(content, source))
        return _parted(*(_unit(content[part], source) for part in ("x_train", "x_test")))
    except KeyError as error:
        raise DataError(f"{source} holds no array {error}", "it needs x_train and x_test") from None
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source} cannot be read: {error}") from None


def placed(images: Float[np.ndarray, "n h w"], grid: Grid, side: int) -> Float[np.ndarray, "n H W"]:
    """Images scaled bilinearly so that their longer side has `side` pixels, in the middle of the grid.

    Images of the grid's own shape stay as they are.
    """
    n, h, w = images.shape
    if (h, w) == grid.shape:
        return np.asarray(images, np.float32)
    scale = side / max(h, w)
    target = tuple(max(1, round(scale * each)) for each in (h, w))
    if target[0] > grid.shape[0] or target[1] > grid.shape[1]:
        raise ShapeError(f"objects of {target} pixels do not fit into a grid of {grid.shape}")
    rows, columns = (_bilinear(old, new) for old, new in zip((h, w), target, strict=True))
    scaled = rows @ np.asarray(images, np.float32) @ columns.T
    out = np.zeros((n, *grid.shape), np.float32)
    top, left = ((whole - part) // 2 for whole, part in zip(grid.shape, target, strict=True))
    out[:, top : top + target[0], left : left + target[1]] = scaled
    return out


def check_objects(images: Float[np.ndarray, "n h w"], *, constant: bool = False) -> None:
    """Sees that objects are amplitudes.

    Args:
        images: [n, h, w].
        constant: whether images without contrast may pass; their correlation is undefined.

    Raises:
        DataError: an image that is not finite, outside of [0, 1], or constant; names its number.
    """
    if images.ndim != 3 or not len(images):
        raise DataError(f"objects must have the shape [n, h, w] with n >= 1, got {images.shape}")
    flat = images.reshape(len(images), -1)
    low, high = flat.min(1), flat.max(1)
    checks = [(~np.isfinite(low + high), "holds NaN or infinity"), ((low < 0) | (high > 1), "leaves [0, 1]")]
    for bad, what in [*checks, ((low == high) & (not constant), "is constant: its correlation is undefined")]:
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            raise DataError(f"object {index} {what}", f"its values run from {low[index]:g} to {high[index]:g}")


def _bilinear(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Interpolation between pixel centres, as a matrix."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(place.astype(int), max(old - 2, 0))
    matrix = np.zeros((new, old), np.float32)
    matrix[np.arange(new), low] = 1 - (place - low)
    if old > 1:
        matrix[np.arange(new), low + 1] += place - low
    return matrix


def _unit(images: np.ndarray, source: Path) -> Images:
    """Integers over their type's largest value; floats as they are."""
    if images.ndim != 3:
        raise DataError(f"{source} holds an array of shape {images.shape}", "grey images [n, h, w] are needed")
    if images.dtype.kind in "ui":
        return images.astype(np.float32) / np.iinfo(images.dtype).max
    return images.astype(np.float32)


def _parted(train: Images, test: Images) -> Objects:
    held = max(1, len(train) // VALIDATION)
    for part in (train, test):
        check_objects(part, constant=True)
    if len(train) <= held:
        raise DataError(f"{len(train)} training objects are too few", "at least 2 are needed")
    return Objects(train[:-held], train[-held:], test)


def _cut(images: Images) -> Objects:
    test = max(1, len(images) // 5)
    return _parted(images[:-test], images[-test:])


def _pictures(folder: Path) -> Images:
    from PIL import Image

    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not files:
        raise DataError(f"--data {folder} holds neither IDX files nor PNG or TIFF images")
    images: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                if picture.width * picture.height > LARGEST_IMAGE:
                    raise DataError(f"{file} has {picture.width} x {picture.height} pixels, more than {LARGEST_IMAGE}")
                pixels = np.asarray(picture)
        except (OSError, SyntaxError) as error:
            raise DataError(f"{file} is damaged or no image: {error}") from None
        if pixels.ndim != 2 or (images and pixels.shape != images[0].shape):
            raise DataError(f"{file} has the shape {pixels.shape}", "grey images of one size are needed")
        images.append(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels)
    return _unit(np.stack(images), folder)
