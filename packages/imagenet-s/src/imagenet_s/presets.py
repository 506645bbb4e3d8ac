"""Pipelines that others use, and how they write theirs down."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagenet_s.errors import PipelineError
from imagenet_s.pipelines import IMAGENET_MEAN, IMAGENET_STD, PAPER, Geometry, Pipeline

_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
_SQUARE_BY_DEFAULT = (
    "vit",
    "beit",
    "deit",
    "perceiver",
    "efficientnet",
)  # families whose plain `size: 224` is a square

LITE0_MEAN = (127 / 255, 127 / 255, 127 / 255)
LITE0_STD = (128 / 255, 128 / 255, 128 / 255)
"""What EfficientNet-Lite0 was trained with, with the mean: (x - 127) / 128 on 0..255."""

PRESETS = {
    "paper": PAPER,
    # the ImageClassification preset on PIL images; resize_size is 256 for 224
    "torchvision": Pipeline(geometry="shorter-side"),
    "timm-bicubic": Pipeline(resizer="pillow-bicubic", geometry="shorter-side"),
    "lite0": Pipeline(resizer="pillow-bicubic", mean=LITE0_MEAN, std=LITE0_STD),
    # imread, which turns by EXIF, then resize(image, (224, 224)) with its default INTER_LINEAR
    "opencv-typical": Pipeline(decoder="opencv", resizer="opencv-linear", resize_size=224, orientation="apply"),
    # vgg_preprocessing, which TF-Slim also uses for its ResNets: 256, floor of the offsets, means of 0..255 and no std
    "tf1-slim": Pipeline(
        decoder="turbo-fastdct",
        resizer="tf1-bilinear",
        geometry="shorter-side-round",
        crop="center-floor",
        mean=(123.68, 116.78, 103.94),
        std=(1.0, 1.0, 1.0),
        scale=1.0,
    ),
    # decoders.image(device="mixed") turns by EXIF; linear with antialias; the mean and std of 0..255 are the same ratio
    "dali-like": Pipeline(
        decoder="turbo-boxup", resizer="torch-bilinear-aa", geometry="shorter-side-round", orientation="apply"
    ),
}


def preset(name: str) -> Pipeline:
    """The pipeline of that name.

    Raises:
        PipelineError: there is none; the message lists near names.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, cutoff=0.4)
        raise PipelineError(f"no preset is called {name!r}", f"did you mean {' or '.join(near or PRESETS)}?")
    return PRESETS[name]


def from_timm(source: Any) -> Pipeline:
    """The evaluation pipeline of a timm model, or of its `pretrained_cfg` as a mapping or an object.

    Args:
        source: anything with the fields input_size, interpolation, crop_pct, crop_mode, mean and std.

    Raises:
        PipelineError: the input is not square or not of three channels, or a field has an unknown value.
    """
    config = next(
        (getattr(source, name) for name in ("pretrained_cfg", "default_cfg") if hasattr(source, name)), source
    )
    get = config.get if isinstance(config, Mapping) else lambda name, default: getattr(config, name, default)
    channels, height, width = get("input_size", (3, 224, 224))
    if channels != 3 or height != width:
        raise PipelineError(f"input_size must be (3, S, S), got {(channels, height, width)}")
    interpolation, mode = get("interpolation", "bicubic"), get("crop_mode", None) or "center"
    if interpolation not in _RESAMPLE:
        raise PipelineError(f"timm's interpolation {interpolation!r} is none of {', '.join(_RESAMPLE)}")
    geometries: dict[str, Geometry] = {"center": "shorter-side", "squash": "squash", "border": "longer-side-pad"}
    if mode not in geometries:
        raise PipelineError(f"timm's crop_mode {mode!r} is none of {', '.join(geometries)}")
    mean, std = _three(get("mean", IMAGENET_MEAN), "mean"), _three(get("std", IMAGENET_STD), "std")
    return Pipeline(
        resizer=f"pillow-{interpolation}",
        size=int(height),
        resize_size=math.floor(height / (get("crop_pct", None) or 0.875)),
        geometry=geometries[mode],
        mean=mean,
        std=std,
        fill=(round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2])) if mode == "border" else (0, 0, 0),
    )


def from_hf(source: str | Path | Mapping[str, Any]) -> Pipeline:
    """The pipeline of a Hugging Face image processor.

    Args:
        source: a `preprocessor_config.json`, a folder that holds one, or its content.

    Raises:
        PipelineError: no such file, or it asks for what a pipeline cannot do; the message names the field.
    """
    config = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for name in ("do_pad", "rescale_offset", "include_top"):
        if config.get(name):
            raise PipelineError(f"preprocessor_config.json: {name} is not supported")
    resample = config.get("resample", 2)
    if config.get("do_resize", True) and resample not in range(len(_RESAMPLE)):
        raise PipelineError(f"preprocessor_config.json: resample {resample!r} is none of 0 to {len(_RESAMPLE) - 1}")
    normalise, rescale = config.get("do_normalize", True), config.get("do_rescale", True)
    return Pipeline(
        resizer=_hf_resizer(_RESAMPLE[resample], fast=kind.endswith("Fast")),
        crop="center-floor",
        mean=_three(config.get("image_mean", IMAGENET_MEAN), "image_mean") if normalise else (0.0, 0.0, 0.0),
        std=_three(config.get("image_std", IMAGENET_STD), "image_std") if normalise else (1.0, 1.0, 1.0),
        scale=float(config.get("rescale_factor", 1 / 255)) if rescale else 1.0,
        channels="bgr" if config.get("do_flip_channel_order") else "rgb",
        **_hf_geometry(config, kind.lower()),
    )


def _hf_resizer(filter_name: str, *, fast: bool) -> str:
    """Fast processors resize tensors with antialias, the others PIL images."""
    if not fast:
        return f"pillow-{filter_name}"
    if filter_name not in ("bilinear", "bicubic"):
        raise PipelineError(f"preprocessor_config.json: a fast processor cannot resample by {filter_name}")
    return f"torch-{filter_name}-aa"


def _hf_geometry(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """size, resize_size and geometry; a plain number means a square or the shorter side, as its family has it."""
    if not config.get("do_resize", True):
        raise PipelineError("preprocessor_config.json: do_resize is false, and images come in many sizes")
    size, crops = config.get("size", 224), config.get("do_center_crop", False)
    if isinstance(size, int):
        squares = any(kind.startswith(family) for family in _SQUARE_BY_DEFAULT) or not crops
        size = {"height": size, "width": size} if squares else {"shortest_edge": size}
    if "shortest_edge" in size and len(size) == 1:
        edge = int(size["shortest_edge"])
        if "convnext" in kind:
            squash = edge >= 384  # from there on it resizes straight to the square
            resized = edge if squash else int(edge / (config.get("crop_pct") or 224 / 256))
            return {"size": edge, "resize_size": resized, "geometry": "squash" if squash else "shorter-side"}
        if not crops:
            raise PipelineError(
                "preprocessor_config.json: shortest_edge without do_center_crop leaves images of many sizes"
            )
        return {"size": _square(config.get("crop_size", edge)), "resize_size": edge, "geometry": "shorter-side"}
    if set(size) != {"height", "width"}:
        raise PipelineError(
            f"preprocessor_config.json: size has {', '.join(size)}", "expected height and width, or shortest_edge"
        )
    edge = _square(size)
    return {
        "size": _square(config.get("crop_size", edge)) if crops else edge,
        "resize_size": edge,
        "geometry": "squash",
    }


def _square(size: int | Mapping[str, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else (size.get("height"), size.get("width"))
    if height is None or height != width:
        raise PipelineError(f"preprocessor_config.json: only squares are supported, got {size}")
    return int(height)


def _three(values: Any, name: str) -> tuple[float, float, float]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3:
        raise PipelineError(f"{name} must hold three numbers, got {list(numbers)}")
    return numbers[0], numbers[1], numbers[2]


def _read(path: Path) -> dict[str, Any]:
    path = path / "preprocessor_config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PipelineError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise PipelineError(f"{path} must hold a JSON object")
    return config
