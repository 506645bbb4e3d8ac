"""Small real data with no download, and readers of the common on-disk formats, as NumPy arrays."""

from __future__ import annotations

import codecs
import gzip
import importlib.util
import io
import lzma
import math
import pickle
import re
import struct
import warnings
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from core_utils.errors import UserError

LARGEST_IMAGE = 64_000_000
"""Pixels; an image that claims more is refused before it is decoded."""

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}


class DataError(UserError):
    """A data folder or file that is missing, damaged or of another format."""


@dataclass(frozen=True)
class Split:
    """Training and test part of a classification data set.

    Attributes:
        x_train: images, [n, ...].
        y_train: labels, int64 [n].
        x_test: images, [m, ...].
        y_test: labels, int64 [m].
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if len(images) != len(labels):
                raise DataError(f"{len(images)} {part} images have {len(labels)} labels")


@dataclass(frozen=True)
class ClassFolder:
    """A folder of class folders.

    Attributes:
        paths: files, sorted by class and name.
        labels: int64 [n], indices into `classes`.
        classes: names of the class folders, sorted.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


class ImageFolder(ClassFolder):
    """A folder of class folders of images."""

    def read(self, index: int) -> np.ndarray:
        """One image as uint8 [height, width, 3].

        Raises:
            DataError: the file is no image, damaged, or larger than `LARGEST_IMAGE`.
        """
        return read_image(self.paths[index])


def fashion_mnist_small() -> Split:
    """A stratified subset of Fashion-MNIST (MIT licence), in the wheel: 8,000 training and 2,000 test images.

    Images are uint8 [n, 28, 28], labels int64 in 0..9; 800 training and 200 test images of each class.
    """
    content = resources.files("core_utils").joinpath("embedded/fashion_mnist_small.npy.xz").read_bytes()
    rows = np.load(io.BytesIO(lzma.decompress(content)), allow_pickle=False)
    images, labels = rows[:, 1:].reshape(-1, 28, 28), rows[:, 0].astype(np.int64)
    return Split(images[:8000], labels[:8000], images[8000:], labels[8000:])


def digits() -> Split:
    """scikit-learn's 1,797 handwritten digits: uint8 [n, 8, 8] in 0..16, the last 360 for testing.

    Raises:
        DataError: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")  # its file alone: importing it takes seconds
    if found is None or found.origin is None:
        raise DataError("the digits come with scikit-learn", "install core-utils[data]")
    rows = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 8, 8).astype(np.uint8), rows[:, -1].astype(np.int64)
    return Split(images[:-360], labels[:-360], images[-360:], labels[-360:])


def idx_folder(root: str | Path) -> Split:
    """MNIST's layout: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`, plain or `.gz`.

    Raises:
        DataError: a file is missing, truncated or not in IDX format, or counts differ.
    """
    folder = _folder(root)
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    x_train, y_train, x_test, y_test = (_read_idx(_either(folder, name, f"{name}.gz")) for name in names)
    return Split(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64))


def cifar_folder(root: str | Path) -> Split:
    """CIFAR-10 or CIFAR-100 as published: the binary version, or the pickled one.

    Images are uint8 [n, 3, 32, 32]; labels of CIFAR-100 are the fine ones. Pickles are read by an unpickler that admits
    NumPy arrays alone.

    Raises:
        DataError: no such files, or one is truncated or damaged.
    """
    folder = _folder(root)
    for pattern, test, labels, key in (
        ("data_batch_*.bin", "test_batch.bin", 1, ""),
        ("train.bin", "test.bin", 2, ""),
        ("data_batch_[0-9]", "test_batch", 0, "labels"),
        ("train", "test", 0, "fine_labels"),
    ):
        files = sorted(folder.glob(pattern))
        if files and (folder / test).is_file():
            read = [_read_cifar(file, labels, key) for file in [*files, folder / test]]
            images, targets = zip(*read, strict=True)
            return Split(np.concatenate(images[:-1]), np.concatenate(targets[:-1]), images[-1], targets[-1])
    raise DataError(
        f"{folder} holds no CIFAR data",
        "expected data_batch_*.bin and test_batch.bin, train.bin and test.bin, or the pickles",
    )


def image_folder(root: str | Path) -> ImageFolder:
    """Lists a folder of class folders of images, as ImageNet and torchvision's ImageFolder lay them out.

    Raises:
        DataError: the folder is missing, has no class folders, or a class has no image.
    """
    listed = class_folder(root, _IMAGE_SUFFIXES, "image")
    return ImageFolder(listed.paths, listed.labels, listed.classes)


def class_folder(root: str | Path, suffixes: Collection[str], what: str, *, by_number: bool = False) -> ClassFolder:
    """Lists a folder of class folders of files of one kind; hidden folders are no classes.

    Args:
        root: the folder.
        suffixes: how the names of the files end, in lower case; others are passed over.
        what: the kind, for messages.
        by_number: sort numbers in names as numbers, so that a_2 comes before a_10.

    Raises:
        DataError: the folder is missing, has no class folders, or a class has no such file.
    """
    folder = _folder(root)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} has no class folders", f"expected <folder>/<class>/<{what}>")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [path for path in (folder / name).rglob("*") if path.suffix.lower() in suffixes]
        if not found:
            raise DataError(f"class folder {folder / name} holds no {what}")
        paths += sorted(found, key=_numbers_as_numbers if by_number else None)
        labels += [label] * len(found)
    return ClassFolder(tuple(paths), np.array(labels, np.int64), tuple(classes))


def read_image(path: str | Path) -> np.ndarray:
    """One image file as uint8 [height, width, 3].

    Raises:
        DataError: the file is no image, damaged, or larger than `LARGEST_IMAGE`; or Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError("reading images needs Pillow", "install core-utils[data]") from None
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            if math.prod(image.size) > LARGEST_IMAGE:
                raise DataError(f"{path} has {image.size[0]} x {image.size[1]} pixels, more than {LARGEST_IMAGE}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is missing, damaged or no image: {error}") from None


def _folder(root: str | Path) -> Path:
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    if not any(folder.iterdir()):
        raise DataError(f"data folder {folder} is empty")
    return folder


def _numbers_as_numbers(path: Path) -> list[tuple[int, str]]:
    """A sorting key; digits and other characters alternate, so that the same places hold the same kinds."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", str(path))]


def _either(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} has no {' or '.join(names)}")


def _read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file: two zero bytes, type, number of dimensions, sizes, then values, all big-endian."""
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or content[3] == 0:
        raise DataError(f"{path} is not an IDX file")
    rank, dtype = content[3], np.dtype(_IDX_TYPES[content[2]])
    start = 4 + 4 * rank
    shape = struct.unpack_from(f">{rank}I", content, 4) if len(content) >= start else (0,)
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise DataError(
            f"{path} has {len(content)} bytes, its header asks for {expected}", "it is truncated or damaged"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is gzip."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "it is truncated or damaged") from None


def _read_cifar(path: Path, label_bytes: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    content = path.read_bytes()
    if label_bytes:
        row = label_bytes + 3072
        if not content or len(content) % row:
            raise DataError(f"{path} has {len(content)} bytes, not a multiple of {row}", "it is truncated or damaged")
        rows = np.frombuffer(content, np.uint8).reshape(-1, row)
        return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].astype(np.int64)
    batch = _unpickle_arrays(path, content)
    images, labels = batch.get("data"), batch.get(key)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,) or not labels:
        raise DataError(f"{path} holds no CIFAR batch")
    return images.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; refuses every other class or function."""

    _ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refuses {module}.{name}") from None


def _unpickle_arrays(path: Path, content: bytes) -> dict[str, Any]:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a hostile or torn pickle fails in many ways
        raise DataError(f"{path} is no CIFAR batch: {error}") from None
    if not isinstance(batch, dict):
        raise DataError(f"{path} holds no CIFAR batch")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in batch.items()}


def stratified(labels: Sequence[int] | np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `per_class` random members of every class, in ascending order.

    Args:
        labels: int [n].
        per_class: how many of each.
        rng: decides which.

    Raises:
        DataError: a class has fewer members.
    """
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise DataError(f"class {label} has {len(members)} members, {per_class} were asked for")
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))
