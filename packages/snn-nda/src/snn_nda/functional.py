"""The operations one by one, on frames [T, C, H, W] or [B, T, C, H, W] of any type; nearest sampling keeps the type.

Angles are in degrees, anticlockwise as torchvision has them; shifts and sides in pixels; what comes from outside is 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import one_hot

from snn_nda import sampling
from snn_nda.errors import FramesError
from snn_nda.params import Cutout, Operation, Params, Rotate, ShearX

Interpolation = Literal["nearest", "bilinear"]


def hflip(x: Shaped[Tensor, "*frames C H W"]) -> Shaped[Tensor, "*frames C H W"]:
    """Mirrors left to right."""
    return check_frames(x).flip(-1)


def roll(x: Shaped[Tensor, "*frames C H W"], dy: int, dx: int, wrap: bool = True) -> Shaped[Tensor, "*frames C H W"]:
    """Shifts down by `dy` and right by `dx`; around the borders, or with zeros coming in."""
    rolled = check_frames(x).roll((dy, dx), (-2, -1))
    if not wrap:
        rolled[..., _came_in(dy, x.shape[-2]), :] = 0
        rolled[..., _came_in(dx, x.shape[-1])] = 0
    return rolled


def rotate(
    x: Shaped[Tensor, "*frames C H W"], degrees: float | int, interpolation: Interpolation = "nearest"
) -> Shaped[Tensor, "*frames C H W"]:
    """Turns anticlockwise about the centre."""
    return _one(x, Rotate(degrees=float(degrees)), interpolation)


def shear_x(
    x: Shaped[Tensor, "*frames C H W"], degrees: float | int, interpolation: Interpolation = "nearest"
) -> Shaped[Tensor, "*frames C H W"]:
    """Shears along x about the centre; a positive angle moves what lies below the centre left."""
    return _one(x, ShearX(degrees=float(degrees)), interpolation)


def cutout(x: Shaped[Tensor, "*frames C H W"], y: int, column: int, length: int) -> Shaped[Tensor, "*frames C H W"]:
    """Empties the square of side `length` around row `y` and column `column`, clipped at the borders."""
    hole = Cutout(y=y, x=column, length=length)
    emptied = check_frames(x).clone()
    (top, bottom), (left, right) = hole.rows(), hole.columns()
    emptied[..., max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
    return emptied


def cutmix(
    x: Shaped[Tensor, "*frames C H W"],
    y: Shaped[Tensor, " n *classes"],
    alpha: float | int = 1.0,
    generator: torch.Generator | None = None,
    num_classes: int | None = None,
) -> tuple[Shaped[Tensor, "*frames C H W"], Float[Tensor, "n K"]]:
    """Gives every sample a box of another sample of the batch, and of its label as much as the box covers.

    Args:
        x: frames; not changed.
        y: labels, whole [B] with `num_classes`, or shares of classes [B, K].
        alpha: the share that stays is drawn from Beta(alpha, alpha), one for the batch, then becomes that of the
            pixels outside the box after clipping.
        generator: decides everything; torch's global one by default.
        num_classes: K, for whole labels.

    Returns:
        New frames, and labels as shares, which sum to 1. A batch of one stays as it is.

    Raises:
        FramesError: other shapes, labels outside their range, or an alpha that is not positive.

    Reference: Yun et al., "CutMix" (2019).
    """
    soft = _soft_labels(x, y, num_classes)
    rng = numpy_generator(generator)
    share, partner = _partners(len(x), alpha, rng)
    if len(x) < 2:
        return x.clone(), soft
    *_, height, width = x.shape
    rows, columns = (_box_side(size, share, rng) for size in (height, width))
    mixed = x.clone()
    mixed[..., rows, columns] = x[partner][..., rows, columns]
    share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, share * soft + (1 - share) * soft[partner]


def mixup(
    x: Shaped[Tensor, "*frames C H W"],
    y: Shaped[Tensor, " n *classes"],
    alpha: float | int = 1.0,
    generator: torch.Generator | None = None,
    num_classes: int | None = None,
) -> tuple[Float[Tensor, "*frames C H W"], Float[Tensor, "n K"]]:
    """Blends every sample and its label with another of the batch; arguments as in `cutmix`, but frames are floating.

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018).
    """
    soft = _soft_labels(x, y, num_classes)
    if not x.is_floating_point():
        raise FramesError(f"mixup makes fractions, but frames are {x.dtype}", "give floating frames")
    rng = numpy_generator(generator)
    share, partner = _partners(len(x), alpha, rng)
    return share * x + (1 - share) * x[partner], share * soft + (1 - share) * soft[partner]


def check_frames(x: Tensor) -> Tensor:
    """The frames themselves.

    Raises:
        FramesError: they are neither [T, C, H, W] nor [B, T, C, H, W].
    """
    if x.ndim not in (4, 5):
        raise FramesError(f"frames must be [T, C, H, W] or [B, T, C, H, W], got shape {list(x.shape)}")
    return x


def numpy_generator(generator: torch.Generator | None) -> np.random.Generator:
    """A NumPy generator seeded by the next number of torch's, or of its global one."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (1,), generator=generator)))


def _one(x: Tensor, operation: Operation, interpolation: Interpolation) -> Tensor:
    """The same operation for all samples: batch and time are one axis to it."""
    *_, channels, height, width = check_frames(x).shape
    frames = x.reshape(1, -1, channels, height, width)
    return sampling.transform(frames, [Params((operation,))], interpolation).view(x.shape)


def _came_in(shift: int, size: int) -> slice:
    shift = max(-size, min(shift, size))
    return slice(0, shift) if shift >= 0 else slice(size + shift, size)


def _soft_labels(x: Tensor, y: Tensor, num_classes: int | None) -> Tensor:
    if x.ndim != 5 or len(y) != len(x):
        raise FramesError(
            f"{list(y.shape)} labels do not belong to frames of shape {list(x.shape)}", "give [B, T, C, H, W]"
        )
    if y.is_floating_point():
        if y.ndim != 2:
            raise FramesError(f"shares of classes must be [B, K], got shape {list(y.shape)}")
        return y
    if num_classes is None:
        raise FramesError("whole labels need num_classes")
    if y.ndim != 1 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes):
        raise FramesError(f"labels must be [B] and lie between 0 and {num_classes - 1}")
    return one_hot(y.long(), num_classes).float()


def _partners(batch: int, alpha: float | int, rng: np.random.Generator) -> tuple[float, Tensor]:
    """The share that stays, and whom each sample is mixed with."""
    if not alpha > 0:
        raise FramesError(f"alpha must be positive, got {alpha}")
    return float(rng.beta(alpha, alpha)), torch.from_numpy(rng.permutation(batch))


def _box_side(size: int, share: float, rng: np.random.Generator) -> slice:
    """A side of the box around a centre that is uniform over the pixels, clipped."""
    half = int(size * (1 - share) ** 0.5) // 2
    centre = int(rng.integers(size))
    return slice(max(centre - half, 0), min(centre + half, size))
