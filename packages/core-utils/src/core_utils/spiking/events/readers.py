"""Recordings as files: N-MNIST and N-Caltech101, Prophesee, and AEDAT 2.0, 3.1 and 4.

A file is read at once and decoded as arrays. A file that was cut is read as far as its events are whole, with a
warning; one that is damaged is an error that names it.
"""

import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from core_utils.data import ClassFolder, DataError, class_folder
from core_utils.spiking.events.frames import EVENT

SUFFIXES = {".aedat", ".aedat4", ".bin", ".dat"}
"""How the names of recordings end."""

DVS128 = (128, 128)
"""Width and height of the sensor of CIFAR10-DVS and DVS-Gesture, pixels."""


class EventFolder(ClassFolder):
    """A folder of class folders of recordings."""

    def read(self, index: int, *, sort: bool = False) -> np.ndarray:
        """The events of one recording, as `read_events` gives them."""
        return read_events(self.paths[index], sort=sort)


def event_folder(root: str | Path) -> EventFolder:
    """Lists a folder of class folders of recordings, as CIFAR10-DVS, N-Caltech101 and N-Cars lay them out.

    Recordings are in the order of the numbers in their names.

    Raises:
        DataError: the folder is missing, has no class folders, or a class has no recording.
    """
    listed = class_folder(root, SUFFIXES, "recording", by_number=True)
    return EventFolder(listed.paths, listed.labels, listed.classes)


def read_events(path: str | Path, *, sort: bool = False) -> np.ndarray:
    """The events of one recording, whatever its format.

    AEDAT files say what they are in their first line; the others are known by their suffix.

    Args:
        path: the file.
        sort: put events in order of time that the file holds in another; events of one time keep their order.

    Returns:
        At least one event, dtype `EVENT`.

    Raises:
        DataError: the file cannot be read, is of no known format, damaged, without events, or holds times that
            decrease (without `sort`).

    Warns:
        UserWarning: the file was cut; names the number of bytes that were left out.
    """
    return _reader(Path(path))(path, sort=sort)


def read_bin(path: str | Path, *, sort: bool = False) -> np.ndarray:
    """N-MNIST and N-Caltech101, `.bin`: 5 bytes an event, time in 23 bits.

    A row of 240 marks no event but an overflow that adds 2**13 microseconds to every later time.

    Reference: Orchard et al., "Converting static image datasets to spiking neuromorphic datasets using saccades" (2015).
    """
    record = np.dtype([("x", "u1"), ("y", "u1"), ("p_and_time", "u1"), ("time", ">u2")])
    events = _whole(path, _content(path), record)
    time = (events["p_and_time"].astype(np.int64) & 0x7F) << 16 | events["time"]
    overflow = events["y"] == 240
    time = (_unwrapped(time, bits=23) + (np.cumsum(overflow) << 13))[~overflow]
    events = events[~overflow]
    return _recording(path, time, events["x"], events["y"], events["p_and_time"] >> 7, sort=sort)


def read_dat(path: str | Path, *, sort: bool = False) -> np.ndarray:
    """Prophesee, `.dat` of version 2, as N-Cars has it: lines with `%`, type and size of an event, then 8 bytes each."""
    content = _content(path)
    start = _after_comments(content, b"%")
    header = content[:start].splitlines()
    if not header or any(line.split()[1:] in ([b"Version", b"0"], [b"Version", b"1"]) for line in header):
        raise DataError(f"{path} is not a Prophesee recording of version 2")
    if content[start : start + 2] not in (b"\x00\x08", b"\x0c\x08"):
        raise DataError(f"{path} does not hold events of 8 bytes", "its header is cut or damaged")
    events = _whole(path, content, np.dtype([("time", "<u4"), ("address", "<u4")]), start + 2)
    address = events["address"]
    time = _unwrapped(events["time"].astype(np.int64), bits=32)
    return _recording(path, time, address & 0x3FFF, address >> 14 & 0x3FFF, address >> 28 & 1, sort=sort)


def read_aedat2(path: str | Path, *, sort: bool = False) -> np.ndarray:
    """AEDAT 2.0 of a DVS128, as CIFAR10-DVS has it: lines with `#`, then big-endian pairs of address and time.

    The sensor counts columns from the right, a polarity bit of 1 is darker, and the camera lay on its side: x is
    127 minus the address's row and y is 127 minus its column, so that pictures stand upright. This is what
    spikingjelly and tonic do; it was **not verified on a real file**. Addresses above 15 bits are no pixels (jAER
    keeps them for synchronisation) and are left out.
    """
    content = _content(path)
    if not content.startswith(b"#!AER-DAT2"):
        raise DataError(f"{path} is not AEDAT 2.0", "expected #!AER-DAT2.0 in its first line")
    events = _whole(path, content, np.dtype([("address", ">u4"), ("time", ">u4")]), _after_comments(content, b"#"))
    pixels = events["address"] < 1 << 15
    if len(events) > 2 * np.count_nonzero(pixels):
        raise DataError(f"{path} holds addresses that are not a DVS128's")
    address = events["address"][pixels].astype(np.uint32)
    time = _unwrapped(events["time"].astype(np.int64), bits=32)[pixels]
    return _recording(path, time, 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1), sort=sort)


def read_aedat31(path: str | Path, *, sort: bool = False) -> np.ndarray:
    """AEDAT 3.1, as DVS-Gesture has it: packets with a header of 28 bytes, of which those of polarity events count.

    Events that are marked invalid are left out.
    """
    content = _content(path)
    if not content.startswith(b"#!AER-DAT3.1"):
        raise DataError(f"{path} is not AEDAT 3.1", "expected #!AER-DAT3.1 in its first line")
    record = np.dtype([("data", "<u4"), ("time", "<u4")])
    parts = [
        (np.frombuffer(content, record, count, start), overflow)
        for start, count, overflow in _polarity_packets(path, content, record.itemsize)
    ]
    events = np.concatenate([np.empty(0, record), *(events for events, _ in parts)])
    overflow = np.repeat([each for _, each in parts], [len(events) for events, _ in parts]).astype(np.int64)
    valid = events["data"] & 1 == 1
    data, time = events["data"][valid], (events["time"] + (overflow << 31))[valid]
    return _recording(path, time, data >> 17, data >> 2 & 0x7FFF, data >> 1 & 1, sort=sort)


def read_aedat4(path: str | Path, *, sort: bool = False) -> np.ndarray:
    """AEDAT 4 with one stream of events, through the package `aedat`."""
    try:
        import aedat
    except ImportError:
        raise DataError(f"{path} is AEDAT 4, which needs the package aedat", "install core-utils[aedat]") from None
    streams: dict[int, list[np.ndarray]] = {}
    try:
        for packet in aedat.Decoder(str(path)):
            if "events" in packet:
                streams.setdefault(packet["stream_id"], []).append(packet["events"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the decoder, in Rust, panics at damage, and a panic is no Exception
        if not streams:
            raise DataError(f"{path} is damaged: {error}") from None
        warnings.warn(f"{path} is cut or damaged and was read up to there: {error}", stacklevel=2)
    if len(streams) > 1:
        raise DataError(f"{path} holds {len(streams)} streams of events, one was expected")
    (packets,) = streams.values() or [[]]
    if not packets:
        raise DataError(f"{path} holds no event")
    events = np.concatenate(packets)
    if max(events["x"].max(initial=0), events["y"].max(initial=0)) > 0x7FFF or events["t"].max(initial=0) >> 63:
        raise DataError(f"{path} is damaged: it holds pixels or times beyond every sensor's")
    return _recording(path, events["t"], events["x"], events["y"], events["on"], sort=sort)


_BY_MAGIC: dict[bytes, Callable[..., np.ndarray]] = {
    b"#!AER-DAT2": read_aedat2,
    b"#!AER-DAT3.1": read_aedat31,
    b"#!AER-DAT4": read_aedat4,
}
_BY_SUFFIX: dict[str, Callable[..., np.ndarray]] = {".bin": read_bin, ".dat": read_dat}


def _reader(path: Path) -> Callable[..., np.ndarray]:
    start = _content(path, 12)
    for magic, reader in _BY_MAGIC.items():
        if start.startswith(magic):
            return reader
    if start.startswith(b"#!AER-DAT") or path.suffix not in _BY_SUFFIX:
        raise DataError(
            f"{path} is of no known format: it starts with {start!r}",
            "known are .bin of N-MNIST, .dat of Prophesee, and AEDAT 2.0, 3.1 and 4",
        )
    return _BY_SUFFIX[path.suffix]


def _content(path: str | Path, count: int = -1) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _after_comments(content: bytes, mark: bytes) -> int:
    """Where the lines that start with the mark end."""
    start = 0
    while content.startswith(mark, start):
        line = content[start : content.find(b"\n", start) + 1]
        if not line:
            return len(content)
        start += len(line)
        if line.startswith(b"#!END-HEADER"):
            break
    return start


def _whole(path: str | Path, content: bytes, record: np.dtype, start: int = 0) -> np.ndarray:
    """The records from `start` on; the bytes of one that was cut are left out with a warning."""
    count, excess = divmod(max(len(content) - start, 0), record.itemsize)
    if excess:
        _warn(path, f"its last {excess} bytes are no whole event and were left out")
    return np.frombuffer(content, record, count, start) if count else np.empty(0, record)


def _warn(path: str | Path, what: str) -> None:
    warnings.warn(f"{path} was cut: {what}", stacklevel=4)


def _polarity_packets(path: str | Path, content: bytes, size: int) -> Iterator[tuple[int, int, int]]:
    """First byte, number of events and overflows of the clock of every packet of polarity events."""
    header = struct.Struct("<hhiiiiii")  # type, source, size, place of the time, overflows, capacity, number, valid
    start = _after_comments(content, b"#")
    while start < len(content):
        if (left := len(content) - start) < header.size:
            _warn(path, f"its last {left} bytes are no whole packet and were left out")
            return
        kind, _, each, _, overflow, _, number, _ = header.unpack_from(content, start)
        if each < 1 or number < 0 or overflow < 0 or (kind == 1 and each != size):
            raise DataError(f"{path} is damaged at byte {start}: no packet starts there")
        start += header.size
        if (missing := number * each - (len(content) - start)) > 0:
            _warn(path, f"{missing} bytes of its last packet are missing")
        if kind == 1:
            yield start, min(number, (len(content) - start) // each), overflow
        start += number * each


def _unwrapped(time: np.ndarray, bits: int) -> np.ndarray:
    """A clock of so many bits as a time that goes on: where it falls by more than half its range, it has wrapped."""
    wraps = time[1:] - time[:-1] < -(1 << bits - 1)
    if not wraps.any():
        return time
    return time + np.concatenate([[0], np.cumsum(wraps) << bits])


def _recording(
    path: str | Path, time: np.ndarray, x: np.ndarray, y: np.ndarray, polarity: np.ndarray, *, sort: bool
) -> np.ndarray:
    if not len(time):
        raise DataError(f"{path} holds no event")
    events = np.empty(len(time), EVENT)
    for name, column in zip(EVENT.names or (), (time, x, y, polarity), strict=True):
        events[name] = column
    falls = time[1:] < time[:-1]
    if not falls.any():
        return events
    if not sort:
        index = int(falls.argmax())
        raise DataError(f"{path}: time decreases from event {index} to {index + 1}", "sort the events by time")
    return events[np.argsort(time, kind="stable")]
