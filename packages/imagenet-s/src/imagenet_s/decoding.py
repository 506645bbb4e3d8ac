"""The decoders an image may meet in deployment, under one policy for colours, damage and size."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from imagenet_s import codecs, versions
from imagenet_s.errors import DecodeError, ImagenetSError, PipelineError, ShapeMismatchError, TruncatedImageError
from imagenet_s.headers import Header, orientation_of, read_header

MAX_PIXELS = 178_956_970
"""Pillow's own limit, at which it refuses a file as a decompression bomb."""

PAPER = ("pillow", "opencv", "ffmpeg")
"""The decoders of the paper."""

_JPEG_ONLY = frozenset({"JPEG"})
_END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class Decoder:
    """A library, with its settings, that turns a file's bytes into RGB pixels.

    Attributes:
        name: as pipelines and reports write it.
        requires: the extra of imagenet-s that brings its library, "" for none.
        description: one line.
        read: bytes to pixels, without policy.
        module: what must be importable.
        tell_version: of the library, and of its codec where it says.
        formats: those its own code reads, in Pillow's words; None for any. Pillow reads the others for it.
        foreign: whether it may be given files that Pillow cannot even name.
    """

    name: str
    requires: str
    description: str
    read: Callable[[bytes], np.ndarray] = field(repr=False, compare=False)
    module: str = field(default="", repr=False)
    tell_version: Callable[[], str] = field(default=str, repr=False, compare=False)
    formats: frozenset[str] | None = field(default=_JPEG_ONLY, repr=False)
    foreign: bool = field(default=False, repr=False)

    def decode(
        self,
        data: bytes,
        *,
        source: str = "",
        on_nonrgb: Literal["pillow", "native"] = "pillow",
        truncated: Literal["error", "allow"] = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes the first frame to RGB, without applying an orientation tag.

        Args:
            data: the file.
            source: the file's name, for messages.
            on_nonrgb: who turns CMYK, palettes, alpha and more than 8 bits into RGB: Pillow for every decoder alike, or
                each library by its own rule. Grey is each decoder's own in both, repeated in three channels.
            truncated: whether a file without its end marker is an error or decoded as far as it goes.
            max_pixels: a file that declares more is refused before it is decoded.

        Raises:
            DecodeError: `data` is not an image that this decoder reads.
            TruncatedImageError: the end marker is missing.
            ShapeMismatchError: the pixels are not of the size that the file declares.
            ImportError: the library is not installed; the message names the extra.
        """
        if self.why_not is not None:
            raise ImportError(self.why_not)
        try:
            header = self._header(data, max_pixels)
            if header is not None and not header.complete:
                if truncated == "error":
                    raise TruncatedImageError("the file ends before its end marker")
                # An end marker makes every library fill what is missing instead of waiting for it.
                data += _END_OF_IMAGE if header.format == "JPEG" else b""
            pixels = _as_rgb(self._reader(header, on_nonrgb)(data))
        except DecodeError as error:
            raise type(error)(f"{source or 'image'}: decoder {self.name!r}: {error}") from None
        except (ImagenetSError, ImportError, MemoryError):
            raise
        except Exception as error:  # every library has its own exceptions for bad bytes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DecodeError(f"{source or 'image'}: decoder {self.name!r}: {reason}") from error
        if header is not None and pixels.shape[:2] != (header.height, header.width):
            raise ShapeMismatchError(
                f"{source or 'image'}: decoder {self.name!r} gives {pixels.shape[1]}x{pixels.shape[0]}, the file says "
                f"{header.width}x{header.height} (orientation tag {orientation_of(data)})"
            )
        return pixels

    @property
    def available(self) -> bool:
        """Whether it can decode here."""
        return self.why_not is None

    @property
    def version(self) -> str:
        """Of the library and its codec; "" where it is not available."""
        return self.tell_version() if self.available else ""

    @property
    def why_not(self) -> str | None:
        """Why it is not available and what would make it so; None where it is."""
        return versions.why_not(self.name, self.module, self.requires)

    def _header(self, data: bytes, max_pixels: int) -> Header | None:
        try:
            header = read_header(data)
        except DecodeError:
            if self.foreign and data:
                return None
            raise
        if header.height * header.width > max_pixels:
            raise DecodeError(
                f"{header.width}x{header.height} pixels are more than max_pixels={max_pixels}; raise it if you trust it"
            )
        return header

    def _reader(self, header: Header | None, on_nonrgb: str) -> Callable[[bytes], np.ndarray]:
        if header is None:
            return self.read
        unread = self.formats is not None and header.format not in self.formats
        return codecs.pillow if unread or (on_nonrgb == "pillow" and not header.plain) else self.read


def decoders() -> Mapping[str, Decoder]:
    """All decoders by name, also those whose library is missing."""
    return MappingProxyType(_DECODERS)


def decoder(name: str) -> Decoder:
    """The decoder called `name`.

    Raises:
        PipelineError: there is none; the message lists near names.
    """
    name = _ALIASES.get(name, name)
    if name not in _DECODERS:
        near = difflib.get_close_matches(name, [*_DECODERS, *_ALIASES], n=3, cutoff=0.4) or sorted(_DECODERS)
        raise PipelineError(f"unknown decoder {name!r}; near: {', '.join(near)}")
    return _DECODERS[name]


def register_decoder(name: str, fn: Callable[[bytes], np.ndarray], version: str = "", description: str = "") -> Decoder:
    """Adds a decoder of your own; `fn` gives uint8 pixels, (h, w, 3) RGB or (h, w) grey.

    Raises:
        PipelineError: the name is taken, empty, or holds a slash.
    """
    if not name or "/" in name or name in _DECODERS or name in _ALIASES:
        raise PipelineError(f"decoder name {name!r} is taken or not usable; choose one without a slash")
    added = Decoder(name, "", description, fn, tell_version=partial(str, version), formats=None, foreign=True)
    _DECODERS[name] = added
    return added


def identical_decoders(
    probes: Iterable[bytes] | None = None, names: Iterable[str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Groups the available decoders that give the same pixels on every probe, found by decoding them.

    Args:
        probes: image files; the built-in set where None.
        names: of decoders; all available ones where None.

    Returns:
        Groups in the registry's order, each name in one of them.
    """
    from imagenet_s.probes import probe_files

    files = tuple(probe_files().values() if probes is None else probes)
    groups: dict[tuple[bytes, ...], list[str]] = {}
    for name in _DECODERS if names is None else names:
        one = decoder(name)
        if one.available or names is not None:
            groups.setdefault(tuple(_fingerprint(one, data) for data in files), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def _fingerprint(one: Decoder, data: bytes) -> bytes:
    """The pixels, or that there are none: a decoder that refuses a probe is not like one that reads it."""
    try:
        pixels = one.decode(data)
    except ImagenetSError:
        return b"refused"
    return repr(pixels.shape).encode() + pixels.tobytes()


def _as_rgb(pixels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if pixels.dtype != np.uint8:
        raise TypeError(f"the library gives {pixels.dtype} pixels, not uint8")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"the library gives an array of shape {pixels.shape}, not (h, w, 3)")
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


def _jpeglib(name: str, version: str, description: str) -> Decoder:
    return Decoder(
        name,
        "jpeglib",
        description,
        partial(codecs.jpeglib, version=version),
        "jpeglib",
        partial(versions.jpeglib, version),
    )


def _turbo(name: str, description: str, *, fast_dct: bool = False, box_upsampling: bool = False) -> Decoder:
    read = partial(codecs.turbo, fast_dct=fast_dct, box_upsampling=box_upsampling)
    return Decoder(name, "", description, read, "simplejpeg", partial(versions.plain, "simplejpeg"))


_ALIASES = {"tf-default": "turbo-fastdct"}
_DECODERS: dict[str, Decoder] = {
    one.name: one
    for one in (
        Decoder("pillow", "", "Pillow", codecs.pillow, "PIL", versions.pillow, None),
        Decoder(
            "opencv",
            "",
            "OpenCV imdecode",
            codecs.opencv,
            "cv2",
            versions.opencv,
            frozenset({"JPEG", "PNG", "BMP", "WEBP", "TIFF"}),
        ),
        Decoder(
            "ffmpeg",
            "ffmpeg",
            "FFmpeg with bicubic chroma, as its command line",
            codecs.ffmpeg,
            "av",
            versions.ffmpeg,
            frozenset({"JPEG", "PNG", "BMP", "WEBP", "TIFF"}),
        ),
        _turbo("turbo", "libjpeg-turbo, accurate"),
        _turbo("turbo-fastdct", "libjpeg-turbo, fast inverse DCT (TensorFlow's default)", fast_dct=True),
        _turbo("turbo-boxup", "libjpeg-turbo, box chroma (stands in for nvJPEG's default)", box_upsampling=True),
        _turbo("turbo-fast", "libjpeg-turbo, fast inverse DCT and box chroma", fast_dct=True, box_upsampling=True),
        _jpeglib("ijg-6b", "6b", "IJG libjpeg 6b"),
        _jpeglib("ijg-8d", "8d", "IJG libjpeg 8d, chroma scaled by DCT"),
        _jpeglib("ijg-9e", "9e", "IJG libjpeg 9e, chroma scaled by DCT (the paper's Pillow)"),
        _jpeglib("mozjpeg", "mozjpeg403", "mozjpeg 4.0.3"),
        Decoder(
            "torchvision",
            "torchvision",
            "torchvision.io on the CPU",
            codecs.torchvision,
            "torchvision",
            partial(versions.plain, "torchvision"),
            frozenset({"JPEG", "PNG"}),
        ),
        Decoder(
            "vips",
            "vips",
            "libvips",
            codecs.vips,
            "pyvips",
            versions.vips,
            frozenset({"JPEG", "PNG", "WEBP", "TIFF"}),
        ),
        Decoder(
            "kornia-rs",
            "kornia",
            "kornia-rs (zune-jpeg)",
            codecs.kornia_rs,
            "kornia_rs",
            partial(versions.plain, "kornia_rs"),
        ),
    )
}
