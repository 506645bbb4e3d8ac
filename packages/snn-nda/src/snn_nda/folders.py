"""Event data sets as published: extracted folders, read where they lie, never downloaded.

CIFAR10-DVS     <class>/cifar10_<class>_<number>.aedat                  no split: 9 to 1 by number in every class
N-Caltech101    Caltech101/<class>/image_<number>.bin                   likewise
N-Cars          train|test/<class>/<name>.dat                           also n-cars_train, n-cars_test
N-MNIST         Train|Test/<digit>/<number>.bin
DVS-Gesture     <user>_<light>.aedat, <user>_<light>_labels.csv, trials_to_train.txt, trials_to_test.txt
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from core_utils.data import DataError
from core_utils.files import inside
from core_utils.spiking.events import event_folder, read_events
from snn_nda.labels import facts

GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
"""Classes 1 to 11 of DVS-Gesture, in order (Amir et al. 2017, gesture_mapping.csv)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recordings:
    """Recordings in files; an item is (events of dtype `core_utils.spiking.events.EVENT`, label).

    Attributes:
        paths: the file of every item.
        labels: int64 [n], indices into `classes`.
        classes: their names.
        spans: first time and the one after the last of every item, microseconds, where an item is a part of a file.
        sensor_size: (width, height), pixels; None if unknown.
        label_safe_flip: a mirrored recording has the same label; None if unknown.
        label_map: what labels become when mirrored; others stay.
        sort: accept files whose times decrease, by sorting their events.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] | None = None
    sensor_size: tuple[int, int] | None = None
    label_safe_flip: bool | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    sort: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label = int(self.labels[index])
        if self.spans is None:
            return read_events(self.paths[index], sort=self.sort), label
        events = _whole_file(self.paths[index], self.sort)
        first, last = np.searchsorted(events["t"], self.spans[index])
        if first == last:
            start, stop = self.spans[index]
            raise DataError(f"{self.paths[index]} holds no event between {start} and {stop} microseconds")
        return events[first:last].copy(), label

    def subset(self, indices: Sequence[int] | np.ndarray) -> Recordings:
        """Some of the recordings; classes stay."""
        spans = None if self.spans is None else tuple(self.spans[index] for index in indices)
        paths = tuple(self.paths[index] for index in indices)
        return replace(self, paths=paths, labels=self.labels[np.asarray(indices, dtype=np.intp)], spans=spans)


def FolderEvents(  # noqa: N802 -- makes a data set, and is named as the spec names it
    root: str | Path,
    data: str | None = None,
    *,
    sensor_size: tuple[int, int] | None = None,
    label_safe_flip: bool | None = None,
    label_map: Mapping[int, int] | None = None,
    sort: bool = False,
) -> Recordings:
    """The recordings of a folder of class folders, or of DVS-Gesture's flat folder.

    Args:
        root: the extracted folder; N-Caltech101's also with the folder `Caltech101` in it.
        data: name of the data set in `snn_nda.labels.FACTS`, which then says the three facts below.
        sensor_size: (width, height), pixels.
        label_safe_flip: a mirrored recording has the same label.
        label_map: what labels become when mirrored.
        sort: accept files whose times decrease, by sorting their events.

    Raises:
        DataError: a folder that is missing, has no class folders, or an empty one; a label file that is damaged.
        PolicyError: an unknown data set.
    """
    folder = Path(root)
    if (folder / "Caltech101").is_dir():
        folder = folder / "Caltech101"
    known = None if data is None else facts(data)
    if _is_gestures(folder):
        recordings = _gestures(folder, sorted(path.name for path in folder.glob("*.aedat")))
    else:
        listed = event_folder(folder)
        recordings = Recordings(paths=listed.paths, labels=listed.labels, classes=listed.classes)
    return replace(
        recordings,
        sensor_size=sensor_size or (known.sensor_size if known else None),
        label_safe_flip=known.label_safe_flip if label_safe_flip is None and known else label_safe_flip,
        label_map=known.label_map if label_map is None and known else label_map or {},
        sort=sort,
    )


def published_parts(root: str | Path, data: str | None = None, *, sort: bool = False) -> tuple[Recordings, Recordings]:
    """The training and test part of a data set: the published ones, else 9 to 1 in every class by number.

    Args:
        root: the extracted folder.
        data: name of the data set in `snn_nda.labels.FACTS`; None leaves sensor and label safety unknown.
        sort: accept files whose times decrease.

    Raises:
        DataError: a folder or list that cannot be used, a class that only one part has, or one recording in both.
    """
    folder = Path(root)
    if _is_gestures(folder):
        everything = FolderEvents(folder, data, sort=sort)
        names = np.array([path.name for path in everything.paths])
        listed = [_listed(folder, part) for part in ("train", "test")]
        train, test = (everything.subset(np.flatnonzero(np.isin(names, part))) for part in listed)
    elif parts := _part_folders(folder):
        train, test = (FolderEvents(part, data, sort=sort) for part in parts)
        if difference := sorted(set(train.classes) ^ set(test.classes)):
            lacking = parts[0] if difference[0] in test.classes else parts[1]
            raise DataError(f"{lacking} has no class folder {difference[0]}", "both parts share their classes")
    else:
        everything = FolderEvents(folder, data, sort=sort)
        first = _first_nine_tenths(everything.labels)
        train, test = everything.subset(np.flatnonzero(first)), everything.subset(np.flatnonzero(~first))
    if common := {path.resolve() for path in train.paths} & {path.resolve() for path in test.paths}:
        raise DataError(f"{min(common)} is in the training and in the test part")
    if not len(train) or not len(test):
        raise DataError(f"the {'test' if len(train) else 'training'} part of {folder} is empty")
    return train, test


def _first_nine_tenths(labels: np.ndarray) -> np.ndarray:
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)  # in the order of the numbers in their names
        first[members[: len(members) * 9 // 10]] = True
    return first


def _part_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the published parts; None if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    found = {}
    for part in ("train", "test"):
        named = [each for each in sorted(folder.iterdir()) if each.is_dir() and each.name.lower().endswith(part)]
        if len(named) > 1:
            raise DataError(
                f"{folder} has more than one folder for the {part} part: {', '.join(p.name for p in named)}"
            )
        found[part] = named[0] if named else None
    if (found["train"] is None) != (found["test"] is None):
        missing = "train" if found["train"] is None else "test"
        raise DataError(f"{folder} has no folder for the {missing} part, but one for the other")
    return None if found["train"] is None or found["test"] is None else (found["train"], found["test"])


def _is_gestures(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*_labels.csv"))


def _gestures(folder: Path, names: Sequence[str]) -> Recordings:
    """Every labelled span of DVS-Gesture's files; files without a list of labels, such as those of trials, are none."""
    paths: list[Path] = []
    labels: list[int] = []
    spans: list[tuple[int, int]] = []
    for name in names:
        table = folder / f"{Path(name).stem}_labels.csv"
        if not table.is_file():
            continue
        for label, start, stop in _spans(table):
            paths.append(folder / name)
            labels.append(label - 1)
            spans.append((start, stop))
    if not paths:
        raise DataError(
            f"{folder} has labels but none of its recordings do", "expected <name>.aedat and <name>_labels.csv"
        )
    return Recordings(paths=tuple(paths), labels=np.array(labels, np.int64), classes=GESTURES, spans=tuple(spans))


def _spans(table: Path) -> list[tuple[int, int, int]]:
    """Rows `class,startTime_usec,endTime_usec` of a label file."""
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            rows = csv.DictReader(lines)
            spans = [tuple(int(row[key]) for key in ("class", "startTime_usec", "endTime_usec")) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{table} is no list of class,startTime_usec,endTime_usec: {error}") from None
    for label, start, stop in spans:
        if not 1 <= label <= len(GESTURES) or not 0 <= start < stop:
            raise DataError(f"{table} has the row {label},{start},{stop}", "classes are 1 to 11 and times rise")
    return spans  # type: ignore[return-value]


def _listed(folder: Path, part: str) -> list[str]:
    """Names of the recordings of a part, as `trials_to_train.txt` lists them."""
    file = folder / f"trials_to_{part}.txt"
    try:
        names = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    for name in names:
        if not inside(folder, name).is_file():
            raise DataError(f"{file} lists {name}, which is not there")
    return names


@functools.lru_cache(maxsize=1)
def _whole_file(path: Path, sort: bool) -> np.ndarray:
    """A file that several items in a row are parts of."""
    return read_events(path, sort=sort)
