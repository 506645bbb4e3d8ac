"""Data in the layouts in which they are published, as arrays that a scenario is made of."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core_utils.data import DataError, cifar_folder, digits, image_folder, read_image
from core_utils.files import FileError, inside
from core_utils.images import CIFAR100_NORMAL, IMAGENET_NORMAL, scaled
from fedcl.scenario import Normal

DATASETS = ("garments", "digits", "cifar100", "miniimagenet", "decathlon", "folder")
TRAIN_SHARE = 5 / 6
"""Of a class of MiniImageNet: 500 of 600 images, since its published split is by classes, for few-shot learning."""
DECATHLON = (
    "aircraft",
    "cifar100",
    "daimlerpedcls",
    "dtd",
    "gtsrb",
    "imagenet12",
    "omniglot",
    "svhn",
    "ucf101",
    "vgg-flowers",
)
"""Folder names of the Visual Decathlon."""


@dataclass(frozen=True, eq=False)
class Data:
    """Images and classes.

    Attributes:
        x: training images, uint8 [n, C, H, W], or float32 of any shape.
        y: classes, int64 [n].
        x_test: test images.
        y_test: their classes.
        normal: mean and deviation of each channel of uint8 images / 255.
        tasks: classes of each task where the data define tasks.
        note: what a report must say of the test part.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    normal: Normal | None = None
    tasks: tuple[tuple[int, ...], ...] | None = None
    note: str | None = None


def load_data(name: str, folder: Path | None = None, *, image_size: int | None = None) -> Data:
    """Data by name.

    Args:
        name: "garments" (Fashion-MNIST of 14 x 14 pixels, embedded) and "digits" (8 x 8 of mean 0 and deviation 1, embedded) need no folder;
            "cifar100", "miniimagenet", "decathlon", "folder" do.
        folder: where they lie.
        image_size: height and width that images are scaled to; by default 32, 84, 72 and 84.

    Raises:
        DataError: an unknown name, or files that are missing, damaged or laid out otherwise.
    """
    if name == "garments":
        from fedcl.miniature import garments

        split = garments(folder)
        return Data(split.x_train, split.y_train, split.x_test, split.y_test)
    if name == "digits":
        split = digits()
        x_train, x_test = ((x[:, None] / np.float32(6) - np.float32(0.8)) for x in (split.x_train, split.x_test))
        return Data(x_train, split.y_train, x_test, split.y_test)
    if name not in DATASETS:
        raise DataError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    if folder is None:
        raise DataError(f"dataset {name} needs --data with its folder")
    if name == "cifar100":
        return cifar100(folder, image_size or 32)
    readers = {"miniimagenet": (mini_imagenet, 84), "decathlon": (decathlon, 72), "folder": (class_folders, 84)}
    reader, size = readers[name]
    return reader(folder, image_size or size)


def cifar100(folder: Path, size: int = 32) -> Data:
    """CIFAR-100 as published, binary or pickled, scaled to `size`."""
    split = cifar_folder(folder)
    x_train, x_test = (_resized(x, size) for x in (split.x_train, split.x_test))
    return Data(x_train, split.y_train, x_test, split.y_test, CIFAR100_NORMAL)


def mini_imagenet(folder: Path, size: int = 84) -> Data:
    """MiniImageNet as class folders, or as `images/` with train.csv, val.csv and test.csv of `filename,label` lines.

    Each class is split anew: 5 of 6 images for training, in an order drawn once for all.
    """
    tables = [folder / f"{part}.csv" for part in ("train", "val", "test")]
    if all(table.is_file() for table in tables):
        rows = [row for table in tables for row in _rows(table, ("filename", "label"))]
        names = sorted({label for _, label in rows})
        paths = [inside(folder / "images", name) for name, _ in rows]
        labels = np.array([names.index(label) for _, label in rows], np.int64)
    else:
        listed = image_folder(folder)
        paths, labels = list(listed.paths), listed.labels
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = [], []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        cut = round(TRAIN_SHARE * len(members))
        if not 0 < cut < len(members):
            raise DataError(f"class {label} of {folder} has {len(members)} images, too few to split")
        train.append(np.sort(members[:cut]))
        test.append(np.sort(members[cut:]))
    learned, held = np.concatenate(train), np.concatenate(test)
    x, x_test = (_read((paths[index] for index in part), len(part), size) for part in (learned, held))
    return Data(x, labels[learned], x_test, labels[held], IMAGENET_NORMAL)


def decathlon(folder: Path, size: int = 72) -> Data:
    """The Visual Decathlon: a task of each data set that is there, from `annotations/<name>_<part>.json` and its images.

    Labels of the published test parts are hidden, so the validation parts are tested on. Images lie under the paths of
    the annotations' `file_name`, in `folder` or in its `data/`.
    """
    notes = _first_folder(folder, ("annotations", "decathlon-1.0-devkit/annotations"))
    names = [name for name in DECATHLON if (notes / f"{name}_train.json").is_file()]
    if not names:
        raise DataError(f"{notes} has no <data set>_train.json", f"known data sets: {', '.join(DECATHLON)}")
    parts: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {"train": ([], []), "val": ([], [])}
    tasks, first = [], 0
    for name in names:
        train, test = (_annotated(folder, notes / f"{name}_{part}.json") for part in parts)
        categories = sorted({category for _, category in train})
        unknown = {category for _, category in test} - set(categories)
        if unknown:
            raise DataError(f"{notes / f'{name}_val.json'} has category {min(unknown)}, which train.json lacks")
        for part, rows in zip(parts.values(), (train, test), strict=True):
            part[0].append(_read((path for path, _ in rows), len(rows), size))
            part[1].append(first + np.searchsorted(categories, [category for _, category in rows]).astype(np.int64))
        tasks.append(tuple(range(first, first + len(categories))))
        first += len(categories)
    x, y, x_test, y_test = (np.concatenate(arrays) for part in parts.values() for arrays in part)
    note = "tested on the validation parts: labels of the published test parts are hidden"
    return Data(x, y, x_test, y_test, IMAGENET_NORMAL, tuple(tasks), note)


def class_folders(folder: Path, size: int = 84) -> Data:
    """Your own images: `train/<class>/...` and `test/<class>/...`; `tasks.csv` of `class,task` lines may define tasks."""
    learned, tested = (image_folder(folder / part) for part in ("train", "test"))
    if learned.classes != tested.classes:
        odd = sorted(set(learned.classes) ^ set(tested.classes))[0]
        raise DataError(f"class {odd} of {folder} lies in one of train and test alone")
    tasks = None
    if (folder / "tasks.csv").is_file():
        chosen = dict(_rows(folder / "tasks.csv", ("class", "task")))
        if missing := sorted(set(learned.classes) ^ set(chosen)):
            raise DataError(f"{folder / 'tasks.csv'} and the class folders differ in {missing[0]}")
        numbers = sorted(set(chosen.values()))
        tasks = tuple(
            tuple(label for label, name in enumerate(learned.classes) if chosen[name] == number) for number in numbers
        )
    x, x_test = (_read(part.paths, len(part), size) for part in (learned, tested))
    return Data(x, learned.labels, x_test, tested.labels, IMAGENET_NORMAL, tasks)


def _annotated(folder: Path, file: Path) -> list[tuple[Path, int]]:
    """Image file and category of each annotation, in COCO's format."""
    try:
        content = json.loads(file.read_bytes())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        rows = [(names[each["image_id"]], int(each["category_id"])) for each in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is missing or no COCO annotation file: {error!r}") from None
    root = _first_folder(folder, ("data", "decathlon-1.0-data", "."))
    prefix = Path("data")
    found = []
    for name, category in rows:
        relative = Path(name)
        relative = relative.relative_to(prefix) if relative.is_relative_to(prefix) else relative
        try:
            found.append((inside(root, str(relative)), category))
        except FileError as error:
            raise DataError(f"{file}: {error}") from None
    return found


def _first_folder(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(f"{folder} has no folder {' or '.join(names)}")


def _rows(table: Path, columns: tuple[str, str]) -> list[tuple[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {error}") from None
    for number, row in enumerate(rows, start=2):
        if any(not row.get(column) for column in columns):
            raise DataError(f"{table} line {number} lacks {' or '.join(columns)}")
    return [(row[columns[0]], row[columns[1]]) for row in rows]


def _read(paths: Iterable[Path], count: int, size: int) -> np.ndarray:
    """Images scaled to a square, uint8 [n, 3, size, size]: the one copy of them that is held."""
    images = np.empty((count, 3, size, size), np.uint8)
    for index, path in enumerate(paths):
        image = read_image(path)
        images[index] = (image if image.shape[:2] == (size, size) else scaled(image, (size, size))).transpose(2, 0, 1)
    return images


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[-1] == size:
        return images
    made: Any = [scaled(image.transpose(1, 2, 0), (size, size)).transpose(2, 0, 1) for image in images]
    return np.stack(made)
