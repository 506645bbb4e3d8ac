"""EventDrop: the baseline that loses events instead of moving them.

One of four is drawn with equal probability: nothing, all events of a stretch of time, all of a rectangle, or each
event with the same probability.

Reference: Gu et al., "EventDrop: Data Augmentation for Event-based Learning" (IJCAI 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snn_nda.errors import FramesError, PolicyError
from snn_nda.events import check_events

WAYS = ("nothing", "time", "area", "events")
"""What is lost: nothing, a stretch of time, a rectangle, or single events."""


@dataclass(frozen=True, kw_only=True)
class EventDrop:
    """Loses events of a recording, `drop(events, sensor_size, rng)`.

    Attributes:
        time: shares of the recording's duration to draw from.
        area: shares of width and of height to draw from, the same for both.
        events: probabilities of losing an event to draw from.
        ways: what is drawn from, each as likely as the others.
    """

    time: tuple[float, ...] = tuple(step / 10 for step in range(1, 10))
    area: tuple[float, ...] = tuple(step / 20 for step in range(1, 6))
    events: tuple[float, ...] = tuple(step / 10 for step in range(1, 10))
    ways: tuple[str, ...] = WAYS

    def __post_init__(self) -> None:
        for name in ("time", "area", "events"):
            if not getattr(self, name) or not all(0 <= share <= 1 for share in getattr(self, name)):
                raise PolicyError(f"{name} must be shares between 0 and 1, got {getattr(self, name)}")
        if not self.ways or set(self.ways) - set(WAYS):
            raise PolicyError(f"ways must be of {', '.join(WAYS)}, got {', '.join(self.ways)}")

    def __call__(
        self, events: np.ndarray, sensor_size: Sequence[int], rng: np.random.Generator | int | None = None
    ) -> np.ndarray:
        """The events that are left, in their order; the input stays as it is.

        Args:
            events: structured array [n] with the fields t, x, y and p; times do not decrease.
            sensor_size: (width, height), pixels.
            rng: generator or seed.

        Raises:
            EventsError: a missing field, or a pixel outside the sensor.
        """
        width, height = (int(each) for each in sensor_size[:2])
        check_events(events, width, height)
        rng = np.random.default_rng(rng)
        way = self.ways[rng.integers(len(self.ways))]
        if way == "time":
            return events[~_in_stretch(events["t"], rng.choice(self.time), rng)]
        if way == "area":
            return events[~_in_rectangle(events, width, height, rng.choice(self.area), rng)]
        if way == "events":
            return events[rng.random(len(events)) >= rng.choice(self.events)]
        return events.copy()

    def on_frames(self, frames: np.ndarray, rng: np.random.Generator | int | None = None) -> np.ndarray:
        """The same loss on counts [T, C, H, W]: of time steps, of a rectangle, or of each count event by event.

        Args:
            frames: whole counts of any type; the input stays as it is.
            rng: generator or seed.

        Raises:
            FramesError: another shape, or counts that are negative or not whole.
        """
        if frames.ndim != 4 or (frames < 0).any() or (frames != np.floor(frames)).any():
            raise FramesError(f"events are dropped from whole counts [T, C, H, W], got shape {list(frames.shape)}")
        rng = np.random.default_rng(rng)
        way = self.ways[rng.integers(len(self.ways))]
        kept = frames.copy()
        time_steps, _, height, width = frames.shape
        if way == "time":
            steps = round(rng.choice(self.time) * time_steps)
            start = rng.integers(time_steps - steps + 1)
            kept[start : start + steps] = 0
        elif way == "area":
            share = rng.choice(self.area)
            left, top = rng.integers((width, height))
            kept[..., top : top + math.ceil(share * height), left : left + math.ceil(share * width)] = 0
        elif way == "events":
            kept[...] = rng.binomial(frames.astype(np.int64), 1 - rng.choice(self.events))
        return kept


def _in_stretch(t: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which events fall into a stretch of that share of the duration, which lies anywhere within it."""
    if not len(t):
        return np.zeros(0, bool)
    duration = float(t[-1]) - float(t[0])
    start = float(t[0]) + rng.uniform(0, (1 - share) * duration)
    return (t >= start) & (t <= start + share * duration)


def _in_rectangle(events: np.ndarray, width: int, height: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which events fall into a rectangle of that share of both sides, its first corner anywhere in the sensor."""
    left, top = rng.integers((width, height))
    x, y = events["x"], events["y"]
    return (x >= left) & (x < left + share * width) & (y >= top) & (y < top + share * height)
