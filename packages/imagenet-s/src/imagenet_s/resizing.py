"""The resizers an image may meet in deployment, and the paper's eleven among them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from imagenet_s import scalers, versions
from imagenet_s.errors import PipelineError

PAPER = (
    "pillow-nearest",
    "pillow-box",
    "pillow-bilinear",
    "pillow-hamming",
    "pillow-bicubic",
    "pillow-lanczos",
    "opencv-nearest",
    "opencv-linear",
    "opencv-area",
    "opencv-cubic",
    "opencv-lanczos4",
)
"""The resizers of the paper."""


@dataclass(frozen=True)
class Resizer:
    """A library's resize with one of its operators.

    Attributes:
        name: as pipelines and reports write it.
        requires: the extra of imagenet-s that brings its library, "" for none.
        description: one line.
        scale: pixels to pixels, unchecked.
        module: what must be importable.
        tell_version: of the library.
    """

    name: str
    requires: str
    description: str
    scale: Callable[[Any, tuple[int, int]], np.ndarray] = field(repr=False, compare=False)
    module: str = field(default="", repr=False)
    tell_version: Callable[[], str] = field(default=str, repr=False, compare=False)

    def resize(
        self, image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
    ) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
        """Resizes to `size`, (height, width), without keeping the aspect ratio.

        Raises:
            PipelineError: the image or the size has a side of zero, or the library fails on them.
            ImportError: the library is not installed; the message names the extra.
        """
        return self._run(image, image.shape[:2], size)

    @property
    def available(self) -> bool:
        """Whether it can resize here."""
        return self.why_not is None

    @property
    def version(self) -> str:
        """Of the library; "" where it is not available."""
        return self.tell_version() if self.available else ""

    @property
    def why_not(self) -> str | None:
        """Why it is not available and what would make it so; None where it is."""
        return versions.why_not(self.name, self.module, self.requires)

    def _run(self, source: Any, shape: tuple[int, ...], size: tuple[int, int]) -> UInt8[np.ndarray, "p q 3"]:
        """Resizes an array, or what its library has made of it."""
        if min(*size, *shape) < 1:
            raise PipelineError(f"resizer {self.name!r}: {shape} to {size}; each side must be at least 1")
        if self.why_not is not None:
            raise ImportError(self.why_not)
        try:
            resized = self.scale(np.ascontiguousarray(source) if isinstance(source, np.ndarray) else source, size)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # every library has its own exceptions for shapes it does not like
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PipelineError(f"resizer {self.name!r}: {shape} to {size}: {reason}") from error
        if resized.shape != (*size, 3) or resized.dtype != np.uint8:
            raise PipelineError(f"resizer {self.name!r} gives {resized.dtype} {resized.shape}, not uint8 {(*size, 3)}")
        return np.ascontiguousarray(resized)


def resizers() -> Mapping[str, Resizer]:
    """All resizers by name, also those whose library is missing."""
    return MappingProxyType(_RESIZERS)


def resizer(name: str) -> Resizer:
    """The resizer called `name`.

    Raises:
        PipelineError: there is none; the message lists near names.
    """
    if name not in _RESIZERS:
        near = difflib.get_close_matches(name, _RESIZERS, n=3, cutoff=0.4) or sorted(_RESIZERS)
        raise PipelineError(f"unknown resizer {name!r}; near: {', '.join(near)}")
    return _RESIZERS[name]


def resize_all(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], names: Iterable[str]
) -> Iterator[tuple[str, UInt8[np.ndarray, "p q 3"]]]:
    """Resizes one image by several resizers; the same pixels as one call each, with a single copy into Pillow."""
    shared: Any = None
    for name in names:
        one = resizer(name)
        if one.module == "PIL" and one.available:
            shared = scalers.as_pillow(image) if shared is None else shared
            yield name, one._run(shared, image.shape[:2], size)
        else:
            yield name, one.resize(image, size)


def register_resizer(
    name: str, fn: Callable[[np.ndarray, tuple[int, int]], np.ndarray], version: str = "", description: str = ""
) -> Resizer:
    """Adds a resizer of your own; `fn` takes uint8 (h, w, 3) and (height, width) and gives uint8 of that size.

    Raises:
        PipelineError: the name is taken, empty, or holds a slash.
    """
    if not name or "/" in name or name in _RESIZERS:
        raise PipelineError(f"resizer name {name!r} is taken or not usable; choose one without a slash")
    added = Resizer(name, "", description, fn, tell_version=partial(str, version))
    _RESIZERS[name] = added
    return added


def _pillow(operator: str) -> Resizer:
    scale = partial(scalers.pillow, resample=operator.upper())
    return Resizer(f"pillow-{operator}", "", f"Pillow {operator}", scale, "PIL", versions.pillow)


def _pillow12(operator: str) -> Resizer:
    scale = partial(scalers.pillow12, filter_name=operator)
    description = f"Pillow {operator} as before version 13, horizontal pass first (our own)"
    return Resizer(f"pillow12-{operator}", "", description, scale, "numba", versions.own)


def _opencv(operator: str) -> Resizer:
    interpolation = f"INTER_{operator.upper().replace('-', '_')}"
    scale = partial(scalers.opencv, interpolation=interpolation)
    return Resizer(f"opencv-{operator}", "", f"OpenCV {interpolation}", scale, "cv2", versions.opencv)


def _torch(mode: str, *, antialias: bool = False) -> Resizer:
    name = f"torch-{mode}" + "-aa" * antialias
    description = f"torch interpolate {mode}" + ", antialiased" * antialias
    scale = partial(scalers.torch, mode=mode, antialias=antialias)
    return Resizer(name, "", description, scale, "torch", versions.torch)


def _swscale(operator: str, flag: str) -> Resizer:
    scale = partial(scalers.swscale, interpolation=flag)
    return Resizer(f"swscale-{operator}", "ffmpeg", f"FFmpeg swscale {flag}", scale, "av", versions.ffmpeg)


def _vips(kernel: str) -> Resizer:
    scale = partial(scalers.vips, kernel=kernel)
    return Resizer(f"vips-{kernel}", "vips", f"libvips {kernel}", scale, "pyvips", versions.vips)


def _kornia(operator: str) -> Resizer:
    scale = partial(scalers.kornia_rs, interpolation=operator)
    version = partial(versions.plain, "kornia_rs")
    return Resizer(f"kornia-{operator}", "kornia", f"kornia-rs {operator}", scale, "kornia_rs", version)


_SWSCALE = {
    "fast-bilinear": "FAST_BILINEAR",
    "bilinear": "BILINEAR",
    "bicubic": "BICUBIC",
    "nearest": "POINT",
    "area": "AREA",
    "bicublin": "BICUBLIN",
    "gauss": "GAUSS",
    "sinc": "SINC",
    "lanczos": "LANCZOS",
    "spline": "SPLINE",
}
_FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")
_RESIZERS: dict[str, Resizer] = {
    one.name: one
    for one in (
        *(_pillow(operator) for operator in ("nearest", *_FILTERS)),
        *(_pillow12(operator) for operator in _FILTERS),
        *(_opencv(operator) for operator in ("nearest", "nearest-exact", "linear", "area", "cubic", "lanczos4")),
        *(_torch(mode) for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")),
        *(_torch(mode, antialias=True) for mode in ("bilinear", "bicubic")),
        Resizer(
            "tf1-bilinear",
            "",
            "TensorFlow 1's legacy bilinear, rounded half to even (our own)",
            scalers.tf1,
            "numba",
            versions.own,
        ),
        *(_swscale(operator, flag) for operator, flag in _SWSCALE.items()),
        *(_vips(kernel) for kernel in ("linear", "cubic", "lanczos3")),
        *(_kornia(operator) for operator in ("bilinear", "bicubic")),
    )
}
