"""Other libraries' data sets, and anything that yields events, as frames; by duck typing, depending on none.

A sample of tonic is a structured array (x, y, t, p with p bool) and a label that may be a class's name; one of
spikingjelly is a mapping with the arrays t, x, y, p and a number. Both also yield frames [T, C, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from core_utils.spiking.events import EVENT, events_to_frames, resize_frames
from snn_nda.errors import EventsError


@runtime_checkable
class Items(Protocol):
    """A data set: a length, and items (sample, label) by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignEvents:
    """A data set of another library; an item is (events of dtype `EVENT`, or frames [T, C, H, W], label).

    Attributes:
        dataset: has a length and items (sample, label).
        sensor_size: (width, height), pixels; by default the data set's own `sensor_size`, as tonic's have it.
        classes: names of the classes in the order of their labels, where labels are names; by default the sorted
            `targets` of the data set.
        label_safe_flip: a mirrored recording has the same label; None if unknown.
        label_map: what labels become when mirrored; others stay.
        signed: polarities are -1 and 1 instead of 0 and 1.
    """

    dataset: Items
    sensor_size: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None
    label_safe_flip: bool | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    signed: bool = False

    def __post_init__(self) -> None:
        if self.sensor_size is None and (size := getattr(self.dataset, "sensor_size", None)) is not None:
            width, height = (int(each) for each in size[:2])
            object.__setattr__(self, "sensor_size", (width, height))
        targets = getattr(self.dataset, "targets", None)
        if self.classes is None and targets is not None and len(targets) and isinstance(targets[0], str):
            object.__setattr__(self, "classes", tuple(sorted(set(targets))))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        sample, label = self.dataset[index]
        return as_sample(sample, signed=self.signed), self._number(label)

    def _number(self, label: Any) -> int:
        if not isinstance(label, str):
            return int(label)
        if self.classes is None or label not in self.classes:
            raise EventsError(f"label {label!r} is not among the classes {self.classes}", "name them with `classes`")
        return self.classes.index(label)


def as_sample(sample: Any, *, signed: bool = False) -> np.ndarray:
    """Events of dtype `EVENT`, or frames as they are, from what a data set yields.

    Args:
        sample: a structured array or a mapping with t, x, y and p in any order and type, or frames [T, C, H, W] as an
            array or tensor.
        signed: polarities are -1 and 1 instead of 0 and 1.

    Raises:
        EventsError: it is neither, or a polarity is of another value.
    """
    names = sample.dtype.names if isinstance(sample, np.ndarray) else None
    fields = names or (tuple(sample) if isinstance(sample, Mapping) or hasattr(sample, "keys") else ())
    if not fields:
        frames = np.asarray(sample)
        if frames.ndim != 4 or frames.dtype == object:
            raise EventsError(
                f"a sample is neither events nor frames but {type(sample).__name__} of shape {list(frames.shape)}",
                "expected fields t, x, y, p, or [T, C, H, W]",
            )
        return frames
    if missing := [name for name in ("t", "x", "y", "p") if name not in fields]:
        raise EventsError(f"a sample has the fields {', '.join(fields)} but no {missing[0]!r}")
    events = np.empty(len(sample["t"]), EVENT)
    for name in ("t", "x", "y"):
        events[name] = sample[name]
    polarity = np.asarray(sample["p"]).astype(np.int64)
    darker = -1 if signed else 0
    if len(polarity) and not np.isin(polarity, (darker, 1)).all():
        wrong = int(polarity[~np.isin(polarity, (darker, 1))][0])
        raise EventsError(f"a sample has polarity {wrong}, not {darker} or 1", "signed=True reads -1 and 1")
    events["p"] = polarity > 0
    return events


@dataclass(frozen=True, kw_only=True, eq=False)
class EventFrames:
    """Any data set of events as frames; an item is (float32 [T, 2, size, size], label).

    Attributes:
        dataset: items (events, label), or (frames [T, 2, H, W], label), which are only resized.
        time_steps: T.
        size: height and width of the frames, pixels.
        by: steps of equal "number" of events, as CIFAR10-DVS's protocol has it, or of equal "time".
        method: of `core_utils.spiking.events.resize_frames`; "nearest" is the paper's and loses events.
        sensor_size: (width, height), pixels; by default the data set's.
    """

    dataset: Items
    time_steps: int = 10
    size: int = 48
    by: Literal["time", "number"] = "number"
    method: Literal["nearest", "area", "sum", "bilinear"] = "sum"
    sensor_size: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        events, label = self.dataset[index]
        frames = events if events.dtype.names is None else self._binned(events)
        if frames.shape[-2:] != (self.size, self.size):
            frames = resize_frames(frames, self.size, self.method)
        return frames.astype(np.float32, copy=False), label

    def _binned(self, events: np.ndarray) -> np.ndarray:
        sensor_size = self.sensor_size or getattr(self.dataset, "sensor_size", None)
        if sensor_size is None:
            raise EventsError(
                f"the sensor of {type(self.dataset).__name__} is unknown", "give sensor_size=(width, height)"
            )
        width, height = (int(each) for each in sensor_size[:2])
        return events_to_frames(events, self.time_steps, (width, height), self.by)

    @property
    def label_safe_flip(self) -> bool | None:
        """What the data set says about mirrored labels."""
        return getattr(self.dataset, "label_safe_flip", None)

    @property
    def label_map(self) -> Mapping[int, int]:
        """What labels become when mirrored."""
        return getattr(self.dataset, "label_map", {})
