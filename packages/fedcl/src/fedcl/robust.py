"""Means that a few false or broken updates cannot move far. All are unweighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedcl.errors import ConfigError

Rule = Literal["mean", "median", "trimmed", "krum", "multikrum"]
Fallback = Literal["error", "skip", "mean"]
CHUNK = 2**18
"""Values of each client that a rule sorts at once."""


@dataclass(frozen=True)
class Aggregator:
    """How the updates of one group become one.

    Attributes:
        rule: "mean" is the weighted mean and holds no update in memory; the others hold all of a group.
        trim: share of the smallest and of the largest values that "trimmed" leaves out, in [0, 0.5).
        byzantine: f, how many clients "krum" and "multikrum" expect to be false.
        fallback: for a group with fewer updates than the rule needs: "error" ends the run, "skip" leaves the group as it
            is, "mean" takes the weighted mean. What was done is recorded.

    Raises:
        ConfigError: a value outside its range.
    """

    rule: Rule = "mean"
    trim: float = 0.2
    byzantine: int = 1
    fallback: Fallback = "error"

    def __post_init__(self) -> None:
        if self.rule not in ("mean", *RULES):
            raise ConfigError(f"aggregator must be one of mean, {', '.join(RULES)}, got {self.rule!r}")
        if not 0 <= self.trim < 0.5:
            raise ConfigError(f"trim must lie in [0, 0.5), got {self.trim}")
        if self.byzantine < 0:
            raise ConfigError(f"byzantine must not be negative, got {self.byzantine}")

    @property
    def needs(self) -> int:
        """Fewest updates for which the rule holds what it promises."""
        return {"mean": 1, "median": 3, "trimmed": 3}.get(self.rule, 2 * self.byzantine + 3)

    def __call__(self, updates: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        """The group's update."""
        if self.rule == "median":
            return _chunked(updates, median)
        if self.rule == "trimmed":
            return _chunked(updates, lambda part: trimmed_mean(part, self.trim))
        kept = 1 if self.rule == "krum" else len(updates) - self.byzantine
        return krum(updates, self.byzantine, kept)


def median(updates: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
    """The middle value of each coordinate, or the mean of both middle ones."""
    ordered, middle = updates.sort(0).values, len(updates) // 2
    return ordered[middle] if len(updates) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def trimmed_mean(updates: Float[Tensor, "K P"], trim: float) -> Float[Tensor, " P"]:
    """The mean of each coordinate without the floor(trim K) smallest and as many largest values."""
    cut = int(trim * len(updates))
    return updates.sort(0).values[cut : len(updates) - cut].mean(0)


def krum(updates: Float[Tensor, "K P"], byzantine: int, kept: int = 1) -> Float[Tensor, " P"]:
    """The mean of the updates that lie closest to their K - f - 2 nearest neighbours.

    Args:
        updates: at least 2 f + 3.
        byzantine: f.
        kept: how many updates are averaged; 1 is Krum, more is Multi-Krum.

    Raises:
        ConfigError: too few updates.

    Reference: Blanchard et al., NeurIPS 2017.
    """
    count = len(updates)
    if count < 2 * byzantine + 3:
        raise ConfigError(f"krum with byzantine={byzantine} needs {2 * byzantine + 3} updates, got {count}")
    squares = torch.cdist(updates, updates, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    nearest = squares.fill_diagonal_(torch.inf).sort(1).values[:, : count - byzantine - 2]
    chosen = nearest.sum(1).argsort(stable=True)[:kept]
    return updates[chosen.sort().values].mean(0)


def _chunked(updates: Float[Tensor, "K P"], rule: Callable[[Tensor], Tensor]) -> Tensor:
    """A rule of single coordinates, a part of them at a time: sorting takes twice the memory of what it sorts."""
    return torch.cat([rule(part) for part in updates.split(CHUNK, 1)])


RULES: tuple[str, ...] = ("median", "trimmed", "krum", "multikrum")
