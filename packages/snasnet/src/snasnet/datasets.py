"""The data that the command line knows: embedded, or in a folder of a published layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core_utils.data import Split, cifar_folder, digits, fashion_mnist_small, idx_folder, stratified
from core_utils.errors import UserError
from snasnet.specs import DatasetSpec

DATASETS = ("digits", "fashion", "cifar")


@dataclass(frozen=True, eq=False)
class DataSets:
    """Images, float32 [n, C, H, W], and labels, int64 [n]; channels have mean 0 and deviation 1 over the training part.

    Attributes:
        spec: channels, size and classes.
        train: what is learned from, and what scores are taken on.
        validation: 10 % of every class of the training part, held out.
        test: used once, at the end.
    """

    spec: DatasetSpec
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def batch(self, samples: int, seed: int) -> Tensor:
        """The fixed batch that cells are scored on: training images by lot, each once.

        Raises:
            UserError: fewer training images than samples.
        """
        images = self.train[0]
        if not 2 <= samples <= len(images):
            raise UserError(f"--batch must lie in 2..{len(images)}, the number of training images, got {samples}")
        chosen = np.random.default_rng([seed, 0]).permutation(len(images))[:samples]
        return torch.from_numpy(images[chosen])


def load_data(name: str, folder: Path | None = None, *, seed: int = 0) -> DataSets:
    """A data set by name.

    Args:
        name: "digits" (8 x 8, scikit-learn's); "fashion" (28 x 28: the embedded part of Fashion-MNIST, or any set of
            IDX files in the folder); "cifar" (CIFAR-10 or -100 in the folder).
        folder: where the files lie.
        seed: decides what is held out.

    Raises:
        UserError: an unknown name, a folder that is missing or cannot be read.
    """
    if name not in DATASETS:
        raise UserError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    if name == "cifar" and folder is None:
        raise UserError("dataset cifar needs its folder", "add --data DIR")
    if name == "digits" and folder is not None:
        raise UserError("the digits are embedded; --data is of no use to them", "choose --dataset fashion or cifar")
    read: Callable[[], Split] = {
        "digits": digits,
        "fashion": fashion_mnist_small if folder is None else lambda: idx_folder(folder),
        "cifar": lambda: cifar_folder(Path(str(folder))),
    }[name]
    images = read()
    x_train, x_test = _channels(images.x_train), _channels(images.x_test)
    mean, deviation = x_train.mean((0, 2, 3), keepdims=True), x_train.std((0, 2, 3), keepdims=True)
    x_train, x_test = ((x - mean) / np.maximum(deviation, 1e-6) for x in (x_train, x_test))
    labels = images.y_train
    spec = DatasetSpec.of(x_train, labels)
    if images.y_test.max() >= spec.num_classes:
        raise UserError(f"a test label is {images.y_test.max()}, training labels end at {spec.num_classes - 1}")
    held = np.zeros(len(labels), bool)
    share = max(1, int(np.bincount(labels)[np.unique(labels)].min() // 10))
    held[stratified(labels, share, np.random.default_rng([seed, 1]))] = True
    return DataSets(spec, (x_train[~held], labels[~held]), (x_train[held], labels[held]), (x_test, images.y_test))


def _channels(images: Any) -> np.ndarray:
    return np.asarray(images if images.ndim == 4 else images[:, None], np.float32)
