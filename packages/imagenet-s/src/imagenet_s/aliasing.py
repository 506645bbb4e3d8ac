"""Whether a resizer antialiases: what it lets pass of gratings that are too fine for its output."""

from __future__ import annotations

import functools

import numpy as np

from imagenet_s.findings import Finding
from imagenet_s.resizing import resizer

LEAKS = 0.4
"""Above it a resizer counts as one without antialias: a box filter, the weakest, lets 0.26 pass, and two-tap
linear interpolation 0.6 of these gratings."""

_SOURCE, _TARGET = 384, 144  # shrinks by 2.67, no whole number that some filters are exact for
_PERIODS = (2.1, 2.3, 2.6, 2.9)  # source pixels; far shorter than two output pixels


@functools.lru_cache(maxsize=256)
def leakage(name: str) -> float:
    """Amplitude of too fine gratings after the resizer of that name, over theirs before: 0 is antialiased, 1 sampled."""
    before, after = [], []
    x = np.arange(_SOURCE)
    for period in _PERIODS:
        wave = 128 + 100 * np.sin(2 * np.pi * x / period + 0.3)
        for grating in (np.broadcast_to(wave, (_SOURCE, _SOURCE)), np.broadcast_to(wave[:, None], (_SOURCE, _SOURCE))):
            image = np.repeat(np.rint(grating).astype(np.uint8)[..., None], 3, axis=2)
            shrunk = resizer(name).resize(image, (_TARGET, _TARGET))
            inner = shrunk[8:-8, 8:-8, 0].astype(np.float64)  # away from the borders
            before.append(grating.var())
            after.append(inner.var())
    return float(np.sqrt(np.mean(after) / np.mean(before)))


def antialias_findings(a: str, b: str) -> list[Finding]:
    """What changes between two resizers by name."""
    first, second = leakage(a), leakage(b)
    if (first > LEAKS) == (second > LEAKS):
        return []
    kind, which = (
        ("no antialias", "b shrinks without antialias") if second > LEAKS else ("antialias", "a shrinks without")
    )
    evidence = (
        f"of gratings too fine for the output {b} lets {100 * second:.0f} % pass, {a} {100 * first:.0f} %: {which}"
    )
    return [Finding(kind, "resize", evidence)]
