"""Neuromorphic data augmentation of frames (arXiv 2203.06145): drop one transform into any pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from snn_nda.functional import check_frames, numpy_generator
from snn_nda.params import Params
from snn_nda.policies import Policy, adapted
from snn_nda.sampling import transform


class NDA(nn.Module):
    """Moves each sample by operations of its own, drawn by lot and shared by its time steps and polarities.

    In `eval()` frames pass unchanged, as with dropout, so that it may stand first in a network.

    Lots that stay the same for any number of loading processes come from (seed, epoch, index of the item): through
    `Augment` in a `core_utils.training.Loader`, or from `params_at` for a batch on its device. The two agree.

    Attributes:
        policy: what is drawn, and how.
        generator: decides the lots; torch's global generator if None.
    """

    def __init__(
        self,
        preset: str | Policy = "paper",
        magnitude: int | None = None,
        num_ops: int | None = None,
        ops: Sequence[str] | None = None,
        flip: float | int | None = None,
        interpolation: Literal["nearest", "bilinear"] | None = None,
        generator: torch.Generator | None = None,
        *,
        data: str | None = None,
    ) -> None:
        """Takes a preset and changes what is given besides.

        Args:
            preset: `paper` (mirrors half of the samples, then one of roll, rotate, shear, cutout at level 2), `code`
                (no mirror, no cutout; needs `data`), `MxNy`, `none`, a TOML file, or a `Policy`.
            magnitude: level, 1 to 3.
            num_ops: operations that a sample gets.
            ops: names of the operations to draw from.
            flip: probability of mirroring left to right.
            interpolation: of rotation and shear.
            generator: decides the lots.
            data: data set whose released code `code` means.

        Raises:
            PolicyError: a value outside its range, or an unknown name.
        """
        super().__init__()
        self.policy = adapted(
            preset, data, magnitude=magnitude, num_ops=num_ops, ops=ops, flip=flip, interpolation=interpolation
        )
        self.generator = generator

    def forward(self, x: Shaped[Tensor, "*frames C H W"] | np.ndarray) -> Shaped[Tensor, "*frames C H W"]:
        """Moves frames, also those of NumPy, as tonic's `ToFrame` makes them.

        Args:
            x: [T, C, H, W], or [B, T, C, H, W] with lots of its own for every sample.

        Returns:
            The same shape and type.

        Raises:
            FramesError: another shape.
        """
        x = torch.as_tensor(x)
        if not self.training:
            return check_frames(x)
        height, width = check_frames(x).shape[-2:]
        return self.apply(x, self.sample_params(len(x) if x.ndim == 5 else 1, (height, width)))

    def sample_params(
        self, batch: int = 1, size: tuple[int, int] = (48, 48), rng: np.random.Generator | None = None
    ) -> list[Params]:
        """Draws the parameters of a batch.

        Args:
            batch: number of samples.
            size: height and width of the frames, pixels.
            rng: decides the lots instead of `generator`.
        """
        rng = numpy_generator(self.generator) if rng is None else rng
        return [self.policy.draw(rng, size) for _ in range(batch)]

    def params_at(
        self, seed: int, epoch: int, indices: Sequence[int], size: tuple[int, int] = (48, 48)
    ) -> list[Params]:
        """The parameters of some items of a data set in an epoch, the same whoever asks, in any order and process.

        They are those that `core_utils.training.Loader` with that seed gives to its `transform`.
        """
        return [self.policy.draw(np.random.default_rng([seed, epoch, int(index)]), size) for index in indices]

    def apply(self, x: Any, params: Params | Sequence[Params] | None = None) -> Any:
        """Moves frames by given parameters: one for [T, C, H, W], one for every sample of [B, T, C, H, W].

        With a function instead of frames it is `nn.Module.apply`, so that a network which holds this module can still
        be initialised by it.

        Raises:
            FramesError: another shape, or another number of parameters.
        """
        if params is None:
            return super().apply(x)
        listed = [params] if isinstance(params, Params) else list(params)
        frames = x if check_frames(x).ndim == 5 else x[None]
        return transform(frames, listed, self.policy.interpolation).view(x.shape)


@dataclass(frozen=True)
class Augment:
    """`transform` of a `core_utils.training.Loader`: items (frames [T, C, H, W], label), moved by their own generator.

    Attributes:
        policy: what is drawn, and how.
        label_map: what a label becomes when its sample is mirrored; labels that are not named stay.
    """

    policy: Policy
    label_map: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, item: tuple[Any, Any], rng: np.random.Generator) -> tuple[Tensor, Any]:
        """The moved item; what it becomes depends on `rng` alone."""
        frames, label = torch.as_tensor(item[0]), item[1]
        height, width = frames.shape[-2:]
        params = self.policy.draw(rng, (height, width))
        if params.flipped and int(label) in self.label_map:
            mapped = self.label_map[int(label)]
            label = torch.full_like(label, mapped) if isinstance(label, Tensor) else type(label)(mapped)
        return transform(frames[None], [params], self.policy.interpolation)[0], label
