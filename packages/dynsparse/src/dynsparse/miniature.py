"""Small real images that a network must look at as a whole before it can read them: small, and enough to see the claims.

Each image is multiplied by -1 with probability 1/2. A router can tell from an image which of the two it is, and give it
kernels of its own; a static network has one set for both. On the images as they are, dynamic convolution gains nothing.

Reference: spec section 7.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core_utils.data import Split, fashion_mnist_small, idx_folder

MEAN, DEVIATION = 0.286, 0.353
"""Of Fashion-MNIST's pixels in [0, 1]."""
SIZE = 14
"""Height and width, pixels."""
CLASSES = 10
SIGN_SEED = 7
"""The signs are fixed: they come from this seed, never from a trial's."""


def miniature_images(data: Path | None = None) -> Split:
    """Fashion-MNIST at half its resolution, normalised, half of the images with all signs turned.

    Args:
        data: folder with a full MNIST-like set in IDX files instead of the 8,000 + 2,000 embedded images.

    Returns:
        float32 [n, 1, 14, 14] and labels, int64 [n].

    Raises:
        DataError: a folder or file that cannot be read.
    """
    images = fashion_mnist_small() if data is None else idx_folder(data)
    rng = np.random.default_rng(SIGN_SEED)
    x_train, x_test = (_switched(each, rng) for each in (images.x_train, images.x_test))
    return Split(x_train, images.y_train, x_test, images.y_test)


def _switched(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, height, width = images.shape
    pooled = images.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float32) / 255
    signs = rng.choice(np.array([-1, 1], np.float32), n)
    return ((pooled - MEAN) / DEVIATION * signs[:, None, None])[:, None].astype(np.float32)
