"""Robustness of image classifiers to systematic noise of pre-processing (arXiv 2109.00864); no segmentation data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from imagenet_s.colour import Nv12
    from imagenet_s.decoding import Decoder, decoders, register_decoder
    from imagenet_s.diagnosis import Diagnosis, diagnose
    from imagenet_s.errors import (
        DecodeError,
        ImagenetSError,
        ModelError,
        PipelineError,
        SampleError,
        ShapeMismatchError,
        TruncatedImageError,
    )
    from imagenet_s.evaluation import Result, evaluate
    from imagenet_s.generation import generate
    from imagenet_s.grids import Grid
    from imagenet_s.identification import identify
    from imagenet_s.mixing import ConsistencyLoss, MixTransform, WorstOf
    from imagenet_s.pipelines import Pipeline
    from imagenet_s.resizing import Resizer, register_resizer, resizers
    from imagenet_s.samples import Sample, open_samples

if core_utils.CONTRACT != 1:
    raise ImportError("imagenet-s needs core-utils with contract 1")

_HOMES = {
    "colour": ("Nv12",),
    "decoding": ("Decoder", "decoders", "register_decoder"),
    "diagnosis": ("Diagnosis", "diagnose"),
    "errors": (
        "DecodeError",
        "ImagenetSError",
        "ModelError",
        "PipelineError",
        "SampleError",
        "ShapeMismatchError",
        "TruncatedImageError",
    ),
    "evaluation": ("Result", "evaluate"),
    "generation": ("generate",),
    "grids": ("Grid",),
    "identification": ("identify",),
    "mixing": ("ConsistencyLoss", "MixTransform", "WorstOf"),
    "pipelines": ("Pipeline",),
    "resizing": ("Resizer", "register_resizer", "resizers"),
    "samples": ("Sample", "open_samples"),
}

__all__ = [
    "ConsistencyLoss",
    "DecodeError",
    "Decoder",
    "Diagnosis",
    "Grid",
    "ImagenetSError",
    "MixTransform",
    "ModelError",
    "Nv12",
    "Pipeline",
    "PipelineError",
    "Resizer",
    "Result",
    "Sample",
    "SampleError",
    "ShapeMismatchError",
    "TruncatedImageError",
    "WorstOf",
    "decoders",
    "diagnose",
    "evaluate",
    "generate",
    "identify",
    "open_samples",
    "register_decoder",
    "register_resizer",
    "resizers",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
