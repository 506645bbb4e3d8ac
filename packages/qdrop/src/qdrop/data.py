"""Samples to calibrate on and to evaluate on: embedded, from folders of images, from arrays and IDX files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Subset

from core_utils.data import DataError, class_folder, fashion_mnist_small, idx_folder, read_image
from core_utils.training import Loader
from qdrop.errors import CalibrationError
from qdrop.preprocessing import Preprocessing, shorter_side

Part = Literal["train", "test"]
"""Which part of a data set that has both: models are calibrated on the training part and evaluated on the test part."""

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
FOLDERS: dict[Part, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test")}
"""Where ImageNet and its like keep the parts."""

PHOTOGRAPHS = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
"""Photographs in the wheels of scikit-image and scikit-learn."""


@runtime_checkable
class Samples(Protocol):
    """Samples by number: (input, label), or the input alone where there are no labels."""

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Samples in memory.

    Attributes:
        x: inputs as the model takes them, [n, ...].
        y: labels, int64 [n], or None.
    """

    x: Tensor
    y: Tensor | None

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.y is not None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] if self.y is None else (self.x[index], self.y[index])


@dataclass(frozen=True, eq=False)
class ImageSamples:
    """Image files, read when they are asked for: float32 [C, size, size].

    Attributes:
        paths: the files.
        labels: int64 [n], or None.
        preprocessing: scale, crop and normalisation.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray | None
    preprocessing: Preprocessing

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image = torch.from_numpy(self.preprocessing.image(read_image(self.paths[index])))
        return image if self.labels is None else (image, int(self.labels[index]))


def samples(source: str, part: Part, preprocessing: Preprocessing) -> Samples:
    """Opens a data set.

    Args:
        source: `fashion-mnist` (embedded); an `.npz` file with an array `x` (or the first array) as the model takes it
            and labels `y` if there are any; a folder of IDX files; or a folder of images, flat, by class, or with the
            two parts `train` and `val` by class. Pictures are only scaled, cropped and normalised, never augmented.
        part: which part of a data set that has both.
        preprocessing: of images; arrays are taken as they are.

    Raises:
        DataError: there is nothing of the kind, or it cannot be read; the message names the file.
    """
    path = Path(source)
    if source == "fashion-mnist":
        return _idx(fashion_mnist_small(), part, preprocessing, source)
    if path.suffix == ".npz":
        return _arrays(path)
    if not path.is_dir():
        raise DataError(f"{source} does not exist", "name a folder, an .npz file, or fashion-mnist")
    if any(path.glob("*-images-idx3-ubyte*")):
        return _idx(idx_folder(path), part, preprocessing, source)
    return _images(path, part, preprocessing)


def batches(data: Samples, batch_size: int, *, count: int | None = None, seed: int = 0, workers: int = 0) -> Loader:
    """Batches of a data set in order, or of some samples drawn from it without replacement.

    Args:
        data: the data set.
        batch_size: samples in a batch; the last one may be smaller.
        count: draw so many; None takes all in order.
        seed: decides which are drawn.
        workers: loading processes; their number changes nothing but speed.

    Raises:
        CalibrationError: there are fewer samples.
    """
    order = np.arange(len(data))
    if count is not None:
        if not 1 <= count <= len(data):
            raise CalibrationError(f"{count} samples were asked for, the data set has {len(data)}")
        order = np.random.default_rng(seed).permutation(len(data))[:count]
    return Loader(Subset(data, order.tolist()), batch_size, shuffle=False, workers=workers)  # type: ignore[arg-type]


def photographs(
    size: int = 224, *, mean: Sequence[float] = (127 / 255,) * 3, deviation: Sequence[float] = (128 / 255,) * 3
) -> Float[Tensor, "n 3 {size} {size}"]:
    """21 crops of 7 photographs, for experiments without a download.

    The first 7 are the usual central crops, chelsea (a cat) and coffee (an espresso) first; then the start and the end
    of every photograph's longer side at a scale of its own.

    Args:
        size: height and width, pixels.
        mean: of each channel, as a fraction of 255; by default EfficientNet-Lite's.
        deviation: of each channel, likewise.

    Raises:
        DataError: scikit-image or scikit-learn is not installed, or has no such file.
    """
    normal = Preprocessing(size, round(size * 8 / 7), tuple(mean), tuple(deviation))
    pictures = [read_image(_in_wheel(*place)) for place in PHOTOGRAPHS]
    crops = [normal.image(picture) for picture in pictures]
    for end in (0, 1):
        for index, picture in enumerate(pictures):
            scaled = shorter_side(picture, size + 16 * (index + 1))
            top, left = (end * (length - size) for length in scaled.shape[:2])
            crops.append(normal.normalised(scaled[top : top + size, left : left + size]))
    return torch.from_numpy(np.stack(crops))


def _idx(split: Any, part: Part, preprocessing: Preprocessing, source: str) -> ArraySamples:
    """Grey images; a model of three channels gets the grey in each."""
    x, y = (getattr(split, f"{axis}_{part}") for axis in "xy")
    if preprocessing.resize != preprocessing.size or x.shape[1:] != (preprocessing.size,) * 2:
        size = f"{preprocessing.size} (shorter side {preprocessing.resize})"
        raise DataError(
            f"images of {source} are {x.shape[1]}x{x.shape[2]}, the model is fed {size}",
            f"set size and resize to {x.shape[1]}, or give images as files",
        )
    pixels = torch.tensor(x, dtype=torch.float32)[:, None].expand(-1, preprocessing.channels, -1, -1) / 255
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.deviation)
    )
    return ArraySamples((pixels - mean) / deviation, torch.from_numpy(y))


def _arrays(file: Path) -> ArraySamples:
    try:
        with file.open("rb") as content:
            archive = np.load(content, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile) or not archive.files:
                raise DataError(f"{file} holds no array", "save it by numpy.savez")
            x = archive["x" if "x" in archive.files else archive.files[0]]
            y = archive["y"] if "y" in archive.files else None
    except FileNotFoundError:
        raise DataError(f"{file} does not exist") from None
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read: {error}", "it is damaged, or holds more than plain arrays") from None
    if x.ndim < 2 or len(x) == 0 or x.dtype.kind not in "fi":
        shape = f"{x.dtype} of shape {list(x.shape)}"
        raise DataError(
            f"{file}: x is {shape}", "give samples along the first axis as the model takes them, normalised"
        )
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iu"):
        raise DataError(f"{file}: y is {y.dtype} of shape {list(y.shape)}", f"give {len(x)} whole numbers")
    inputs = torch.from_numpy(np.ascontiguousarray(x, np.float32 if x.dtype.kind == "f" else np.int64))
    return ArraySamples(inputs, None if y is None else torch.from_numpy(y.astype(np.int64)))


def _images(folder: Path, part: Part, preprocessing: Preprocessing) -> ImageSamples:
    if all(any((folder / name).is_dir() for name in names) for names in FOLDERS.values()):
        folder = next(folder / name for name in FOLDERS[part] if (folder / name).is_dir())
    flat = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES))
    if flat:
        return ImageSamples(flat, None, preprocessing)
    listed = class_folder(folder, IMAGES, "image")
    return ImageSamples(listed.paths, listed.labels, preprocessing)


def _in_wheel(package: str, name: str) -> Path:
    """A file of an installed package; asking scikit-image itself might download it."""
    from importlib.util import find_spec

    spec = find_spec(package)
    file = Path(spec.origin).parent / name if spec is not None and spec.origin is not None else None
    if file is None or not file.is_file():
        raise DataError(f"the photographs need {name} of {package}", 'pip install "qdrop[lite0]"')
    return file
