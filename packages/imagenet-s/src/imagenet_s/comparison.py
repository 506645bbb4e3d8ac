"""Two pipelines on files, without a model: what differs, from which stage on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagenet_s.findings import Finding, findings
from imagenet_s.orientation import exif_orientation
from imagenet_s.pipelines import Pipeline
from imagenet_s.samples import Sample, Samples
from imagenet_s.shards import BadImage

_LOOKED_AT = 24  # files whose tensors the rules of findings see


@dataclass(frozen=True)
class StageDifference:
    """How the images of two pipelines differ after a stage, over all files and values.

    Attributes:
        stage: what both have made: decoded, oriented, coloured, resized, cropped or normalised.
        mean: absolute difference, levels; for "normalised" in the tensor's own unit.
        largest: the largest.
        changed: share of values that differ.
        shapes: files whose images differ in shape; they are not in the other figures.
    """

    stage: str
    mean: float
    largest: float
    changed: float
    shapes: int


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        a: one pipeline.
        b: the other.
        n: files that both could read.
        stages: in order.
        findings: what the tensors show; empty if their shapes differ.
        errors: files left out.
    """

    a: Pipeline
    b: Pipeline
    n: int
    stages: tuple[StageDifference, ...]
    findings: tuple[Finding, ...]
    errors: tuple[BadImage, ...]


def compare(a: Pipeline, b: Pipeline, samples: Samples | Iterable[Sample]) -> Comparison:
    """Runs both pipelines on every file and compares what they made after each stage.

    Args:
        a: one pipeline; findings are told of b against it.
        b: the other.
        samples: image files.

    Raises:
        ImportError: a library is not installed.
    """
    sums: dict[str, _Sum] = {}
    tensors: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    shapes: list[tuple[int, int]] = []
    tags: list[int] = []
    errors: list[BadImage] = []
    n = 0
    for number, sample in enumerate(samples):
        try:
            one, other = a.stages(sample.data), b.stages(sample.data)
        except ImportError:
            raise
        except Exception as error:  # one bad file never costs the others
            errors.append(BadImage(number, sample.name, type(error).__name__, str(error)))
            continue
        n += 1
        for stage in one:
            sums.setdefault(stage, _Sum()).add(_upright(one[stage], a), _upright(other[stage], b))
        if len(shapes) < _LOOKED_AT:
            height, width = one["coloured"].shape[:2]
            shapes.append((height, width))
            tags.append(exif_orientation(sample.data))
            for kept, stages, pipeline in zip(tensors, (one, other), (a, b), strict=True):
                kept.append(_upright(stages["normalised"].astype(pipeline.dtype), pipeline))
    found: list[Finding] = []
    if shapes and tensors[0][0].shape == tensors[1][0].shape:
        found = findings(np.stack(tensors[0]), np.stack(tensors[1]), a, shapes, tags)
    done = tuple(each.result(stage) for stage, each in sums.items())
    return Comparison(a, b, n, done, tuple(found), tuple(errors))


class _Sum:
    def __init__(self) -> None:
        self.total = self.largest = 0.0
        self.values = self.changed = self.shapes = 0

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        if one.shape != other.shape:
            self.shapes += 1
            return
        difference = np.abs(one.astype(np.float64) - other)
        self.total += float(difference.sum())
        self.largest = max(self.largest, float(difference.max()))
        self.changed += int(np.count_nonzero(difference))
        self.values += difference.size

    def result(self, stage: str) -> StageDifference:
        values = max(self.values, 1)
        return StageDifference(stage, self.total / values, self.largest, self.changed / values, self.shapes)


def _upright(array: Any, pipeline: Pipeline) -> np.ndarray:
    """Channels last, whatever the layout."""
    is_tensor = array.dtype != np.uint8 and pipeline.layout == "NCHW"
    return np.ascontiguousarray(array.transpose(1, 2, 0) if is_tensor else array)
