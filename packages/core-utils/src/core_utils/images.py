"""Data sets of images for training: CIFAR and ImageNet in their published layouts, and what their items go through.

    sets = cifar("cifar-10-batches-bin")
    train = Loader(sets.train, 128, seed=0, transform=sets.augment)
    test = Loader(sets.test, 128, shuffle=False)

Nothing is ever selected on `test`; `validation` is held out from the published training part for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from core_utils.data import DataError, ImageFolder, cifar_folder, image_folder
from core_utils.errors import UserError

Item = tuple[np.ndarray, int]
"""What a data set yields: frames or an image, and its label."""

CIFAR10_NORMAL = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_NORMAL = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET_NORMAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel."""
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Share of the image's area, and width over height, of a random resized crop (Szegedy et al. 2015)."""


@runtime_checkable
class Items(Protocol):
    """A data set: a length, and items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class DataSets:
    """The parts of a data set; an item is (frames float32 [T, 2, H, W] or image float32 [C, H, W], label).

    Attributes:
        train: what is learned from.
        validation: held out from the training part; None if nothing was.
        test: the test part.
        num_classes: labels are 0 to num_classes - 1.
        channels: C, or 2 polarities.
        size: height and width, pixels.
        augment: `transform` of a `Loader` of `train`. Items of ImageNet's `train` get their shape only by it.
        split: what was decided here and is worth keeping with a run: the members of "validation", and where no test
            part is published those of "train" and "test", as file names or as numbers within the published part.
    """

    train: Items
    validation: Items | None
    test: Items
    num_classes: int
    channels: int
    size: int
    augment: Callable[[Item, np.random.Generator], Item]
    split: dict[str, list[Any]]


def cifar(folder: str | Path, *, validation: float = 0.1, seed: int = 0) -> DataSets:
    """CIFAR-10 or CIFAR-100 as published, binary or pickled, normalised.

    Args:
        folder: where the batches lie.
        validation: share of every class's training part that is held out; 0 holds out nothing.
        seed: decides which.

    Raises:
        UserError: a folder or file that cannot be used, or a class without training images.
    """
    images = cifar_folder(folder)
    classes = range(max(images.y_train.max(), images.y_test.max()) + 1)
    check_classes(images.y_train, classes)
    mean, deviation = CIFAR10_NORMAL if len(classes) <= 10 else CIFAR100_NORMAL
    everything = np.arange(len(images.y_train))
    kept, held = hold_out(images.y_train, everything, validation, np.random.default_rng(seed), classes)

    def normal(pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> NormalImages:
        return NormalImages(pixels[indices], labels[indices], mean, deviation)

    black = normalised(np.zeros((1, 1, 3), np.uint8), mean, deviation)
    return DataSets(
        train=normal(images.x_train, images.y_train, kept),
        validation=normal(images.x_train, images.y_train, held) if len(held) else None,
        test=normal(images.x_test, images.y_test, np.arange(len(images.y_test))),
        num_classes=10 if len(classes) <= 10 else 100,
        channels=3,
        size=32,
        augment=CropAndFlip(tuple(black.ravel().tolist())),
        split={"validation": held.tolist()},
    )


def imagenet(folder: str | Path, *, size: int = 224, validation: float = 0.01, seed: int = 0) -> DataSets:
    """ImageNet, or any images in its layout: `train/<class>/<image>` and `val/<class>/<image>`.

    `val/` is the test part. Validation and test images have their shorter side scaled to 8/7 of `size` and are cropped
    around the centre (256 and 224); training images are uint8 [height, width, 3] until `augment` crops them.

    Args:
        folder: where `train` and `val` lie.
        size: height and width of the images that the network sees, pixels.
        validation: share of every class's training part that is held out; 0 holds out nothing.
        seed: decides which.

    Raises:
        UserError: a folder that cannot be used, or classes that differ between `train` and `val`.
    """
    learned, tested = (image_folder(Path(folder, part)) for part in ("train", "val"))
    if difference := sorted(set(learned.classes) ^ set(tested.classes)):
        part = "train" if difference[0] in tested.classes else "val"
        raise DataError(
            f"{Path(folder, part)} has no class folder {difference[0]}", "train and val share their classes"
        )
    everything = np.arange(len(learned))
    kept, held = hold_out(learned.labels, everything, validation, np.random.default_rng(seed), learned.classes)
    return DataSets(
        train=WholeImages(learned, kept),
        validation=CentralCrops(learned, held, size) if len(held) else None,
        test=CentralCrops(tested, np.arange(len(tested)), size),
        num_classes=len(learned.classes),
        channels=3,
        size=size,
        augment=RandomResizedCrop(*IMAGENET_NORMAL, size),
        split={"validation": relative_names(learned.paths, held, folder)},
    )


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


def hold_out(
    labels: np.ndarray, learned: np.ndarray, share: float, rng: np.random.Generator, classes: Sequence[object]
) -> tuple[np.ndarray, np.ndarray]:
    """Parts the training items by lot into what is kept and what is held out.

    Args:
        labels: of all items, int64 [n].
        learned: indices of the training items.
        share: of every class's training items, 0 to below 1; 0 holds out nothing.
        rng: draws the lots.
        classes: names of the classes, for errors.

    Raises:
        UserError: a share outside the range, or a class of too few items.
    """
    if not 0 <= share < 1:
        raise UserError(f"validation must lie in [0, 1), got {share}")
    if share == 0:
        return learned, learned[:0]
    kept, held = by_lot(labels[learned], share, rng, classes)
    return learned[kept], learned[held]


def by_lot(
    labels: np.ndarray, share: float, rng: np.random.Generator, classes: Sequence[object]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the others and of a share of every class, at least one of each.

    Raises:
        DataError: a class has too few items.
    """
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(share * len(members)))
        if count == len(members):
            raise DataError(f"class {classes[label]} has {count} items, too few to hold out {share:.0%} of them")
        drawn[rng.choice(members, count, replace=False)] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def check_classes(labels: np.ndarray, classes: Sequence[object]) -> None:
    """Sees that each class has a training item.

    Raises:
        DataError: one has none; names it.
    """
    missing = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(missing):
        raise DataError(f"class {classes[missing[0]]} has no training item")


def relative_names(paths: Sequence[Path], indices: np.ndarray, folder: str | Path) -> list[str]:
    """Names of some files within their folder, with slashes on every system."""
    return [paths[index].relative_to(folder).as_posix() for index in indices]
