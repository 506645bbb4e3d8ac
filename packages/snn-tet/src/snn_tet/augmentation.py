"""What training items go through: `transform(item, rng)` for a `Loader`, item by item, in NumPy.

An item is (frames or image, label). One draw belongs to one item, so all time steps of a recording move alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core_utils.images import Item


@dataclass(frozen=True)
class FlipAndRoll:
    """Mirrors half of the recordings left to right and rolls all around both axes.

    Attributes:
        shift: largest roll either way in x and in y, pixels; whole and uniform.

    Reference: arXiv 2202.11946, released code.
    """

    shift: int = 5

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        """Frames [T, 2, H, W] of the same shape."""
        frames, label = item
        if rng.random() < 0.5:
            frames = frames[..., ::-1]
        down, right = rng.integers(-self.shift, self.shift, 2, endpoint=True)
        return np.roll(frames, (down, right), axis=(-2, -1)), label
