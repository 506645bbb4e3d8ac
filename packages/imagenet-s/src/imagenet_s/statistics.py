"""What changes when a classifier sees the same images through other pipelines (section 4 of arXiv 2109.00864, and more).

Predictions are class indices, [combinations, images]; one row is the reference. Shares are fractions, never percent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from imagenet_s.errors import ImagenetSError

_RESAMPLES = 2000


def accuracy(
    predictions: Int64[np.ndarray, "combos images"], labels: Int64[np.ndarray, " images"]
) -> Float64[np.ndarray, " combos"]:
    """The share of images that each combination gets right."""
    return (predictions == labels).mean(axis=1)


def drop(
    predictions: Int64[np.ndarray, "combos images"], labels: Int64[np.ndarray, " images"], reference: int
) -> Float64[np.ndarray, " combos"]:
    """How much accuracy each combination loses against the reference; negative where it gains."""
    right = (predictions == labels).sum(axis=1)
    return (right[reference] - right) / len(labels)


def disagreement(predictions: Int64[np.ndarray, "combos images"], reference: int) -> Float64[np.ndarray, " combos"]:
    """The share of images whose prediction differs from the reference's; needs no labels."""
    return (predictions != predictions[reference]).mean(axis=1)


def consistent_accuracy(predictions: Int64[np.ndarray, "combos images"], labels: Int64[np.ndarray, " images"]) -> float:
    """The share of images that every combination gets right."""
    return float((predictions == labels).all(axis=0).mean())


def fooled_rate(
    predictions: Int64[np.ndarray, "combos images"], labels: Int64[np.ndarray, " images"], reference: int
) -> float:
    """The share of images right under the reference and wrong elsewhere: the paper's real-world adversarial examples."""
    right = predictions == labels
    return float((right[reference] & ~right.all(axis=0)).mean())


@dataclass(frozen=True)
class Spread:
    """How a figure varies over combinations.

    Attributes:
        n: number of combinations.
        mean: their mean.
        std: population standard deviation.
        worst: the smallest.
        best: the largest.
    """

    n: int
    mean: float
    std: float
    worst: float
    best: float

    @property
    def range(self) -> float:
        """From the smallest to the largest."""
        return self.best - self.worst


def spread(values: Float64[np.ndarray, " combos"]) -> Spread:
    """Mean, population standard deviation and extremes over combinations.

    Raises:
        ImagenetSError: there are no values.
    """
    if not len(values):
        raise ImagenetSError("a spread needs at least one combination")
    low, high = float(values.min()), float(values.max())
    # A mean of equal values may be off by one rounding, which would leave the values spread around it.
    mean, std = (low, 0.0) if low == high else (float(values.mean()), float(values.std()))
    return Spread(len(values), mean, std, low, high)


@dataclass(frozen=True)
class Churn:
    """Images whose correctness changes against the reference.

    Attributes:
        fixed: wrong under the reference, right here.
        broken: right under the reference, wrong here.
        p_value: McNemar's exact two-sided test that either is as likely.
    """

    fixed: int
    broken: int
    p_value: float


def churn(
    predictions: Int64[np.ndarray, "combos images"], labels: Int64[np.ndarray, " images"], reference: int
) -> list[Churn]:
    """Fixed and broken images of every combination, with McNemar's test."""
    right = predictions == labels
    fixed = (right & ~right[reference]).sum(axis=1)
    broken = (~right & right[reference]).sum(axis=1)
    return [Churn(int(f), int(b), mcnemar(int(f), int(b))) for f, b in zip(fixed, broken, strict=True)]


def mcnemar(fixed: int, broken: int) -> float:
    """The exact two-sided p-value of so uneven a split of the discordant images; 1 if there are none."""
    from scipy.stats import binomtest

    return float(binomtest(fixed, fixed + broken, 0.5).pvalue) if fixed + broken else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given; a family-wise error rate for any dependence of the tests."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def drop_interval(
    fixed: int, broken: int, images: int, *, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the drop by the paired bootstrap over images.

    An image adds +1 (broken), -1 (fixed) or 0 to the drop. Drawing images with replacement and counting is drawing the
    counts from a multinomial, so the order of the images cannot matter.

    Args:
        fixed: images wrong under the reference and right here.
        broken: the reverse.
        images: all images.
        seed: of the resampling.
        confidence: of the interval.

    Returns:
        Low and high end, as fractions.
    """
    shares = np.array([fixed, broken, images - fixed - broken]) / images
    counts = np.random.default_rng(seed).multinomial(images, shares, size=_RESAMPLES)
    low, high = np.quantile((counts[:, 1] - counts[:, 0]) / images, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def smallest_detectable_drop(flips: int, images: int) -> float:
    """The drop that `images` images can tell from none, with that many changed predictions: 1.96 sqrt(flips) / n."""
    return 1.96 * math.sqrt(flips) / images


@dataclass(frozen=True)
class Decomposition:
    """A decoder by resizer table as mean + decoder effect + resizer effect + interaction.

    Attributes:
        mean: of the whole table.
        decoders: main effect by decoder; they sum to zero.
        resizers: main effect by resizer; they sum to zero.
        interaction: what is left, [decoders, resizers]; rows and columns sum to zero.
        shares: share of the table's sum of squares by "decoder", "resizer" and "interaction"; all 0 for a flat table.
    """

    mean: float
    decoders: Mapping[str, float]
    resizers: Mapping[str, float]
    interaction: Float64[np.ndarray, "decoders resizers"]
    shares: Mapping[str, float]


def decompose(
    table: Float64[np.ndarray, "decoders resizers"], decoders: Sequence[str], resizers: Sequence[str]
) -> Decomposition:
    """Splits a full table of accuracies into what the decoder, the resizer and only both together explain."""
    mean = table.mean()
    by_decoder, by_resizer = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    interaction = table - mean - by_decoder[:, None] - by_resizer
    squares = {
        "decoder": float(len(resizers) * (by_decoder**2).sum()),
        "resizer": float(len(decoders) * (by_resizer**2).sum()),
        "interaction": float((interaction**2).sum()),
    }
    total = sum(squares.values())
    flat = float(np.ptp(table)) == 0
    return Decomposition(
        float(mean),
        {name: float(effect) for name, effect in zip(decoders, by_decoder, strict=True)},
        {name: float(effect) for name, effect in zip(resizers, by_resizer, strict=True)},
        interaction,
        {name: 0.0 if flat else value / total for name, value in squares.items()},
    )


@dataclass(frozen=True)
class LogitChange:
    """What a change of the pipeline does to the logits of each image.

    Attributes:
        mean_delta: mean over classes of |delta logit|, [images].
        max_delta: largest |delta logit|, [images].
        total_variation: between the two softmax distributions, 0 to 1, [images].
        divergence: Kullback-Leibler divergence from the reference's distribution, nats, [images].
        confidence_change: of the class that the reference predicts; negative where the model is less sure, [images].
    """

    mean_delta: Float64[np.ndarray, " images"]
    max_delta: Float64[np.ndarray, " images"]
    total_variation: Float64[np.ndarray, " images"]
    divergence: Float64[np.ndarray, " images"]
    confidence_change: Float64[np.ndarray, " images"]


def logit_change(
    logits: Shaped[np.ndarray, "images classes"], reference: Shaped[np.ndarray, "images classes"]
) -> LogitChange:
    """Compares logits with the reference's, image by image."""
    logits, reference = logits.astype(np.float64), reference.astype(np.float64)
    delta = np.abs(logits - reference)
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    p, q = np.exp(log_p), np.exp(log_q)
    images, top = np.arange(len(p)), reference.argmax(axis=1)
    return LogitChange(
        delta.mean(axis=1),
        delta.max(axis=1),
        np.abs(p - q).sum(axis=1) / 2,
        np.maximum((p * (log_p - log_q)).sum(axis=1), 0.0),
        q[images, top] - p[images, top],
    )


def shapley(stages: Sequence[Hashable], value: Callable[[frozenset], float]) -> dict[Hashable, float]:
    """Each stage's share of the whole change, averaged over all orders in which the stages can be changed.

    Args:
        stages: what can be changed.
        value: the effect of changing that set of stages; asked for every subset, so 2^n times.

    Returns:
        Shares that sum to `value(all) - value(none)`.
    """
    values = {
        frozenset(subset): value(frozenset(subset))
        for size in range(len(stages) + 1)
        for subset in itertools.combinations(stages, size)
    }
    n = len(stages)
    return {
        stage: sum(
            (values[subset | {stage}] - values[subset]) / (n * math.comb(n - 1, len(subset)))
            for subset in values
            if stage not in subset
        )
        for stage in stages
    }


def distinct(groups: Sequence[Hashable], keep: Collection[int] = ()) -> list[int]:
    """One index of each group, the one in `keep` where there is one, else the first.

    Averages over combinations that are bit-identical would be diluted by their copies.
    """
    chosen: dict[Hashable, int] = {}
    for index in [*keep, *range(len(groups))]:
        chosen.setdefault(groups[index], index)
    return sorted(chosen.values())


def _log_softmax(logits: Float64[np.ndarray, "images classes"]) -> Float64[np.ndarray, "images classes"]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
