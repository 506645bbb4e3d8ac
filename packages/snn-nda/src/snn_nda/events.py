"""Neuromorphic data augmentation of events: the same parameters as on frames, at exact places instead of pixels.

Mirroring, rolling and cutting out give the very counts that `NDA` gives on frames of these events; so does binning
before or after them. Rotation and shear move every event to its nearest pixel, so that none is read twice and none is
skipped but at the borders, while frames look up for every pixel where it comes from: the two agree but for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from snn_nda.errors import EventsError
from snn_nda.params import Cutout, HFlip, Params, Roll, Rotate, ShearX, inverse_matrix
from snn_nda.policies import Policy, adapted


class EventNDA:
    """Moves a recording by operations drawn by lot.

    Attributes:
        policy: what is drawn, and how.
        sensor_size: (width, height), pixels, for calls that do not name it; None if they all do.
        rng: decides the lots.
    """

    def __init__(
        self,
        preset: str | Policy = "paper",
        magnitude: int | None = None,
        num_ops: int | None = None,
        ops: Sequence[str] | None = None,
        flip: float | int | None = None,
        *,
        sensor_size: Sequence[int] | None = None,
        rng: np.random.Generator | int | None = None,
        data: str | None = None,
    ) -> None:
        """Takes a preset and changes what is given besides, as `NDA` does.

        Args:
            preset: `paper`, `code`, `MxNy`, `none`, a TOML file, or a `Policy`.
            magnitude: level, 1 to 3.
            num_ops: operations that a recording gets.
            ops: names of the operations to draw from.
            flip: probability of mirroring left to right.
            sensor_size: (width, height), pixels, for calls that do not name it, as in a `Compose`.
            rng: generator or seed that decides the lots.
            data: data set whose released code `code` means.

        Raises:
            PolicyError: a value outside its range, or an unknown name.
        """
        self.policy = adapted(preset, data, magnitude=magnitude, num_ops=num_ops, ops=ops, flip=flip)
        self.sensor_size = sensor_size
        self.rng = np.random.default_rng(rng)

    def __call__(self, events: np.ndarray, sensor_size: Sequence[int] | None = None) -> np.ndarray:
        """The moved events; their type, order and times stay, and those that leave the sensor are gone.

        Args:
            events: structured array [n] with the fields x, y and p, as core_utils, tonic or Prophesee name them.
            sensor_size: (width, height), pixels; what follows, such as tonic's polarities, is ignored. By default that
                of the constructor.

        Raises:
            EventsError: no sensor size, a missing field, or a pixel outside the sensor.
        """
        sensor_size = self.sensor_size if sensor_size is None else sensor_size
        if sensor_size is None:
            raise EventsError("the sensor is unknown", "give sensor_size=(width, height) here or to EventNDA")
        return move(events, self.sample_params(sensor_size), sensor_size)

    def sample_params(self, sensor_size: Sequence[int]) -> Params:
        """Draws the parameters of one recording."""
        width, height = sensor_size[:2]
        return self.policy.draw(self.rng, (height, width))

    def apply(self, events: np.ndarray, params: Params, sensor_size: Sequence[int]) -> np.ndarray:
        """Moves a recording by given parameters."""
        return move(events, params, sensor_size)


def move(events: np.ndarray, params: Params, sensor_size: Sequence[int]) -> np.ndarray:
    """Applies the operations of one sample to its events; the input stays as it is."""
    width, height = (int(each) for each in sensor_size[:2])
    check_events(events, width, height)
    x, y, p = (events[name].astype(np.int64) for name in ("x", "y", "p"))
    kept = np.ones(len(events), bool)
    for operation in params.operations:
        if isinstance(operation, HFlip):
            x = width - 1 - x
            p = _swapped(p) if operation.swap_polarity else p
        elif isinstance(operation, Roll):
            y, x = y + operation.dy, x + operation.dx
            if operation.wrap:  # `kept` knows what had left before, so that it does not come in again
                y, x = y % height, x % width
        elif isinstance(operation, Cutout):
            (top, bottom), (left, right) = operation.rows(), operation.columns()
            kept &= ~((y >= top) & (y < bottom) & (x >= left) & (x < right))
        else:
            y, x = _turned(operation, y, x, height, width)
        kept &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
    moved = events[kept]
    for name, values in (("x", x), ("y", y), ("p", p)):
        moved[name] = values[kept]
    return moved


def check_events(events: np.ndarray, width: int, height: int) -> None:
    """Checks that events have pixels and polarities, inside the sensor.

    Raises:
        EventsError: they do not.
    """
    names = events.dtype.names or ()
    if missing := [name for name in ("x", "y", "p") if name not in names]:
        raise EventsError(f"events have no field {missing[0]!r}, they are {events.dtype}")
    outside = (events["x"] < 0) | (events["x"] >= width) | (events["y"] < 0) | (events["y"] >= height)
    if outside.any():
        index = int(outside.argmax())
        x, y = events["x"], events["y"]
        swapped = x.max() < height and y.max() < width and min(x.min(), y.min()) >= 0
        raise EventsError(
            f"event {index} at x={x[index]}, y={y[index]} lies outside the sensor of width {width} and height {height}",
            "width and height look swapped" if swapped else "sensor_size is (width, height)",
        )


def _turned(
    operation: Rotate | ShearX, y: np.ndarray, x: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where a rotation or shear takes pixels: to the nearest, the lower one of two."""
    (yy, yx), (xy, xx) = np.linalg.inv(np.reshape(inverse_matrix(operation), (2, 2)))
    middle, centre = (height - 1) / 2, (width - 1) / 2
    y, x = y - middle, x - centre
    return _nearest(yy * y + yx * x + middle), _nearest(xy * y + xx * x + centre)


def _nearest(place: np.ndarray) -> np.ndarray:
    return np.ceil(np.round(place - 0.5, 9)).astype(np.int64)


def _swapped(p: np.ndarray) -> np.ndarray:
    if len(p) and not 0 <= p.min() <= p.max() <= 1:
        raise EventsError("polarities are swapped between 0 and 1, but events have others", "map -1 to 0 first")
    return 1 - p
