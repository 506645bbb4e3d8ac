"""Which pipeline made these tensors: a search over geometries, resizers, decoders and colour round trips."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from imagenet_s.colour import Nv12
from imagenet_s.decoding import decoders
from imagenet_s.errors import DecodeError, ImagenetSError, SampleError
from imagenet_s.normalisations import COMMON, Normalisation, known_normalisations
from imagenet_s.orientation import exif_orientation
from imagenet_s.pipelines import PAPER, Pipeline, stages_that_differ
from imagenet_s.presets import PRESETS
from imagenet_s.rendering import Renderer
from imagenet_s.resizing import resizers
from imagenet_s.samples import Sample, Samples, as_samples
from imagenet_s.tensors import Dumped, read_tensors

_IMAGES = 8
_EXACT = 0.01  # levels, root mean square: float32 leaves 1e-5, and any other kernel at least 0.02
_CLOSE = 0.5
_JOINT = 8


@dataclass(frozen=True)
class Candidate:
    """A pipeline and how well it reproduces the tensors.

    Attributes:
        pipeline: with the normalisation that fits best.
        error: root mean square difference, in levels of 0..255, after that normalisation.
        exact: whether that is no more than rounding.
        alike: "decoder/resizer" of other candidates with the same error that differ in these alone.
    """

    pipeline: Pipeline
    error: float
    exact: bool
    alike: tuple[str, ...] = ()


def identify(
    tensors: str | Path | Mapping[str, np.ndarray] | Dumped,
    samples: Samples | Iterable[Sample | tuple[bytes, int | None]],
    *,
    start: Pipeline = PAPER,
    top: int = 10,
) -> list[Candidate]:
    """Ranks pipelines by how well they reproduce dumped tensors.

    Geometry and orientation first, with every size in common use; then, by turns, the resizer, the decoder and the
    colour round trip, each out of all that are installed. Scale, mean, std and channel order come from least squares.

    Args:
        tensors: a folder of .npy files named after the samples, or arrays by name.
        samples: the image files that they were made of.
        start: a guess; of equal candidates the one nearest to it comes first.
        top: how many to return.

    Returns:
        Candidates, best first.

    Raises:
        SampleError: no tensor belongs to a sample.
        ImagenetSError: nothing resembles the tensors.
    """
    samples = as_samples(samples)
    dumped = tensors if isinstance(tensors, Dumped) else read_tensors(tensors, samples)
    return _Search(dumped, samples, start).run()[:top]


@dataclass(frozen=True)
class _Fit:
    """Tensors as gain * pixels + bias, by channel of the tensor."""

    error: float
    order: str
    gain: Float64[np.ndarray, 3]
    bias: Float64[np.ndarray, 3]


class _Search:
    """The state of one search: pictures decoded once, and every candidate that was tried."""

    def __init__(self, dumped: Dumped, samples: Samples, start: Pipeline) -> None:
        self._size = dumped.values.shape[1]
        self._dumped = dumped
        self._start = _with(start, size=self._size, resize_size=_resize_of(start, self._size))
        self._tried: dict[Pipeline, _Fit] = {}
        self._values: list[np.ndarray] = []
        self._renderers: list[Renderer] = []
        self._tags: list[int] = []
        for at in _chosen(samples, dumped):
            data = samples[dumped.index[at]].data
            renderer = Renderer(data)
            try:
                renderer.source(self._start)
            except DecodeError:
                continue
            self._values.append(dumped.values[at])
            self._renderers.append(renderer)
            self._tags.append(exif_orientation(data))
        if not self._renderers:
            raise SampleError("none of the images that the tensors belong to can be read")

    def run(self) -> list[Candidate]:
        best = self._best(self._geometries())
        if self._tried[best].error > _CLOSE:
            best = self._best(self._each(best, "resize_size", _near(best.resize_to)))
        for _ in range(3):
            before = best
            best = self._best(self._each(best, "resizer", _available(resizers())))
            best = self._best(self._each(best, "decoder", _available(decoders())))
            if self._tried[best].error > _EXACT:
                best = self._best(self._each(best, "crop", ("center", "center-floor")))
                best = self._best(self._each(best, "colour", _colours()))
            if best == before:
                break
        if not self._is_exact(best):
            best = self._best(self._joint(best))
        return self._ranked()

    def _geometries(self) -> list[Pipeline]:
        size = self._size
        sizes = {self._start.resize_to, size, *(round(size / share) for share in (0.875, 0.9, 0.95, 0.965))}
        sizes |= {math.floor(size / 0.875), *([256] if size <= 256 else [])}
        turned = ("ignore", "apply") if any(tag != 1 for tag in self._tags) else (self._start.orientation,)
        combined = itertools.product(("squash", "shorter-side"), sorted(sizes), turned)
        plain = [
            _with(self._start, geometry=geometry, resize_size=to, orientation=orientation)
            for geometry, to, orientation in combined
        ]
        padded = [_with(self._start, geometry="longer-side-pad", resize_size=size, orientation=o) for o in turned]
        presets = [
            _with(preset, size=size, resize_size=_resize_of(preset, size), orientation=orientation)
            for preset, orientation in itertools.product(PRESETS.values(), turned)
        ]
        return [self._start, *plain, *padded, *presets]

    def _joint(self, best: Pipeline) -> list[Pipeline]:
        """Sizes near the best with the resizers that did best: one by one, each may make up for another's error."""
        names = dict.fromkeys(pipeline.resizer for pipeline in sorted(self._tried, key=self._order)[:200])
        combined = itertools.product(_near(best.resize_to), list(names)[:_JOINT], (self._start.decoder, best.decoder))
        return [
            _with(best, resize_size=to, resizer=resizer_name, decoder=decoder_name)
            for to, resizer_name, decoder_name in combined
        ]

    def _each(self, pipeline: Pipeline, field: str, values: Iterable[Any]) -> list[Pipeline]:
        to = {} if field == "resize_size" else {"resize_size": pipeline.resize_to}
        return [_with(pipeline, **to | {field: value}) for value in values]

    def _best(self, candidates: Iterable[Pipeline]) -> Pipeline:
        for pipeline in candidates:
            if pipeline not in self._tried:
                self._tried[pipeline] = self._fit(pipeline)
        return min(self._tried, key=self._order)

    def _order(self, pipeline: Pipeline) -> tuple[float, int]:
        return round(self._tried[pipeline].error, 3), len(stages_that_differ(self._start, pipeline))

    def _fit(self, pipeline: Pipeline) -> _Fit:
        try:
            pixels = np.stack([renderer.pixels(pipeline) for renderer in self._renderers])
        except ImagenetSError:  # what cannot make this picture at this size made none of the tensors
            return _Fit(math.inf, "rgb", np.ones(3), np.zeros(3))
        both = [(order, *_least_squares(_in_order(pixels, order), np.stack(self._values))) for order in ("rgb", "bgr")]
        order, error, gain, bias = min(both, key=lambda each: each[1])
        return _Fit(error, order, gain, bias)

    def _ranked(self) -> list[Candidate]:
        groups: dict[tuple, list[Pipeline]] = {}
        for pipeline in sorted(self._tried, key=self._order):
            fit = self._tried[pipeline]
            if math.isfinite(fit.error):
                rest = _with(pipeline, decoder="pillow", resizer="pillow-bilinear", resize_size=pipeline.resize_to)
                groups.setdefault((round(fit.error, 4), rest), []).append(pipeline)
        if not groups:
            raise ImagenetSError("no pipeline resembles these tensors", "are they made of these samples?")
        return [
            Candidate(
                self._normalised(group[0]),
                self._tried[group[0]].error,
                self._is_exact(group[0]),
                tuple(f"{each.decoder}/{each.resizer}" for each in group[1:]),
            )
            for group in groups.values()
        ]

    def _is_exact(self, pipeline: Pipeline) -> bool:
        return self._tried[pipeline].error < max(_EXACT, self._rounding(pipeline))

    def _rounding(self, pipeline: Pipeline) -> float:
        """The error that float16 tensors leave, in levels."""
        if not self._is_half:
            return 0.0
        largest = np.abs(self._dumped.values).max(axis=(0, 1, 2))
        return float((largest * 2.0**-11 / np.abs(self._tried[pipeline].gain)).max())

    @property
    def _is_half(self) -> bool:
        values = self._dumped.values
        with np.errstate(over="ignore"):
            # whole levels are float16 numbers too, and say nothing
            return bool((values.astype(np.float16) == values).all()) and bool((np.rint(values) != values).any())

    def _normalised(self, pipeline: Pipeline) -> Pipeline:
        """With the normalisation that the fit shows, by its exact numbers where they are known ones."""
        fit = self._tried[pipeline]
        own = Normalisation(self._start.scale, self._start.mean, self._start.std)
        known = [own, *known_normalisations(own).values(), *COMMON.values()]
        # mean and std of a BGR tensor may be written in either order
        known += [Normalisation(each.scale, each.mean[::-1], each.std[::-1]) for each in known]
        near = min(known, key=lambda each: each.distance(fit.gain, fit.bias))
        if not near.explains(fit.gain, fit.bias, 5e-4 if self._is_exact(pipeline) else 0.02):
            std = 1 / (255 * fit.gain)
            mean = -fit.bias * std
            near = Normalisation(1 / 255, _rounded(mean), _rounded(std))
        dtype = "float16" if self._is_half else "float32"
        return _with(
            pipeline,
            resize_size=pipeline.resize_to,
            scale=near.scale,
            mean=near.mean,
            std=near.std,
            channels=fit.order,
            layout=self._dumped.layout,
            dtype=dtype,
        )


def _with(pipeline: Pipeline, **changes: Any) -> Pipeline:
    return dataclasses.replace(pipeline, **changes)


def _least_squares(
    pixels: np.ndarray, values: Float32[np.ndarray, "n S S 3"]
) -> tuple[float, Float64[np.ndarray, 3], Float64[np.ndarray, 3]]:
    """Error in levels, gain and bias of values over pixels; an infinite error for gains that are not positive."""
    x, y = pixels.reshape(-1, 3).astype(np.float64), values.reshape(-1, 3).astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    gain = (x * y).sum(axis=0) / np.maximum((x * x).sum(axis=0), 1e-12)
    if (gain <= 0).any():
        return math.inf, np.ones(3), np.zeros(3)
    rest = (y - gain * x) / gain
    return float(np.sqrt((rest**2).mean())), gain, mean_y - gain * mean_x


def _chosen(samples: Samples, dumped: Dumped) -> list[int]:
    """A few images over the whole set, with some that have an orientation tag if there are any among the first."""
    count = len(dumped.index)
    step = max(1, count // _IMAGES)
    even = list(range(0, count, step))[:_IMAGES]
    looked_at = range(min(count, 200))
    tagged = [at for at in looked_at if exif_orientation(samples[dumped.index[at]].data) != 1][: _IMAGES // 2]
    return sorted(set(tagged) | set(even[: _IMAGES - len(set(tagged) - set(even))]))


def _resize_of(pipeline: Pipeline, size: int) -> int:
    """The pipeline's resize size at another size of input."""
    return max(1, round(pipeline.resize_to * size / pipeline.size))


def _near(size: int) -> range:
    return range(max(1, size - 3), size + 4)


def _available(entries: Mapping[str, Any]) -> list[str]:
    return [name for name, entry in entries.items() if entry.available]


def _colours() -> list[Any]:
    choices: Any = itertools.product(("bt601", "bt709"), ("limited", "full"), ("nearest", "linear"))
    return ["rgb", *(Nv12(*choice) for choice in choices)]


def _in_order(pixels: np.ndarray, order: str) -> np.ndarray:
    return pixels if order == "rgb" else pixels[..., ::-1]


def _rounded(values: Float64[np.ndarray, 3]) -> tuple[float, float, float]:
    first, second, third = (float(f"{value:.5g}") for value in values)
    return first, second, third
