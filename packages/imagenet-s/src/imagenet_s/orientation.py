"""The EXIF orientation tag, read from a file's own bytes, and what it asks for."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

_TAG = 0x0112
_SHORT = 3
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def exif_orientation(data: bytes) -> int:
    """The orientation tag of a JPEG, PNG, WebP or TIFF file, 1 to 8; 1 where there is none or it is damaged."""
    for block in _exif_blocks(data):
        value = _orientation_of(block)
        if 1 <= value <= 8:
            return value
    return 1


def orient(image: UInt8[np.ndarray, "h w c"], orientation: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The image as its camera's orientation tag wants it shown.

    Args:
        image: [height, width, channels].
        orientation: 1 to 8.

    Reference: EXIF 2.32, tag 0x0112: the number says where the stored first row and first column belong.
    """
    if orientation in (5, 6, 7, 8):  # the first row is a column
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    """The TIFF structures that a file calls its EXIF."""
    if data[:2] == b"\xff\xd8":
        for marker, body in _jpeg_segments(data):
            if marker == 0xE1 and body[:6] == b"Exif\0\0":
                yield body[6:]
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        yield from _chunks(data, start=8, name_first=False, order=">", after=4, wanted=b"eXIf")
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        for block in _chunks(data, start=12, name_first=True, order="<", after=0, wanted=b"EXIF"):
            yield block.removeprefix(b"Exif\0\0")
    elif data[:4] in (b"II*\0", b"MM\0*"):
        yield data


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of the segments before the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif marker in (0xD9, 0xDA):
            return
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            yield marker, data[at + 4 : at + 2 + length]
            at += 2 + max(2, length)


def _chunks(data: bytes, *, start: int, name_first: bool, order: str, after: int, wanted: bytes) -> Iterator[bytes]:
    """The bodies of the chunks called `wanted`, in a PNG or RIFF file; RIFF pads to even lengths."""
    at = start
    while at + 8 <= len(data):
        if name_first:
            name, (length,) = data[at : at + 4], struct.unpack_from(f"{order}I", data, at + 4)
        else:
            (length,), name = struct.unpack_from(f"{order}I", data, at), data[at + 4 : at + 8]
        if name == wanted:
            yield data[at + 8 : at + 8 + length]
        at += 8 + length + after + (length % 2 if name_first else 0)


def _orientation_of(tiff: bytes) -> int:
    """The value of the tag in the first directory, or 0."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 0
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    if at + 2 > len(tiff):
        return 0
    (entries,) = struct.unpack_from(f"{order}H", tiff, at)
    for entry in range(at + 2, min(at + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == _TAG and kind == _SHORT:
            return int(value)
    return 0
