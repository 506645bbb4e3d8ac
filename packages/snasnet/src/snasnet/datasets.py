"""The data that the command line knows: embedded, or in a folder of a published layout.

    sets = load_data("cifar10", Path("cifar-10-batches-bin"))
    train = Loader(sets.train, 64, seed=0, transform=sets.augment)
    test = Loader(sets.test, 250, shuffle=False)

Nothing is ever selected on `test`; `validation` is held out from the training part for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from core_utils.data import (
    DataError,
    Split,
    cifar_folder,
    digits,
    fashion_mnist_small,
    idx_folder,
    image_folder,
    read_image,
)
from core_utils.errors import UserError
from core_utils.files import inside
from core_utils.images import IMAGENET_NORMAL, CropAndFlip, Item, Items, NormalImages, by_lot, normalised
from core_utils.spiking.events import CachedFrames, cache_frames, cache_key, event_folder
from core_utils.training import Arrays, Loader
from snasnet.samples import ImageFiles, Normal, recording_frames
from snasnet.specs import DatasetSpec
from snasnet.training import time_first_if_frames

EMBEDDED = ("digits", "fashion")
DATASETS = (*EMBEDDED, "cifar10", "cifar100", "tinyimagenet", "images", "events")
CIFAR_NORMAL: dict[int, Normal] = {
    10: ((0.4913, 0.4821, 0.4465), (0.2470, 0.2434, 0.2615)),
    100: ((0.5071, 0.4867, 0.4408), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation of each channel: released code of arXiv 2201.10355."""
HELD_OUT = 0.1
FRAME_SIZE = 48
"""Height and width of event frames, pixels, as CIFAR10-DVS is usually trained on."""


@dataclass(frozen=True, eq=False)
class DataSets:
    """The parts of a data set; an item is (image float32 [C, H, W] or frames float32 [T, 2, H, W], label).

    Attributes:
        spec: channels, size and classes.
        train: what is learned from, and what scores are taken on.
        validation: 10 % of every class of the training part, held out.
        test: used once, at the end.
        augment: `transform` of a `Loader` of `train`; None changes nothing.
    """

    spec: DatasetSpec
    train: Items
    validation: Items
    test: Items
    augment: Callable[[Item, np.random.Generator], Item] | None = None

    def batch(self, samples: int, seed: int) -> Tensor:
        """The fixed batch that cells are scored on: training samples by lot, each once, augmented as in training.

        Returns:
            Images [B, C, H, W], or frames [T, B, 2, H, W].

        Raises:
            UserError: fewer training samples than asked for.
        """
        if not 2 <= samples <= len(self.train):
            raise UserError(f"--batch must lie in 2..{len(self.train)}, the number of training images, got {samples}")
        batch: Tensor = next(iter(Loader(self.train, samples, seed=seed, transform=self.augment)))[0]
        return time_first_if_frames(batch)


def load_data(
    name: str,
    folder: Path | None = None,
    *,
    seed: int = 0,
    time_steps: int = 5,
    image_size: int | None = None,
    sensor: tuple[int, int] = (128, 128),
) -> DataSets:
    """A data set by name.

    Args:
        name: "digits" (8 x 8, scikit-learn's); "fashion" (28 x 28: the embedded part of Fashion-MNIST, or any set of
            IDX files in the folder); "cifar10" or "cifar100" as published; "tinyimagenet"; "images" (`train/<class>/`
            and `test/<class>/` or `val/<class>/` with image files); "events" (a folder a class, recordings of an event
            camera: the first 90 % by the numbers in their names are for training, the rest for testing).
        folder: where the files lie.
        seed: decides what is held out.
        time_steps: T, frames of a recording.
        image_size: scale images, or frames (48 by default), to so many pixels in height and width.
        sensor: width and height of the event camera, pixels.

    Raises:
        UserError: an unknown name, a folder that is missing or cannot be read, an option of another data set.
    """
    if name not in DATASETS:
        raise UserError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    if name not in EMBEDDED and folder is None:
        raise UserError(f"dataset {name} needs its folder", "add --data DIR")
    if name == "digits" and folder is not None:
        raise UserError("the digits are embedded; --data is of no use to them", "choose another --dataset")
    if image_size is not None and (image_size < 1 or name not in ("images", "events")):
        raise UserError(f"image_size must be at least 1, and is for images and events only, got {image_size}")
    where = Path(str(folder))
    readers: dict[str, Callable[[], DataSets]] = {
        "digits": lambda: _grey(digits(), seed),
        "fashion": lambda: _grey(fashion_mnist_small() if folder is None else idx_folder(where), seed),
        "cifar10": lambda: _cifar(where, 10, seed),
        "cifar100": lambda: _cifar(where, 100, seed),
        "tinyimagenet": lambda: _image_files(where / "train", _tiny_test(where / "val"), seed, None),
        "images": lambda: _image_files(where / "train", _test_folder(where), seed, image_size),
        "events": lambda: _events(where, seed, time_steps, sensor, image_size or FRAME_SIZE),
    }
    return readers[name]()


def _grey(images: Split, seed: int) -> DataSets:
    """Small grey images; mean 0 and deviation 1 over the pixels of the training part."""
    x_train, x_test = (np.asarray(x, np.float32)[:, None] for x in (images.x_train, images.x_test))
    mean, deviation = x_train.mean(), max(x_train.std(), 1e-6)
    labels = images.y_train
    spec = DatasetSpec.of(x_train, labels)
    if images.y_test.max() >= spec.num_classes:
        raise DataError(f"a test label is {images.y_test.max()}, training labels end at {spec.num_classes - 1}")
    kept, held = _parted(labels, HELD_OUT, seed)
    train, validation, test = (
        Arrays((x - mean) / deviation, y)
        for x, y in ((x_train[kept], labels[kept]), (x_train[held], labels[held]), (x_test, images.y_test))
    )
    return DataSets(spec, train, validation, test)


def _cifar(folder: Path, classes: int, seed: int) -> DataSets:
    images = cifar_folder(folder)
    found = int(max(images.y_train.max(), images.y_test.max())) + 1
    if found > classes or (classes == 100 and found <= 10):
        raise DataError(f"{folder} has {found} classes", f"dataset cifar{classes} has {classes}")
    normal = CIFAR_NORMAL[classes]
    kept, held = _parted(images.y_train, HELD_OUT, seed)
    train, validation = (NormalImages(images.x_train[part], images.y_train[part], *normal) for part in (kept, held))
    spec = DatasetSpec(3, 32, classes)
    test = NormalImages(images.x_test, images.y_test, *normal)
    return DataSets(spec, train, validation, test, _augmentation(normal, 32))


Tested = Callable[[tuple[str, ...]], tuple[list[Path], np.ndarray]]
"""From the names of the classes to the files of the test part and their labels."""


def _image_files(train: Path, tested: Tested, seed: int, size: int | None) -> DataSets:
    listed = image_folder(train)
    paths, labels = tested(listed.classes)
    shape = (size, size) if size is not None else read_image(listed.paths[0]).shape[:2]
    kept, held = _parted(listed.labels, HELD_OUT, seed)

    def files(part: list[Path], of_part: np.ndarray) -> ImageFiles:
        return ImageFiles(tuple(part), of_part, IMAGENET_NORMAL, shape, scale=size is not None)

    spec = DatasetSpec(3, shape[0] if shape[0] == shape[1] else shape, len(listed.classes))
    return DataSets(
        spec,
        files([listed.paths[index] for index in kept], listed.labels[kept]),
        files([listed.paths[index] for index in held], listed.labels[held]),
        files(paths, labels),
        _augmentation(IMAGENET_NORMAL, min(shape)),
    )


def _tiny_test(val: Path) -> Tested:
    """TinyImageNet's `val`, whose labels are published: a folder a class, or `images` and `val_annotations.txt`."""

    def tested(classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
        annotations = val / "val_annotations.txt"
        if not (val / "images").is_dir() or not annotations.is_file():
            return _class_folders(val, classes)
        paths, labels = [], []
        for number, line in enumerate(annotations.read_text().splitlines(), start=1):
            name, _, rest = line.partition("\t")
            if (label := rest.partition("\t")[0]) not in classes:
                raise DataError(f"{annotations}, line {number}: no class {label!r} in train")
            paths.append(inside(val / "images", name))
            labels.append(classes.index(label))
        if not paths:
            raise DataError(f"{annotations} names no image")
        return paths, np.array(labels)

    return tested


def _test_folder(folder: Path) -> Tested:
    test = folder / "test" if (folder / "test").is_dir() else folder / "val"
    return lambda classes: _class_folders(test, classes)


def _class_folders(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    listed = image_folder(folder)
    if difference := sorted(set(listed.classes) ^ set(classes)):
        raise DataError(f"class {difference[0]} is in only one of train and {folder.name}", f"in {folder.parent}")
    return list(listed.paths), listed.labels


def _events(folder: Path, seed: int, time_steps: int, sensor: tuple[int, int], size: int) -> DataSets:
    recordings = event_folder(folder)
    labels = recordings.labels
    position = np.arange(len(labels)) - np.searchsorted(labels, labels)  # within its class
    learned = position < np.bincount(labels)[labels] * 9 // 10
    kept, held = _parted(labels[learned], HELD_OUT, seed)
    if len(set(labels[learned][kept])) < len(recordings.classes):
        raise DataError(f"{folder} has a class of too few recordings", "3 suffice")

    how: dict[str, Any] = {"time_steps": time_steps, "sensor": sensor, "size": size}
    file = cache_frames(
        partial(recording_frames, **how),
        recordings.paths,
        folder / ".frames" / f"snasnet-{time_steps}x{size}-{cache_key(recordings.paths, how)}.npy",
        shape=(time_steps, 2, size, size),
        facts=how,
        progress=False,
    )
    spec = DatasetSpec(2, size, len(recordings.classes))
    train, test = np.flatnonzero(learned), np.flatnonzero(~learned)
    parts = [CachedFrames(file, labels, indices) for indices in (train[kept], train[held], test)]
    return DataSets(spec, parts[0], parts[1], parts[2])


def _augmentation(normal: Normal, side: int) -> CropAndFlip:
    """The paper's frame is an eighth of the image: 4 pixels of 32, 8 of 64."""
    black = normalised(np.zeros((1, 1, 3), np.uint8), *normal)
    return CropAndFlip(tuple(black.ravel().tolist()), side // 8)


def _parted(labels: Any, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices that are kept and that are held out: so large a share of every class, at least one item, by lot."""
    names = range(int(labels.max(initial=-1)) + 1)
    return by_lot(labels, share, np.random.default_rng([seed, 1]), names)
