"""Real images in random poses before a moving event camera: small, and enough to see a claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core_utils.data import Split, fashion_mnist_small, idx_folder, stratified
from core_utils.spiking.events.camera import posed_event_frames


def posed_miniature(
    seed: int,
    *,
    test_seed: int,
    train_per_class: int = 20,
    test_per_class: int = 100,
    time_steps: int = 5,
    size: int = 24,
    data: Path | None = None,
) -> Split:
    """Fashion-MNIST images in random poses, recorded by the simulated event camera.

    Args:
        seed: decides which training images, their poses and their noise.
        test_seed: decides the same of the test images.
        train_per_class: training recordings of each class.
        test_per_class: test recordings of each class.
        time_steps: T.
        size: height and width of the frames, pixels.
        data: folder with a full MNIST-like set in IDX files instead of the embedded images.

    Returns:
        Counts clipped at 3 and divided by 3, float32 in [0, 1], [n, T, 2, size, size], and labels, int64 [n].

    Raises:
        DataError: a folder or file that cannot be read, or too few images of a class.
    """
    images = fashion_mnist_small() if data is None else idx_folder(data)
    train_rng, test_rng = np.random.default_rng([seed, 0]), np.random.default_rng(test_seed)
    train = stratified(images.y_train, train_per_class, train_rng)
    test = stratified(images.y_test, test_per_class, test_rng)
    return Split(
        posed_event_frames(images.x_train[train], train_rng, time_steps=time_steps, size=size),
        images.y_train[train],
        posed_event_frames(images.x_test[test], test_rng, time_steps=time_steps, size=size),
        images.y_test[test],
    )
