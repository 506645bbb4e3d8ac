"""Recordings written as files, and what they hold in numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core_utils.errors import UserError
from core_utils.files import write_atomically


def write_dat(path: Path, events: np.ndarray, sensor_size: tuple[int, int]) -> None:
    """Writes a Prophesee `.dat` file of version 2, as N-Cars has it and `read_events` reads it.

    Args:
        path: the file; its folder is made.
        events: array of dtype `core_utils.spiking.events.EVENT`.
        sensor_size: (width, height), pixels, for the header.

    Raises:
        UserError: a time or pixel that the format cannot hold.
        FileError: the folder is not writable, or the disk is full.
    """
    for name, most in (("t", 2**32 - 1), ("x", 2**14 - 1), ("y", 2**14 - 1)):
        if len(events) and not 0 <= events[name].min() <= events[name].max() <= most:
            raise UserError(
                f"{name} of a .dat file must lie in 0..{most}, got {events[name].min()} to {events[name].max()}"
            )
    width, height = sensor_size
    header = f"% Data file containing CD events.\n% Version 2\n% Width {width}\n% Height {height}\n".encode()
    records = np.empty(len(events), [("time", "<u4"), ("address", "<u4")])
    records["time"] = events["t"]
    places = events["x"].astype(np.uint32), events["y"].astype(np.uint32) << 14, events["p"].astype(np.uint32) << 28
    records["address"] = places[0] | places[1] | places[2]
    write_atomically(path, header + b"\x00\x08" + records.tobytes())


def statistics_of(events: np.ndarray) -> dict[str, float | int]:
    """Number of events, duration (microseconds), rate (1/s), extent in pixels, and share of brighter events.

    Args:
        events: at least one, of dtype `core_utils.spiking.events.EVENT`.
    """
    duration = int(events["t"][-1] - events["t"][0])
    return {
        "events": len(events),
        "duration_us": duration,
        "rate": len(events) / (duration * 1e-6) if duration else float("inf"),
        "x_min": int(events["x"].min()),
        "x_max": int(events["x"].max()),
        "y_min": int(events["y"].min()),
        "y_max": int(events["y"].max()),
        "brighter": float((events["p"] > 0).mean()),
    }
