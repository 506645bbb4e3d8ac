"""Events, and the count frames that networks see."""

import warnings
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from core_utils.errors import UserError

EVENT = np.dtype([("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "i1")])
"""One event: time in microseconds, column, row, polarity (1 = brighter, 0 = darker)."""


def events_to_frames(
    events: np.ndarray,
    time_steps: int,
    sensor_size: tuple[int, int],
    by: Literal["time", "number"] = "time",
    remainder: Literal["last", "drop"] = "last",
    dtype: npt.DTypeLike = np.float32,
    signed: bool = False,
) -> np.ndarray:
    """Counts events by time step, polarity and pixel.

    Args:
        events: structured array [n] with the fields of `EVENT` in any order and any integer type, polarity also bool;
            times do not decrease.
        time_steps: T, at least 1.
        sensor_size: (width, height) in pixels.
        by: "time" gives the steps equal durations, half open but for the last; "number" gives them n // T events each.
        remainder: where the last n mod T events go with by="number": to the last step, or nowhere.
        dtype: of the counts.
        signed: polarities are -1 and 1 instead of 0 and 1.

    Returns:
        Counts, shape [T, 2, height, width]. Without "drop" they sum to n. Events that share one time are the last step.

    Raises:
        UserError: a missing field, times that decrease, a pixel outside the sensor, a polarity of another value, fewer
            than T events with by="number", no time step, an unknown option, or counts too large for `dtype`.

    Warns:
        UserWarning: there is no event.

    Reference: the two ways of slicing are those of the CIFAR10-DVS protocol (arXiv 2202.11946 drops the remainder).
    """
    width, height = sensor_size
    if time_steps < 1:
        raise UserError(f"time_steps must be at least 1, got {time_steps}")
    if by not in ("time", "number") or remainder not in ("last", "drop"):
        raise UserError(
            f"by={by!r}, remainder={remainder!r} is unknown", "by is time or number, remainder last or drop"
        )
    t, x, y, p = _columns(events, width, height, (-1, 1) if signed else (0, 1))
    if len(events) == 0:
        warnings.warn("a recording without events gives empty frames", stacklevel=2)
        return np.zeros((time_steps, 2, height, width), dtype)
    starts = _starts_by_time(t, time_steps) if by == "time" else _starts_by_number(len(t), time_steps)
    used = len(t) // time_steps * time_steps if (by, remainder) == ("number", "drop") else len(t)
    # Step by step, numbers of cells and their counters stay in the processor's cache.
    counts = np.empty((time_steps, 2 * height * width), np.intp)
    for step, (start, stop) in enumerate(pairwise([*starts, used])):
        cell = (p[start:stop] > 0).astype(np.intp)
        for column, size in ((y, height), (x, width)):
            cell *= size
            cell += column[start:stop].astype(np.intp)
        counts[step] = np.bincount(cell, minlength=2 * height * width)
    if np.issubdtype(dtype, np.integer) and counts.max() > np.iinfo(dtype).max:
        raise UserError(
            f"a pixel counts {counts.max()} events, more than {np.dtype(dtype)} holds", "choose a wider dtype"
        )
    return counts.astype(dtype).reshape(time_steps, 2, height, width)


def resize_frames(
    frames: np.ndarray,
    size: int | tuple[int, int],
    method: Literal["nearest", "area", "sum", "bilinear"] = "area",
) -> np.ndarray:
    """Frames of another size.

    Args:
        frames: shape [..., height, width].
        size: new height and width, pixels; one number for both.
        method: "nearest" keeps one pixel of those that fall together (of 128 x 128 to 48 x 48 every seventh) and the
            dtype; "area" takes their mean; "sum" adds them, so that the total stays; "bilinear" weighs them by a
            triangle as wide as two new pixels, as PyTorch's bilinear interpolation with antialiasing does.

    Returns:
        Shape [..., new height, new width]; floating but for "nearest": float32, or float64 if the frames are.

    Raises:
        UserError: fewer than two axes, a size below 1, or an unknown method.
    """
    rows, columns = size if isinstance(size, tuple) else (size, size)
    if frames.ndim < 2 or 0 in frames.shape[-2:] or min(rows, columns) < 1:
        raise UserError(f"cannot resize frames of shape {list(frames.shape)} to {rows} x {columns}")
    if method == "nearest":
        y, x = (np.arange(new) * old // new for new, old in zip((rows, columns), frames.shape[-2:], strict=True))
        return frames[..., y[:, None], x]
    if method not in _WEIGHTS:
        raise UserError(f"method {method!r} is unknown", "method is nearest, area, sum or bilinear")
    dtype: type[np.floating] = np.float64 if frames.dtype == np.float64 else np.float32
    vertical, horizontal = (
        _WEIGHTS[method](new, old).astype(dtype) for new, old in zip((rows, columns), frames.shape[-2:], strict=True)
    )
    *leading, height, width = frames.shape
    # Two products over all frames: a product a frame is so small that BLAS spends its time starting threads.
    narrowed = (frames.astype(dtype, copy=False).reshape(-1, width) @ horizontal.T).reshape(-1, height, columns)
    resized = narrowed.swapaxes(1, 2).reshape(-1, height) @ vertical.T
    return np.ascontiguousarray(resized.reshape(-1, columns, rows).swapaxes(1, 2)).reshape(*leading, rows, columns)


def _shares(new: int, old: int) -> np.ndarray:
    """How much of every old pixel lies in every new one, shape [new, old]; columns sum to 1."""
    edges = np.arange(new + 1) * (old / new)
    left, right = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    return np.maximum(0, np.minimum(right, pixel + 1) - np.maximum(left, pixel))


def _means(new: int, old: int) -> np.ndarray:
    return _shares(new, old) * (new / old)


def _triangles(new: int, old: int) -> np.ndarray:
    """A triangle around the centre of every new pixel, at least as wide as the pixels on either side."""
    scale = old / new
    distance = (np.arange(new)[:, None] + 0.5) * scale - (np.arange(old) + 0.5)
    weights = np.maximum(0, 1 - np.abs(distance) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


_WEIGHTS = {"sum": _shares, "area": _means, "bilinear": _triangles}


def _starts_by_time(times: np.ndarray, time_steps: int) -> np.ndarray:
    """The first event of every step, in exact integers: step k begins at first + ceil(k * duration / T)."""
    first, duration = int(times[0]), int(times[-1]) - int(times[0])
    edges = [first + (k * duration + time_steps - 1) // time_steps for k in range(time_steps)]
    return np.searchsorted(times, np.array(edges, times.dtype))


def _starts_by_number(count: int, time_steps: int) -> np.ndarray:
    if count < time_steps:
        raise UserError(f"{count} events cannot fill {time_steps} steps", 'slice by="time", or take fewer steps')
    return np.arange(time_steps) * (count // time_steps)


def _columns(events: np.ndarray, width: int, height: int, polarities: tuple[int, int]) -> list[np.ndarray]:
    """Times, columns, rows and polarities, each in one piece of memory, after checks of all of them."""
    names = events.dtype.names or ()
    if not all(name in names and events.dtype[name].kind in "iub" for name in ("t", "x", "y", "p")):
        raise UserError(f"events must have the integer fields t, x, y and p, got {events.dtype}")
    t, x, y, p = (np.ascontiguousarray(events[name]) for name in ("t", "x", "y", "p"))
    if (index := _first(t[1:] < t[:-1])) is not None:
        raise UserError(f"time decreases from event {index} to {index + 1}", "sort the events by t")
    if (index := _first((x < 0) | (x >= width) | (y < 0) | (y >= height))) is not None:
        swapped = x.max() < height and y.max() < width and min(x.min(), y.min()) >= 0
        raise UserError(
            f"event {index} at x={x[index]}, y={y[index]} lies outside the sensor of width {width} and height {height}",
            "width and height look swapped" if swapped else "sensor_size is (width, height)",
        )
    darker, brighter = polarities
    if p.dtype != bool and (index := _first((p != darker) & (p != brighter))) is not None:
        raise UserError(
            f"event {index} has polarity {p[index]}, not {darker} or {brighter}", "signed=True reads -1 and 1"
        )
    return [t, x, y, p]


def _first(wrong: np.ndarray) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None
