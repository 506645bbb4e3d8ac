"""A federation small enough for seconds: garments of 14 x 14 pixels, a perceptron's student, ten clients.

The backbone is trained on handwritten digits, so that its source differs from the tasks as ImageNet differs from them in
the paper. Gates begin at (0.5, -0.5) instead of the paper's (2, -2), with which proxies carry 5 % of the signal and short
runs train little but the classifiers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core_utils.data import Split, digits, fashion_mnist_small, idx_folder, stratified
from fedcl.models.backbones import Backbone, mlp_backbone
from fedcl.models.nettailor import tailor
from fedcl.partitions import Partition
from fedcl.scenario import Order, Scenario

MEAN, DEVIATION = 0.286, 0.3
"""Of Fashion-MNIST's training pixels in [0, 1]."""
GATES = (0.5, -0.5)
SIDE = 14


def garments(data: Path | None = None, per_class: int = 800, tested: int = 200) -> Split:
    """Fashion-MNIST averaged over 2 x 2 pixels and normalised: float32 [n, 1, 14, 14].

    Args:
        data: folder with a full MNIST-like set in IDX files instead of the embedded images.
        per_class: training images of each class.
        tested: test images of each class; which is the same for every seed.
    """
    images = fashion_mnist_small() if data is None else idx_folder(data)
    train = stratified(images.y_train, per_class, np.random.default_rng(0))
    test = stratified(images.y_test, tested, np.random.default_rng(1))

    def halved(pixels: np.ndarray) -> np.ndarray:
        small = pixels.reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4), dtype=np.float32)
        return ((small / np.float32(255) - np.float32(MEAN)) / np.float32(DEVIATION))[:, None]

    return Split(halved(images.x_train[train]), images.y_train[train], halved(images.x_test[test]), images.y_test[test])


def miniature_scenario(
    seed: int,
    *,
    tasks: int = 5,
    clients: int = 10,
    order: Order = "random",
    partition: Partition | None = None,
    per_client: int = 160,
    data: Path | None = None,
) -> Scenario:
    """Garments in tasks of equally many classes; see `Scenario.from_arrays` for the arguments."""
    images = garments(data)
    return Scenario.from_arrays(
        images.x_train,
        images.y_train,
        x_test=images.x_test,
        y_test=images.y_test,
        tasks=tasks,
        clients=clients,
        order=order,
        partition=partition,
        per_client=per_client,
        seed=seed,
    )


def digit_images() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits for training, scaled bilinearly to 14 x 14 and normalised as garments are."""
    source = digits()
    pixels = torch.from_numpy(source.x_train.astype(np.float32) / 16)[:, None]
    scaled = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (scaled - MEAN) / DEVIATION, torch.from_numpy(source.y_train)


def miniature_backbone(seed: int, *, steps: int = 300, width: int = 64, blocks: int = 4) -> Backbone:
    """A perceptron trained on digits by Adam, batches of 64; global random state and threads are left as they were.

    One thread trains it: on as many as a machine has, the bits of a frozen backbone would depend on the machine.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            return _trained(mlp_backbone(SIDE * SIDE, width, blocks), nn.Linear(width, 10), steps)
        finally:
            torch.set_num_threads(threads)


def _trained(backbone: Backbone, head: nn.Linear, steps: int) -> Backbone:
    """Adam is written out: the first use of `torch.optim` imports a compiler, which takes longer than a federation."""
    x, y = digit_images()
    parameters = [*backbone.parameters(), *head.parameters()]
    means = [torch.zeros_like(each) for each in parameters]
    squares = [torch.zeros_like(each) for each in parameters]
    for step in range(1, steps + 1):
        rows = torch.randint(len(y), (64,))
        features = backbone.stem(x[rows])
        for block in backbone.blocks:
            features = block(features)
        gradients = torch.autograd.grad(functional.cross_entropy(head(features), y[rows]), parameters)
        with torch.no_grad():
            for weight, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient**2, 0.001)
                corrected = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
                weight.addcdiv_(mean, corrected, value=-2e-3 / (1 - 0.9**step))
    return backbone.requires_grad_(False)


def student_of(backbone: Backbone, gate_init: tuple[float, float] = GATES) -> Callable[[int], nn.Module]:
    """A model function: students of a copy of the backbone, three skips, classifiers that start at zero."""

    def make(classes: int) -> nn.Module:
        return tailor(
            copy.deepcopy(backbone),
            num_classes=classes,
            input_shape=(1, SIDE, SIDE),
            gate_init=gate_init,
            classifier="zeros",
        )

    return make
