"""Intervals and tests for shares and medians of trials, paired and not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from jethr2.errors import ParameterError


@dataclass(frozen=True)
class Comparison:
    """Two cases that flew the same trials.

    Attributes:
        only_first: trials in which only the first succeeded.
        only_second: likewise.
        p_value: McNemar's exact two-sided test that either is as likely.
        difference: share of the first less that of the second.
        low: lower end of the difference's interval.
        high: upper end.
    """

    only_first: int
    only_second: int
    p_value: float
    difference: float
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        successes: of n trials.
        n: at least 1.
        confidence: between 0 and 1.

    Returns:
        Lower and upper end.
    """
    if not 0 <= successes <= n or n < 1:
        raise ParameterError("successes", successes, f"between 0 and the number of trials, {n}")
    z = _normal_quantile(confidence)
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bounds are 0 and 1, which rounding would miss.
    low = 0.0 if successes == 0 else (middle - half) / (1 + z * z / n)
    high = 1.0 if successes == n else (middle + half) / (1 + z * z / n)
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of so uneven a split of the discordant trials; 1 if there are none."""
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def compare(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"], confidence: float = 0.95) -> Comparison:
    """Compares the successes of two cases, trial by trial."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = paired_interval(first, second, confidence)
    difference = (only_first - only_second) / len(first)
    return Comparison(only_first, only_second, mcnemar(only_first, only_second), difference, low, high)


def paired_interval(
    first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"], confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a difference of paired shares, made of the two Wilson intervals and their correlation.

    Reference: Newcombe, Statistics in Medicine 17 (1998) 2635, method 10.
    """
    n = len(first)
    a, b = int((first & second).sum()), int((first & ~second).sum())
    c, d = int((~first & second).sum()), int((~first & ~second).sum())
    low_1, high_1 = wilson(a + b, n, confidence)
    low_2, high_2 = wilson(a + c, n, confidence)
    share_1, share_2 = (a + b) / n, (a + c) / n
    phi = _correlation(a, b, c, d, n)
    below_1, above_1, below_2, above_2 = share_1 - low_1, high_1 - share_1, share_2 - low_2, high_2 - share_2
    under = math.sqrt(max(0.0, below_1**2 - 2 * phi * below_1 * above_2 + above_2**2))
    over = math.sqrt(max(0.0, above_1**2 - 2 * phi * above_1 * below_2 + below_2**2))
    return max(-1.0, share_1 - share_2 - under), min(1.0, share_1 - share_2 + over)


def median_interval(values: Float[np.ndarray, " n"], confidence: float = 0.95) -> tuple[float, float, float]:
    """Median with an interval between order statistics, which holds for any distribution.

    Args:
        values: for instance differences of two cases, trial by trial.
        confidence: at least this much, where there are values enough for it; else between the extremes.

    Returns:
        Median, lower and upper end.
    """
    from scipy.stats import binom

    ordered, n = np.sort(values), len(values)
    if n < 1:
        raise ParameterError("values", "none", "at least one")
    rank = max(int(binom.ppf((1 - confidence) / 2, n, 0.5)), 1)
    return float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[n - rank])


def _correlation(a: int, b: int, c: int, d: int, n: int) -> float:
    """Newcombe's phi of the four-fold table, with his correction for continuity where it is positive."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    excess = a * d - b * c
    return (max(excess - n / 2, 0.0) if excess > 0 else excess) / math.sqrt(product)


def _normal_quantile(confidence: float) -> float:
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise ParameterError("confidence", confidence, "between 0 and 1")
    return float(ndtri(0.5 + confidence / 2))
