"""Which operations a sample gets, by lot: levels, presets, and policies of one's own.

Reference: arXiv 2203.06145. Levels 1 and 2 of roll, rotate and shear are those of the released code (N-Caltech101 and
CIFAR10-DVS); level 3 and the sides of cutout are our extrapolation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core_utils.settings import settings
from snn_nda.errors import PolicyError
from snn_nda.params import Cutout, HFlip, Operation, Params, Roll, Rotate, ShearX, nearest_name

LEVELS: Mapping[str, Mapping[int, int]] = {
    "roll": {1: 3, 2: 5, 3: 7},
    "rotate": {1: 15, 2: 30, 3: 45},
    "shear": {1: 15, 2: 30, 3: 45},
    "cutout": {1: 8, 2: 16, 3: 24},
}
"""Largest shift (pixels at width 48), largest angles (degrees), and side of the square (pixels at 48), by magnitude."""

REFERENCE_WIDTH = 48
"""Width of the frames that the levels in pixels are meant for."""

CODE_MAGNITUDES: Mapping[str, int] = {"cifar10-dvs": 2, "n-caltech101": 1}
"""Level that the released code has for each of its data sets."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Mirrors with probability `flip`, then applies `num_ops` different ones of `ops`, each as likely as the others.

    Attributes:
        magnitude: level, 1, 2 or 3; decides each range that is not given below.
        num_ops: operations that a sample gets, 0 to len(ops), drawn without replacement and applied as drawn.
        ops: names of the operations to draw from.
        flip: probability of mirroring left to right, before all else.
        swap_polarity: a mirrored sample also swaps darker and brighter; for cameras that always move the same way.
        roll: largest shift either way in y and in x, pixels; whole and uniform.
        rotate: largest angle either way, degrees; uniform.
        shear: likewise.
        cutout: side of the square, pixels; its centre is uniform over the pixels.
        fill: "wrap" rolls around the borders, "zero" lets nothing come in.
        absolute: pixels are those of the input, whatever its size; else those of an input that is 48 wide.
        interpolation: of rotation and shear; "nearest" keeps counts whole, "bilinear" does not.

    Raises:
        PolicyError: a value outside its range, or an unknown name.
    """

    magnitude: int = 2
    num_ops: int = 1
    ops: tuple[str, ...] = ("roll", "rotate", "shear", "cutout")
    flip: float = 0.5
    swap_polarity: bool = False
    roll: int | None = None
    rotate: float | None = None
    shear: float | None = None
    cutout: int | None = None
    fill: Literal["wrap", "zero"] = "wrap"
    absolute: bool = False
    interpolation: Literal["nearest", "bilinear"] = "nearest"

    def __post_init__(self) -> None:
        if self.magnitude not in (1, 2, 3):
            raise PolicyError(f"magnitude must be 1, 2 or 3, got {self.magnitude}")
        for name in self.ops:
            if name not in LEVELS:
                raise PolicyError(
                    f"ops names the unknown operation {name!r}",
                    f"did you mean {nearest_name(name, LEVELS)!r}? There are {', '.join(LEVELS)}",
                )
        if len(set(self.ops)) < len(self.ops):
            raise PolicyError(f"ops names an operation twice: {', '.join(self.ops)}")
        if not 0 <= self.num_ops <= len(self.ops):
            raise PolicyError(f"num_ops must lie between 0 and {len(self.ops)}, the number of ops, got {self.num_ops}")
        if not 0 <= self.flip <= 1:
            raise PolicyError(f"flip must be a probability, got {self.flip}")
        for name in LEVELS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < (90 if name == "shear" else float("inf")):
                raise PolicyError(
                    f"{name} must {'lie in [0, 90)' if name == 'shear' else 'not be negative'}, got {value}"
                )
        for name, choices in (("fill", ("wrap", "zero")), ("interpolation", ("nearest", "bilinear"))):
            if getattr(self, name) not in choices:
                raise PolicyError(f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}")

    def limit(self, name: str) -> float | int:
        """The range of an operation: the one given, or that of the level."""
        given = getattr(self, name)
        return LEVELS[name][self.magnitude] if given is None else given

    def pixels(self, name: str, width: int) -> int:
        """The range of an operation in pixels of an input of that width."""
        limit = self.limit(name)
        return int(limit) if self.absolute else round(limit * width / REFERENCE_WIDTH)

    def draw(self, rng: np.random.Generator, size: tuple[int, int] = (REFERENCE_WIDTH, REFERENCE_WIDTH)) -> Params:
        """The parameters of one sample.

        Args:
            rng: the sample's own generator, so that nothing depends on who else is drawn.
            size: height and width of the input, pixels.
        """
        operations: list[Operation] = []
        if self.flip and rng.random() < self.flip:
            operations.append(HFlip(swap_polarity=self.swap_polarity))
        if self.num_ops:
            chosen = (
                rng.permutation(len(self.ops))[: self.num_ops] if self.num_ops > 1 else [rng.integers(len(self.ops))]
            )
            operations += [self._draw_one(self.ops[number], rng, size) for number in chosen]
        return Params(tuple(operations))

    def _draw_one(self, name: str, rng: np.random.Generator, size: tuple[int, int]) -> Operation:
        height, width = size
        if name == "roll":
            limit = self.pixels("roll", width)
            dy, dx = rng.integers(-limit, limit, 2, endpoint=True).tolist()
            return Roll(dy=dy, dx=dx, wrap=self.fill == "wrap")
        if name == "cutout":
            y, x = rng.integers((height, width)).tolist()
            return Cutout(y=y, x=x, length=self.pixels("cutout", width))
        degrees = rng.uniform(-self.limit(name), self.limit(name))
        return Rotate(degrees=degrees) if name == "rotate" else ShearX(degrees=degrees)


NONE = Policy(ops=(), num_ops=0, flip=0.0)
"""No augmentation."""

PAPER = Policy()
"""The paper's family with its mirror: flip 0.5 and one operation of level 2."""

CODE_OPS = ("roll", "rotate", "shear")
"""What the released code draws from: no mirror and no cutout."""


def policy(name: str, data: str | None = None) -> Policy:
    """A policy by its name.

    Args:
        name: `none`, `paper` (also `nda`), `code`, `MxNy` with magnitude x and y operations such as `M1N2`, or the
            path of a TOML file with the fields of `Policy`.
        data: data set whose released code `code` means: cifar10-dvs or n-caltech101.

    Raises:
        UserError: an unknown name, `code` without its data set, or a file that is no policy; names the nearest.
    """
    if name == "none":
        return NONE
    if name in ("paper", "nda"):
        return PAPER
    if name == "code":
        return _code(data)
    if match := re.fullmatch(r"M([1-9]\d*)N([1-9]\d*)", name):
        magnitude, num_ops = map(int, match.groups())
        return Policy(magnitude=magnitude, num_ops=num_ops)
    if name.endswith(".toml"):
        return settings(Policy, file=Path(name))
    known = ("none", "nda", "paper", "code", "M1N1", "M2N1", "M3N1")
    raise PolicyError(
        f"policy {name!r} is unknown", f"did you mean {nearest_name(name, known)!r}? A file ends in .toml"
    )


def adapted(preset: str | Policy, data: str | None = None, **changes: Any) -> Policy:
    """A policy, given or by its name, with some of its fields changed; None changes nothing.

    Raises:
        UserError: as `policy`.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "ops" in given:
        given["ops"] = tuple(given["ops"])
    if "flip" in given:
        given["flip"] = float(given["flip"])
    return replace(preset if isinstance(preset, Policy) else policy(preset, data), **given)


def _code(data: str | None) -> Policy:
    if data is None or data not in CODE_MAGNITUDES:
        raise PolicyError(
            f"the preset code is not defined for the data set {data}", f"there is {' and '.join(CODE_MAGNITUDES)}"
        )
    return replace(PAPER, ops=CODE_OPS, flip=0.0, magnitude=CODE_MAGNITUDES[data])
