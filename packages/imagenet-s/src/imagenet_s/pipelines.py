"""A pre-processing pipeline as a value: seven stages from a file's bytes to the tensor that a model sees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from core_utils.jsonable import jsonable
from imagenet_s.colour import Nv12
from imagenet_s.decoding import MAX_PIXELS, decoder
from imagenet_s.errors import PipelineError
from imagenet_s.orientation import exif_orientation, orient
from imagenet_s.resizing import resize_all, resizer

Geometry = Literal["squash", "shorter-side", "shorter-side-round", "longer-side-pad"]
Crop = Literal["center", "center-floor"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST_RESIZED = 178_000_000
"""Pixels; keeping the ratio of a very long image could ask for more memory than there is."""

_FIELDS = {
    "decode": ("decoder", "on_nonrgb", "truncated", "max_pixels"),
    "orientation": ("orientation",),
    "colour": ("colour",),
    "resize": ("resizer", "geometry", "resize_size"),
    "crop": ("size", "crop", "fill"),
    "normalise": ("scale", "channels", "mean", "std", "layout"),
    "precision": ("dtype",),
}
STAGES = tuple(_FIELDS)
"""The stages in the order in which they run."""


@dataclass(frozen=True)
class Pipeline:
    """What happens to an image file before a model sees it. The defaults are the paper's reference.

    Attributes:
        decoder: name of the decoder.
        resizer: name of the resizer.
        size: side of the square that the model sees, pixels.
        resize_size: what `geometry` resizes to, pixels; None is 8/7 of `size`, rounded half to even, and `size` itself
            for "longer-side-pad".
        geometry: "squash" makes a square and does not keep the aspect ratio; "shorter-side" keeps it and cuts the
            longer side down to an integer as torchvision does, "shorter-side-round" rounds it as TensorFlow and DALI
            do; "longer-side-pad" makes the longer side fit and fills up.
        crop: "center" rounds offsets half to even as the authors and torchvision do, "center-floor" rounds down as
            TensorFlow and transformers do. Where the image is smaller than the crop, it is padded.
        orientation: "apply" turns the image as its EXIF tag asks, "ignore" does not.
        colour: "rgb", or the round trip through a video format.
        mean: what is subtracted after scaling, by channel in the order of `channels`.
        std: what is divided by then.
        scale: what the 8-bit values are multiplied by first.
        channels: their order in the tensor.
        layout: [3, S, S] or [S, S, 3], named with their batch.
        dtype: the tensor's type.
        fill: RGB colour of padding.
        on_nonrgb: who turns CMYK, palettes, alpha and more than 8 bits into RGB: "pillow" for every decoder alike, or
            each library by its own rule, "native".
        truncated: whether a file without its end is an "error", or read as far as it goes, "allow".
        max_pixels: a file that declares more is refused before it is decoded.
    """

    decoder: str = "pillow"
    resizer: str = "pillow-bilinear"
    size: int = 224
    resize_size: int | None = None
    geometry: Geometry = "squash"
    crop: Crop = "center"
    orientation: Literal["ignore", "apply"] = "ignore"
    colour: Literal["rgb"] | Nv12 = "rgb"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    scale: float = 1 / 255
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16"] = "float32"
    fill: tuple[int, int, int] = (0, 0, 0)
    on_nonrgb: Literal["pillow", "native"] = "pillow"
    truncated: Literal["error", "allow"] = "error"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        _check(vars(self))
        if self.resize_size == _usual_resize(self.size, self.geometry):
            object.__setattr__(self, "resize_size", None)  # so that equal pipelines compare equal

    @property
    def resize_to(self) -> int:
        """`resize_size`, or what it is when nothing was said, pixels."""
        return _usual_resize(self.size, self.geometry) if self.resize_size is None else self.resize_size

    def __call__(self, data: bytes) -> Float[np.ndarray, "_ _ _"]:
        """The tensor of a file: [3, S, S] or [S, S, 3], in `dtype`.

        Raises:
            DecodeError: the bytes are no image that the decoder reads.
        """
        return self.tensor(self.pixels(data))

    def pixels(self, data: bytes) -> UInt8[np.ndarray, "S S 3"]:
        """What the geometry leaves of a file, RGB."""
        return self.fit(self.source(data))

    def source(self, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded image in its orientation and colours, before its size changes; all resizers share it."""
        return self.prepare(self.decoded(data), data)

    def decoded(self, data: bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The image by the pipeline's decoder, or by that of another name under the pipeline's policies."""
        return decoder(name or self.decoder).decode(
            data, on_nonrgb=self.on_nonrgb, truncated=self.truncated, max_pixels=self.max_pixels
        )

    def prepare(self, decoded: UInt8[np.ndarray, "h w 3"], data: bytes) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Orientation and colour of an image that was decoded from `data`."""
        return self._coloured(self._oriented(decoded, data))

    def fit(self, source: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "S S 3"]:
        """Resizes and crops."""
        return self._cropped(self._resized(source))

    def fit_all(
        self, source: UInt8[np.ndarray, "h w 3"], names: Iterable[str]
    ) -> Iterator[tuple[str, UInt8[np.ndarray, "S S 3"]]]:
        """`fit` by each of several resizers, with a single copy into Pillow."""
        size = _target(source.shape[0], source.shape[1], self.geometry, self.resize_to)
        for name, resized in resize_all(source, size, names):
            yield name, self._cropped(resized)

    def tensor(self, pixels: UInt8[np.ndarray, "S S 3"]) -> Float[np.ndarray, "_ _ _"]:
        """Normalises and sets the precision."""
        return self._normalised(pixels).astype(self.dtype, copy=False)

    def stages(self, data: bytes) -> dict[str, np.ndarray]:
        """What each stage makes of a file: decoded, oriented, coloured, resized, cropped (uint8), normalised (float32)."""
        decoded = self.decoded(data)
        oriented = self._oriented(decoded, data)
        coloured = self._coloured(oriented)
        resized = self._resized(coloured)
        cropped = self._cropped(resized)
        return {
            "decoded": decoded,
            "oriented": oriented,
            "coloured": coloured,
            "resized": resized,
            "cropped": cropped,
            "normalised": self._normalised(cropped),
        }

    def _oriented(self, image: UInt8[np.ndarray, "h w 3"], data: bytes) -> UInt8[np.ndarray, "h2 w2 3"]:
        return orient(image, exif_orientation(data)) if self.orientation == "apply" else image

    def _coloured(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return self.colour(image) if isinstance(self.colour, Nv12) else image

    def _resized(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        height, width = _target(image.shape[0], image.shape[1], self.geometry, self.resize_to)
        return resizer(self.resizer).resize(image, (height, width))

    def _cropped(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "S S 3"]:
        size = self.size
        missing = max(0, size - image.shape[0]), max(0, size - image.shape[1])
        if any(missing):
            padded = np.empty((image.shape[0] + missing[0], image.shape[1] + missing[1], 3), np.uint8)
            padded[:] = self.fill
            top, left = missing[0] // 2, missing[1] // 2
            padded[top : top + image.shape[0], left : left + image.shape[1]] = image
            image = padded
        top, left = (self._offset(side - size) for side in image.shape[:2])
        return np.ascontiguousarray(image[top : top + size, left : left + size])

    def _offset(self, surplus: int) -> int:
        return surplus // 2 if self.crop == "center-floor" else round(surplus / 2)

    def _normalised(self, pixels: UInt8[np.ndarray, "S S 3"]) -> Float[np.ndarray, "_ _ _"]:
        """Divides by 1 / scale, in float32: for 255 that is what torchvision's ToTensor computes, to the last bit."""
        image = pixels if self.channels == "rgb" else pixels[..., ::-1]
        axes = (3, 1, 1) if self.layout == "NCHW" else (1, 1, 3)
        image = image.transpose(2, 0, 1) if self.layout == "NCHW" else image
        out = np.empty(image.shape, np.float32)
        np.divide(image, np.float32(1 / self.scale), out=out, casting="unsafe")
        out -= np.array(self.mean, np.float32).reshape(axes)
        out /= np.array(self.std, np.float32).reshape(axes)
        return out

    def to_json(self) -> str:
        """All fields as JSON text, with the resize size that was meant."""
        return json.dumps(jsonable(self) | {"resize_size": self.resize_to}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Pipeline:
        """The pipeline that `to_json` wrote.

        Raises:
            PipelineError: the text is no JSON object, or holds an unknown field or value.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise PipelineError(f"a pipeline that is no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise PipelineError(f"a pipeline must be a JSON object, got {type(fields).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(fields.keys() - set(known))
        if unknown:
            raise PipelineError(f"a pipeline has no field {unknown[0]!r}", f"fields are {', '.join(known)}")
        for name, kind in (("mean", float), ("std", float), ("fill", int)):
            if name in fields:
                fields[name] = tuple(kind(value) for value in fields[name])
        if "scale" in fields:
            fields["scale"] = float(fields["scale"])
        if isinstance(fields.get("colour"), dict):
            fields["colour"] = Nv12(**fields["colour"])
        _check(vars(PAPER) | fields)
        return cls(**fields)

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name what this pipeline does, the same everywhere."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @classmethod
    def preset(cls, name: str) -> Pipeline:
        """A pipeline that is in common use: paper, torchvision, timm-bicubic, opencv-typical, tf1-slim or dali-like."""
        from imagenet_s.presets import preset

        return preset(name)

    @classmethod
    def from_timm(cls, source: Any) -> Pipeline:
        """The pipeline that a timm model, or its `pretrained_cfg`, is evaluated with."""
        from imagenet_s.presets import from_timm

        return from_timm(source)

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> Pipeline:
        """The pipeline of a `preprocessor_config.json`, its folder, or its content."""
        from imagenet_s.presets import from_hf

        return from_hf(source)


_CHOICES: dict[str, tuple[str, ...]] = {
    "geometry": ("squash", "shorter-side", "shorter-side-round", "longer-side-pad"),
    "crop": ("center", "center-floor"),
    "orientation": ("ignore", "apply"),
    "channels": ("rgb", "bgr"),
    "layout": ("NCHW", "NHWC"),
    "dtype": ("float32", "float16"),
    "on_nonrgb": ("pillow", "native"),
    "truncated": ("error", "allow"),
}


def replace_stage(a: Pipeline, stage: str, b: Pipeline) -> Pipeline:
    """`a` with one stage of `b`; after all stages, in any order, it equals `b`.

    Raises:
        PipelineError: no such stage.
    """
    if stage not in _FIELDS:
        raise PipelineError(f"no stage is called {stage!r}", f"stages are {', '.join(STAGES)}")
    taken = {name: getattr(b, name) for name in _FIELDS[stage]}
    return dataclasses.replace(a, **taken | {"resize_size": (b if stage == "resize" else a).resize_to})


def stages_that_differ(a: Pipeline, b: Pipeline) -> tuple[str, ...]:
    """Names of the stages in which two pipelines are not the same, in the order in which they run."""
    return tuple(stage for stage in STAGES if replace_stage(a, stage, b) != a)


def _check(values: Mapping[str, Any]) -> None:
    """Refuses values of fields that mean nothing."""
    for name in ("size", "resize_size", "max_pixels"):
        value = values[name]
        if name == "resize_size" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PipelineError(f"{name} must be a whole number of at least 1, got {value!r}")
    for name, allowed in _CHOICES.items():
        if values[name] not in allowed:
            raise PipelineError(f"{name} must be one of {', '.join(allowed)}, got {values[name]!r}")
    if values["colour"] != "rgb" and not isinstance(values["colour"], Nv12):
        raise PipelineError(f"colour must be 'rgb' or Nv12(...), got {values['colour']!r}")
    mean, std, scale = values["mean"], values["std"], values["scale"]
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std, scale))):
        raise PipelineError("mean and std must hold three finite numbers each, and scale must be finite")
    if min(std) <= 0 or scale <= 0:
        raise PipelineError(f"std and scale must be positive, got {std} and {scale}")
    if len(values["fill"]) != 3 or not all(0 <= value <= 255 for value in values["fill"]):
        raise PipelineError(f"fill must hold three values from 0 to 255, got {values['fill']}")


def _usual_resize(size: int, geometry: str) -> int:
    """The authors' 8/7 of the size. Theirs is a float, which Pillow refuses; round() goes half to even."""
    return size if geometry == "longer-side-pad" else max(1, round(8 * size / 7))


def _target(height: int, width: int, geometry: str, to: int) -> tuple[int, int]:
    """The (height, width) that an image is resized to."""
    if geometry == "squash":
        return to, to
    along = max(height, width) if geometry == "longer-side-pad" else min(height, width)
    whole = int if geometry == "shorter-side" else round
    target = tuple(to if side == along else max(1, whole(to * side / along)) for side in (height, width))
    if math.prod(target) > LARGEST_RESIZED:
        raise PipelineError(
            f"{geometry} would resize {height} x {width} pixels to {target[0]} x {target[1]}, "
            f"more than {LARGEST_RESIZED} in all"
        )
    return target[0], target[1]


PAPER = Pipeline()
"""The authors' reference: Pillow, Pillow's bilinear to a square of 256, the middle 224."""
