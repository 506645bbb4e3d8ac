"""Real images before a moving event camera: small, and enough to see the claims."""

from __future__ import annotations

from pathlib import Path

from core_utils.data import Split
from core_utils.spiking import events

SIZE = 24
"""Height and width of the frames, pixels."""
TEST_SEED = 220_211_946
"""The test set is fixed: its choice, poses and noise come from this seed, never from a trial's."""


def posed_miniature(
    seed: int, *, train_per_class: int = 20, test_per_class: int = 100, time_steps: int = 5, data: Path | None = None
) -> Split:
    """Fashion-MNIST images in random poses, recorded by the simulated event camera.

    Args:
        seed: decides which training images, their poses and their noise.
        train_per_class: training recordings of each class.
        test_per_class: test recordings of each class.
        time_steps: T.
        data: folder with a full MNIST-like set in IDX files instead of the embedded images.

    Returns:
        Frames, float32 in [0, 1], [n, T, 2, 24, 24], and labels, int64 [n].

    Raises:
        DataError: a folder or file that cannot be read, or too few images of a class.

    Reference: the miniature protocol shared with snn-nda (arXiv 2203.06145).
    """
    return events.posed_miniature(
        seed,
        test_seed=TEST_SEED,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        time_steps=time_steps,
        size=SIZE,
        data=data,
    )
