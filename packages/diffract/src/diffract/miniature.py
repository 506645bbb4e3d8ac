"""The published design at a size that trains in seconds: digits behind weak diffusers on 64 x 64 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from diffract.designs import Design
from diffract.objects import load_objects, placed
from diffract.streams import Stream, stream

TRAINED, TESTED = 1200, 20
NEW = 12
"""Diffusers that no training has seen."""


def miniature_design(seed: int, *, full: bool = False, **changes: Any) -> Design:
    """The miniature with settings replaced as by `Design.with_`; `full` trains four times as long at half the rate."""
    longer = {"train__epochs": 40, "train__learning_rate": 0.05} if full else {}
    return Design.preset("mini").with_(seed=seed, **{**longer, **changes})


def miniature_objects(
    seed: int, data: Path | None = None
) -> tuple[Float[np.ndarray, "n h w"], Float[np.ndarray, "m H W"]]:
    """Training images, and test objects on the miniature's grid; the seed draws both from their parts."""
    objects, design = load_objects(data), Design.preset("mini")
    rng = np.random.default_rng([seed, 7])
    pool = np.concatenate([objects.train, objects.validation])
    train = pool[rng.permutation(len(pool))[:TRAINED]]
    test = objects.test[rng.permutation(len(objects.test))[:TESTED]]
    return train, placed(test, design.grid, design.object_side)


def new_diffusers(design: Design, n: int = NEW) -> Float[Array, "n H W"]:
    """Diffusers of the design's first kind that its training never draws."""
    return design.screens[0].sample(stream(design.seed, Stream.NEW), n)
