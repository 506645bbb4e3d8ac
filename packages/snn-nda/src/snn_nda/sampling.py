"""Where each pixel of a transformed sample comes from: one grid and one `grid_sample` for a whole batch.

Nearest sampling one operation after the other is sampling once at the composed places, so the operations of every
sample, however many, end in one grid [B, H, W, 2] that its time steps and polarities share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from snn_nda.errors import FramesError
from snn_nda.params import Cutout, HFlip, Operation, Params, Roll, Rotate, ShearX, inverse_matrix

_ORDER: dict[type[Operation], int] = {HFlip: 0, Rotate: 1, ShearX: 1, Roll: 2, Cutout: 3}
"""Operations that follow one another in this order make one step together."""

_SAMPLED = (torch.float32, torch.float64)
"""Types that `grid_sample` takes on every device and that tell two places apart; others are picked by number."""

OUTSIDE = -4.0
"""A place that no frame reaches: they end at -1 and 1."""


def transform(
    x: Shaped[Tensor, "B T C H W"],
    params: Sequence[Params],
    interpolation: Literal["nearest", "bilinear"] = "nearest",
) -> Shaped[Tensor, "B T C H W"]:
    """Applies to each sample its own operations; what comes from outside is 0.

    Args:
        x: frames of any type; whole numbers need `interpolation="nearest"`.
        params: one for each sample.
        interpolation: of rotation and shear.

    Raises:
        FramesError: another number of parameters than samples, whole numbers with "bilinear", or a polarity swap of
            frames that do not have two channels.
    """
    if len(params) != len(x):
        raise FramesError(f"{len(x)} samples need as many parameters, got {len(params)}")
    x = _swapped(x, params)
    steps = _steps(params)
    if not steps or x.numel() == 0:
        return x.clone()
    if interpolation == "bilinear":
        for step in steps:
            x = _bilinear_step(x, step)
        return x
    return _pick(x, _sources(steps, x))


@dataclass
class _Step:
    """One round of operations of every sample, applied as flip, matrix, roll, hole.

    Attributes:
        flip: samples that are mirrored.
        roll: (dy, dx, wrap) by sample.
        matrix: `inverse_matrix` by sample.
        hole: rows and columns that are emptied by sample: first row, row after the last, likewise columns.
    """

    flip: set[int] = field(default_factory=set)
    roll: dict[int, tuple[int, int, bool]] = field(default_factory=dict)
    matrix: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    hole: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)

    def add(self, sample: int, operation: Operation) -> None:
        """Enters an operation; the ones that belong before it are there already."""
        if isinstance(operation, HFlip):
            self.flip.add(sample)
        elif isinstance(operation, Roll):
            self.roll[sample] = operation.dy, operation.dx, operation.wrap
        elif isinstance(operation, Cutout):
            self.hole[sample] = *operation.rows(), *operation.columns()
        elif operation.degrees:
            self.matrix[sample] = inverse_matrix(operation)


def _steps(params: Sequence[Params]) -> list[_Step]:
    steps: list[_Step] = []
    for sample, each in enumerate(params):
        at, last = -1, len(_ORDER)
        for operation in each.operations:
            if _ORDER[type(operation)] <= last:
                at += 1
            if at == len(steps):
                steps.append(_Step())
            steps[at].add(sample, operation)
            last = _ORDER[type(operation)]
    return steps


@dataclass
class _Places:
    """Where the pixels of the result come from, in whole pixels; what lies outside the frame comes from nowhere.

    Attributes:
        y: rows, [B, H, 1] as long as they are the same along a row, [B, H, W] after a rotation; 1 for B if all agree.
        column: columns, likewise [B, 1, W] or [B, H, W].
        lost: pixels that come from nowhere although their place may lie inside.
        mirror: -1 for samples whose columns count from the right, 1 for the others; None if there are none.
    """

    y: Float[Tensor, "b1 H w1"]
    column: Float[Tensor, "b2 h2 W"]
    lost: Bool[Tensor, "b3 h3 w3"] | None = None
    mirror: Float[Tensor, "B 1 1"] | None = None


def _sources(steps: Sequence[_Step], x: Shaped[Tensor, "B T C H W"]) -> _Places:
    """Follows the steps back, from the last to the first.

    As long as rows and columns are apart, operations work on them, not on all pixels: so a roll costs nothing.
    """
    *_, height, width = x.shape
    y = torch.arange(height, dtype=torch.float32, device=x.device)[None, :, None]
    column = torch.arange(width, dtype=torch.float32, device=x.device)[None, None, :]
    lost = None
    for step in reversed(steps):
        if step.hole:
            top, bottom, left, right = _by_sample(step.hole, (0, 0, 0, 0), x)
            lost = _or(lost, (y >= top) & (y < bottom) & (column >= left) & (column < right))
        if step.roll:
            down, right, high, wide = _by_sample(_within(step.roll, height, width), (0, 0, 0, 0), x)
            y, column = y - down, column - right
            y, column = y + high * (y < 0), column + wide * (column < 0)
            if step.matrix and not all(wrap for _, _, wrap in step.roll.values()):
                lost = _or(lost, _outside(y, column, height, width))
        if step.matrix:
            y, column = _turned(step, y, column, x)
        if step is steps[0]:  # what is outside now, sampling leaves out by itself
            break
        lost = _or(lost, _outside(y, column, height, width))
        if step.flip:
            column = torch.where(_mirror(step, x) < 0, width - 1 - column, column)
    return _Places(y, column, lost, _mirror(steps[0], x) if steps[0].flip else None)


def _mirror(step: _Step, x: Shaped[Tensor, "B T C H W"]) -> Float[Tensor, "B 1 1"]:
    return _by_sample(dict.fromkeys(step.flip, (-1,)), (1,), x)[0]


def _turned(
    step: _Step, y: Float[Tensor, "b1 H w1"], column: Float[Tensor, "b2 h2 W"], x: Shaped[Tensor, "B T C H W"]
) -> tuple[Float[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    *_, height, width = x.shape
    yy, yx, xy, xx = _by_sample(step.matrix, (1, 0, 0, 1), x)
    middle, centre = (height - 1) / 2, (width - 1) / 2
    y, column = y - middle, column - centre
    return ((yy * y + middle) + yx * column).round_(), (xy * y + (xx * column + centre)).round_()


def _by_sample(
    given: Mapping[int, tuple[float | int, ...]], other: tuple[float | int, ...], x: Shaped[Tensor, "B T C H W"]
) -> Float[Tensor, "numbers B 1 1"]:
    """Numbers of every sample on the device of the frames, and `other` for the samples without."""
    rows = [given.get(sample, other) for sample in range(len(x))]
    return torch.tensor(rows, dtype=torch.float32).to(x.device).T[..., None, None]


def _within(
    rolls: Mapping[int, tuple[int, int, bool]], height: int, width: int
) -> dict[int, tuple[int, int, int, int]]:
    """Shifts, and what brings a place above or left of the frame back into it: nothing for those that do not wrap."""
    return {
        sample: (dy % height, dx % width, height, width) if wrap else (dy, dx, 0, 0)
        for sample, (dy, dx, wrap) in rolls.items()
    }


def _outside(y: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    return (y < 0) | (y >= height) | (column < 0) | (column >= width)


def _or(lost: Tensor | None, more: Tensor) -> Tensor:
    return more if lost is None else lost | more


def _pick(x: Shaped[Tensor, "B T C H W"], places: _Places) -> Shaped[Tensor, "B T C H W"]:
    batch, time_steps, channels, height, width = x.shape
    y, column, lost, mirror = places.y, places.column, places.lost, places.mirror
    if x.dtype in _SAMPLED:
        grid = x.new_empty(batch, height, width, 2)
        side = 1 if mirror is None else mirror
        grid[..., 0] = column * (side * (2 / width)) + side * (1 / width - 1)
        grid[..., 1] = y * (2 / height) + (1 / height - 1)
        if lost is not None:
            grid.masked_fill_(lost[..., None], OUTSIDE)
        frames = x.reshape(batch, time_steps * channels, height, width)
        return grid_sample(frames, grid, mode="nearest", align_corners=False).view(x.shape)
    if mirror is not None:
        column = torch.where(mirror < 0, width - 1 - column, column)
    nowhere = _or(lost, _outside(y, column, height, width)).expand(batch, height, width).reshape(batch, 1, -1)
    numbers = (y * width + column).expand(batch, height, width).reshape(batch, 1, -1).masked_fill(nowhere, 0).long()
    frames = x.reshape(batch, time_steps * channels, height * width)
    return frames.gather(2, numbers.expand_as(frames)).masked_fill_(nowhere, 0).view(x.shape)


def _bilinear_step(x: Shaped[Tensor, "B T C H W"], step: _Step) -> Shaped[Tensor, "B T C H W"]:
    """Mirrors, turns to places between pixels, then rolls and empties."""
    if not x.is_floating_point():
        raise FramesError(f"bilinear interpolation makes fractions, but frames are {x.dtype}", "use nearest, or floats")
    height, width = x.shape[-2:]
    if step.flip:
        x = _pick(x, _sources([_Step(flip=step.flip)], x))
    if step.matrix:
        moved = list(step.matrix)  # the others must not be interpolated, not even at their own places
        yy, yx, xy, xx = torch.tensor([step.matrix[sample] for sample in moved], device=x.device).T
        none = torch.zeros_like(yy)
        # affine_grid takes (x, y), each from -1 to 1, so that the terms between the axes scale with their ratio.
        theta = torch.stack([xx, xy * height / width, none, yx * width / height, yy, none], dim=-1).view(-1, 2, 3)
        grid = affine_grid(theta, [len(moved), 1, height, width], align_corners=False).to(x.dtype)
        turned = grid_sample(x[moved].flatten(1, 2), grid, mode="bilinear", align_corners=False)
        x = x.index_copy(0, torch.tensor(moved, device=x.device), turned.view(x[moved].shape))
    if step.roll or step.hole:
        x = _pick(x, _sources([_Step(roll=step.roll, hole=step.hole)], x))
    return x


def _swapped(x: Shaped[Tensor, "B T C H W"], params: Sequence[Params]) -> Shaped[Tensor, "B T C H W"]:
    swaps = [sum(isinstance(each, HFlip) and each.swap_polarity for each in p.operations) % 2 == 1 for p in params]
    if not any(swaps):
        return x
    if x.shape[2] != 2:
        raise FramesError(f"polarities are swapped between 2 channels, frames have {x.shape[2]}")
    return torch.where(torch.tensor(swaps, device=x.device)[:, None, None, None, None], x.flip(2), x)
