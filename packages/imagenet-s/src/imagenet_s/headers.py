"""What an image file says of itself before any decoder sees it: size, colour, frames, and whether its end is there."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from imagenet_s.errors import DecodeError

if TYPE_CHECKING:
    from PIL.Image import Image
else:
    Image = Any  # the tests' shape checks read the annotations below, Pillow is loaded late

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_FRAME_MARKERS = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_SCAN, _END = 0xDA, 0xD9
# In entropy-coded data 0xff is followed by 0 (a stuffed byte) or a restart marker; anything else ends the scan.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_ORIENTATION = 0x0112
_NO_PIXELS = "a JPEG header without image data"


@dataclass(frozen=True)
class Header:
    """What the file declares, read without decoding a pixel.

    Attributes:
        format: Pillow's word: "JPEG", "PNG", "GIF", ...
        height: in pixels, before any orientation tag is applied.
        width: in pixels, likewise.
        mode: Pillow's word for the colour: "RGB", "L", "CMYK" (or YCCK), "P", "RGBA", "I;16", ...
        bits: of one channel.
        frames: of an animation; a decoder gives the first.
        progressive: whether a JPEG comes in several scans.
        complete: False when the end marker is missing.
    """

    format: str
    height: int
    width: int
    mode: str
    bits: int = 8
    frames: int = 1
    progressive: bool = False
    complete: bool = True

    @property
    def plain(self) -> bool:
        """Whether this is one picture in 8-bit RGB or grey, on which libraries agree how colours become RGB."""
        return self.mode in {"RGB", "L"} and self.bits == 8 and self.frames == 1

    @property
    def flags(self) -> tuple[str, ...]:
        """What a report should say of this file beside its pixels."""
        found = {
            f"{self.bits}-bit": self.bits > 8,
            "grey": self.mode in {"L", "1", "LA", "La", "I", "F"} or self.mode.startswith("I;16"),
            "CMYK": self.mode == "CMYK",
            "palette": self.mode in {"P", "PA"},
            "alpha": self.mode in {"RGBA", "RGBa", "LA", "La", "PA"},
            f"{self.frames} frames": self.frames > 1,
            "truncated": not self.complete,
            f"not a JPEG but {self.format}": self.format != "JPEG",
        }
        return tuple(flag for flag, holds in found.items() if holds)


def read_header(data: bytes) -> Header:
    """Reads what `data` declares.

    Raises:
        DecodeError: `data` is empty, no image that Pillow knows, or a header without pixels; the message is the reason.
    """
    if not data:
        raise DecodeError("the file is empty")
    if data.startswith(_JPEG):
        return _jpeg_header(data)
    try:
        with open_with_pillow(data) as image:
            return Header(
                str(image.format),
                image.height,
                image.width,
                *_mode_and_bits(data, image.mode),
                frames=int(getattr(image, "n_frames", 1)),
                complete=not data.startswith(_PNG) or b"IEND" in data,
            )
    except Exception as error:  # Pillow's plugins raise whatever the bytes make them stumble over
        raise DecodeError(_reason(error)) from None


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG does."""
    return data.startswith(_JPEG)


def orientation_of(data: bytes) -> int:
    """The EXIF orientation tag, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        with open_with_pillow(data) as image:
            tag = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken tag block turns no picture
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def open_with_pillow(data: bytes) -> Image:
    """Opens with Pillow, JPEG and PNG past its own limit of pixels: ours has been applied."""
    from PIL import Image, JpegImagePlugin, PngImagePlugin

    if data.startswith(_JPEG):
        return JpegImagePlugin.JpegImageFile(BytesIO(data))
    if data.startswith(_PNG):
        return PngImagePlugin.PngImageFile(BytesIO(data))
    return Image.open(BytesIO(data))


def _jpeg_header(data: bytes) -> Header:
    """Walks the markers up to the first scan, then over the scans to the end marker."""
    size: tuple[int, int] | None = None
    components, bits, progressive = 0, 8, False
    position = 2
    while True:
        position = data.find(b"\xff", position)
        while position >= 0 and data[position : position + 2] == b"\xff\xff":
            position += 1
        if position < 0 or position + 4 > len(data):
            raise DecodeError(_NO_PIXELS)
        marker = data[position + 1]
        if marker == _SCAN:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _FRAME_MARKERS and size is None:
            if position + 10 > len(data):
                raise DecodeError(_NO_PIXELS)
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            size, progressive = (height, width), marker in _PROGRESSIVE
        position += 2 + length
    if size is None:
        raise DecodeError("a JPEG whose scan has no frame header")
    if 0 in size:
        raise DecodeError(f"a JPEG that declares {size[1]}x{size[0]} pixels")
    if components not in _JPEG_MODES:
        raise DecodeError(f"a JPEG of {components} components; expected 1, 3 or 4")
    return Header("JPEG", *size, _JPEG_MODES[components], bits, 1, progressive, _reaches_end(data, position))


def _reaches_end(data: bytes, position: int) -> bool:
    """Whether the end marker follows the scans; a thumbnail's, in the header, does not count."""
    pixels = False
    while position + 4 <= len(data):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if position >= len(data) and not pixels:
            raise DecodeError(_NO_PIXELS)
        pixels = True
        found = _END_OF_SCAN.search(data, position)
        if found is None:
            return False
        if data[found.start() + 1] == _END:
            return True
        position = found.start()
    return False


def _mode_and_bits(data: bytes, mode: str) -> tuple[str, int]:
    """Pillow shows some 16-bit PNGs as 8-bit: the PNG itself is asked."""
    if data.startswith(_PNG) and len(data) > 24:
        return mode, max(8, data[24])
    return mode, 16 if mode.startswith("I;16") else 32 if mode in {"I", "F"} else 8


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its text holds an address
        return "not in a format that Pillow knows"
    return " ".join(str(error).split()) or type(error).__name__
