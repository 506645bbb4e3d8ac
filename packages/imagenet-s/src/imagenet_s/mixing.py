"""Training on many decoders and resizers at once, so that a model learns to see past them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from imagenet_s.errors import PipelineError
from imagenet_s.grids import Grid
from imagenet_s.pipelines import PAPER, Pipeline
from imagenet_s.resizing import resizer

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_PICK, _BOX = 0, 1  # streams of their own: how many combinations are drawn changes no crop


@dataclass(frozen=True)
class MixTransform:
    """Draws a decoder and a resizer for each sample and epoch, independently and uniformly.

    A draw depends on (seed, epoch, index) alone, so that the number of workers and their order change nothing. The
    crop depends on them and the image's size, not on what was drawn: all combinations see the same piece.

    Attributes:
        decoders: names to draw from.
        resizers: names to draw from.
        size: side of the square that the model sees, pixels.
        train_geometry: "rrc" resizes a random piece of the image straight to the square as the authors do, without a
            flip; "eval" does what `pipeline` does.
        seed: of the draws.
        pipeline: everything else; its size is replaced.
    """

    decoders: tuple[str, ...]
    resizers: tuple[str, ...]
    size: int = 224
    train_geometry: Literal["rrc", "eval"] = "rrc"
    seed: int = 0
    pipeline: Pipeline = PAPER

    def __post_init__(self) -> None:
        for name in ("decoders", "resizers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.train_geometry not in ("rrc", "eval"):
            raise PipelineError(f"train_geometry must be rrc or eval, got {self.train_geometry!r}")
        object.__setattr__(self, "pipeline", dataclasses.replace(self.pipeline, size=self.size))
        Grid(self.decoders, self.resizers)  # refuses what is empty, unknown or named twice

    def __call__(self, data: bytes, *, index: int, epoch: int) -> Float[np.ndarray, "_ _ _"]:
        """The tensor of a file for this epoch, [3, S, S] float32 unless the pipeline says otherwise.

        Args:
            data: the file.
            index: of the sample in its data set.
            epoch: from 0.

        Raises:
            DecodeError: the decoder that was drawn cannot read the bytes.
        """
        return self.views(data, index=index, epoch=epoch)[0]

    def views(self, data: bytes, *, index: int, epoch: int, count: int = 1) -> Float[np.ndarray, "k _ _ _"]:
        """Tensors of one file under `count` draws of one epoch, on the same crop; the first is what a call gives."""
        sources: dict[str, np.ndarray] = {}
        tensors = []
        for left, right in self.draws(index=index, epoch=epoch, count=count):
            if left not in sources:
                sources[left] = self.pipeline.prepare(self.pipeline.decoded(data, left), data)
            pixels = self._fitted(sources[left], right, index, epoch)
            tensors.append(self.pipeline.tensor(pixels))
        return np.stack(tensors)

    def draws(self, *, index: int, epoch: int, count: int = 1) -> list[tuple[str, str]]:
        """The (decoder, resizer) pairs of a sample and epoch."""
        rng = np.random.default_rng((self.seed, epoch, index, _PICK))
        picks = rng.integers(0, (len(self.decoders), len(self.resizers)), (count, 2))
        return [(self.decoders[left], self.resizers[right]) for left, right in picks]

    def box(self, shape: tuple[int, ...], *, index: int, epoch: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the piece of an image of this (height, width) that an epoch sees, pixels."""
        return random_box(shape[0], shape[1], np.random.default_rng((self.seed, epoch, index, _BOX)))

    def _fitted(
        self, source: UInt8[np.ndarray, "h w 3"], name: str, index: int, epoch: int
    ) -> UInt8[np.ndarray, "S S 3"]:
        if self.train_geometry == "eval":
            return dataclasses.replace(self.pipeline, resizer=name).fit(source)
        top, left, height, width = self.box(source.shape, index=index, epoch=epoch)
        piece = np.ascontiguousarray(source[top : top + height, left : left + width])
        return resizer(name).resize(piece, (self.size, self.size))


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random piece: its area is a share U(0.08, 1), its aspect log-uniform in 3/4..4/3.

    After ten pieces that do not fit, it is the largest one in the middle whose aspect is within those limits.

    Reference: the authors' `train` transform, which is torchvision's RandomResizedCrop.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    h, w = height, width
    if width / height < RATIO[0]:
        h = max(1, min(height, round(width / RATIO[0])))
    elif width / height > RATIO[1]:
        w = max(1, min(width, round(height * RATIO[1])))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class WorstOf:
    """Trains each image on the one of `k` views that the model does worst on.

    Attributes:
        k: views; `MixTransform.views` makes them.
    """

    k: int = 3

    def __post_init__(self) -> None:
        if self.k < 1:
            raise PipelineError(f"k must be at least 1, got {self.k}")

    def __call__(
        self,
        model: nn.Module,
        views: Float32[Tensor, "B k c h w"],
        labels: Int64[Tensor, " B"],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Float32[Tensor, ""]:
        """The mean loss on the worst views.

        They are chosen by forward passes without gradients in evaluation mode, which leave BatchNorm's statistics alone.

        Args:
            model: gives logits.
            views: of each image.
            labels: of each image.
            loss: of (logits, labels) for each image; cross entropy by default.

        Raises:
            PipelineError: there are other than k views.
        """
        if views.shape[1] != self.k:
            raise PipelineError(f"{views.shape[1]} views of each image, expected {self.k}")
        loss = loss or (lambda logits, targets: functional.cross_entropy(logits, targets, reduction="none"))
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            with torch.no_grad():
                losses = torch.stack([loss(model(view), labels) for view in views.unbind(1)])
        finally:
            for module, training in modes:
                module.training = training
        worst = views[torch.arange(len(views), device=views.device), losses.argmax(0)]
        return loss(model(worst), labels).mean()


@dataclass(frozen=True)
class ConsistencyLoss:
    """Cross entropy on one view, and a price for saying something else about another view of the same images.

    Attributes:
        lam: weight of the Kullback-Leibler divergence from the first prediction to the second.
    """

    lam: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise PipelineError(f"lam must be at least 0 and finite, got {self.lam}")

    def __call__(
        self, first: Float[Tensor, "B C"], second: Float[Tensor, "B C"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """CE(first, labels) + lam * KL(softmax(first) || softmax(second)), means over the batch; gradients reach both."""
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        divergence = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return functional.cross_entropy(first, labels) + self.lam * divergence
