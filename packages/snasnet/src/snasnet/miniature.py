"""Real images, small: enough to score and train cells on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core_utils.data import Split, fashion_mnist_small, idx_folder, stratified

TEST_SEED = 220_110_355
"""The test set is fixed: its choice comes from this seed, never from a trial's."""


def miniature_images(
    seed: int, *, size: int = 16, train_per_class: int = 200, test_per_class: int = 100, data: Path | None = None
) -> Split:
    """Fashion-MNIST, averaged over squares of 2 x 2 pixels and padded to 16 x 16, or averaged once more to 8 x 8.

    Args:
        seed: decides which training images.
        size: 16 or 8, pixels.
        train_per_class: training images of each class.
        test_per_class: test images of each class.
        data: folder with a full MNIST-like set in IDX files instead of the embedded images.

    Returns:
        Images, float32 with mean 0 and deviation 1 over the training part's pixels, [n, 1, size, size]; labels,
        int64 [n].

    Raises:
        DataError: a folder or file that cannot be read, or too few images of a class.
        ValueError: another size.
    """
    if size not in (8, 16):
        raise ValueError(f"size must be 8 or 16, got {size}")
    images = fashion_mnist_small() if data is None else idx_folder(data)
    train = stratified(images.y_train, train_per_class, np.random.default_rng([seed, 0]))
    test = stratified(images.y_test, test_per_class, np.random.default_rng(TEST_SEED))
    x_train, x_test = (_shrunk(x, size) for x in (images.x_train[train], images.x_test[test]))
    mean, deviation = x_train.mean(), x_train.std()
    return Split((x_train - mean) / deviation, images.y_train[train], (x_test - mean) / deviation, images.y_test[test])


def _shrunk(images: np.ndarray, size: int) -> np.ndarray:
    halved: Any = images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32) / np.float32(255)
    padded = np.pad(halved, ((0, 0), (1, 1), (1, 1)))
    if size == 8:
        padded = padded.reshape(-1, 8, 2, 8, 2).mean((2, 4))
    return np.ascontiguousarray(padded[:, None])
