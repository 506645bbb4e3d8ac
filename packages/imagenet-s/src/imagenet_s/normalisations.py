"""Names for what a model's input is normalised with, from the gain and bias that a tensor shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from imagenet_s.pipelines import IMAGENET_MEAN, IMAGENET_STD

_TOLERANCE = 0.02  # of the gain, and of the bias in standard deviations; the means and std in use are further apart

_RAW, _NOT_DIVIDED, _TWICE = "0..255 as they are", "not divided by 255 before mean and std", "divided by 255 twice"
_BY_255 = (_RAW, _NOT_DIVIDED, _TWICE)

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """(x * scale - mean) / std on 0..255, by channel."""

    scale: float
    mean: Triple
    std: Triple

    @property
    def gain(self) -> Float64[np.ndarray, 3]:
        """What a level adds."""
        return self.scale / np.array(self.std, np.float64)

    @property
    def bias(self) -> Float64[np.ndarray, 3]:
        """What black is."""
        return -np.array(self.mean, np.float64) / np.array(self.std, np.float64)

    def explains(
        self, gain: Float64[np.ndarray, 3], bias: Float64[np.ndarray, 3], tolerance: float = _TOLERANCE
    ) -> bool:
        """Whether that gain and bias are this normalisation's."""
        return self.distance(gain, bias) < tolerance

    def distance(self, gain: Float64[np.ndarray, 3], bias: Float64[np.ndarray, 3]) -> float:
        """The largest relative error of the gain, or error of the bias relative to the white point."""
        white = np.maximum(np.abs(self.bias), 255 * self.gain)
        return float(
            max(np.abs(gain / self.gain - 1).max(), (np.abs(bias - self.bias) / np.maximum(white, 1e-9)).max())
        )


COMMON = {
    _RAW: Normalisation(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0..1": Normalisation(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "-1..1 (mean and std 0.5)": Normalisation(1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's mean and std": Normalisation(1 / 255, IMAGENET_MEAN, IMAGENET_STD),
    "(x - 127) / 128": Normalisation(1.0, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    "CLIP's mean and std": Normalisation(
        1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    "ImageNet's mean of 0..255, no std": Normalisation(1.0, (123.675, 116.28, 103.53), (1.0, 1.0, 1.0)),
}


def known_normalisations(own: Normalisation) -> dict[str, Normalisation]:
    """What a tensor may be normalised with instead of `own`: its usual accidents first, then what others use."""
    none, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return {
        _NOT_DIVIDED: Normalisation(own.scale * 255, own.mean, own.std),
        _TWICE: Normalisation(own.scale / 255, own.mean, own.std),
        "the mean is not subtracted": Normalisation(own.scale, none, own.std),
        "not divided by the std": Normalisation(own.scale, own.mean, one),
        **COMMON,
    }


def explain(
    gain: Float64[np.ndarray, 3], bias: Float64[np.ndarray, 3], known: Mapping[str, Normalisation]
) -> tuple[str, str]:
    """A kind of finding, and words for a gain and bias."""
    name = min(known, key=lambda each: known[each].distance(gain, bias))
    if known[name].explains(gain, bias):
        return "scale 255" if name in _BY_255 else "mean/std", f"b is normalised otherwise: {name}"
    std = 1 / (255 * gain)
    figures = (", ".join(f"{value:.3f}" for value in values) for values in (-bias * std, std))
    return "mean/std", "b looks normalised with mean {} and std {} on 0..1".format(*figures)
