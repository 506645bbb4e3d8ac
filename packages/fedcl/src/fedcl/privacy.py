"""Central differential privacy: every client's update is clipped, and the mean gets Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedcl.errors import ConfigError


@dataclass(frozen=True)
class Privacy:
    """Clipping and noise, for each group of tensors that is merged on its own.

    Noise comes from a seeded generator, so that runs can be repeated and resumed; whoever knows the seed can remove it.

    Attributes:
        clip_norm: largest Euclidean norm of a client's update of a group, above 0.
        noise_multiplier: deviation of the noise over the largest change that one client can make to the mean.

    Raises:
        ConfigError: a value outside its range.
    """

    clip_norm: float
    noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"clip_norm must be above 0, got {self.clip_norm}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(f"noise_multiplier must not be negative, got {self.noise_multiplier}")

    def noisy(self, mean: Tensor, weights: Sequence[float], seed: Sequence[int]) -> Tensor:
        """The mean with noise; a client of weight w moves it by at most clip_norm w / sum of weights."""
        if not self.noise_multiplier:
            return mean
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))
        deviation = self.noise_multiplier * self.clip_norm * max(weights) / sum(weights)
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        return mean + (deviation * noise).to(mean.device, mean.dtype)


def clipped(update: Tensor, norm: float) -> Tensor:
    """The update, scaled down to a Euclidean norm where it is longer."""
    length = float(torch.linalg.vector_norm(update))
    return update if length <= norm else update * (norm / length)


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Privacy loss of `rounds` Gaussian mechanisms, whatever part of the clients takes part in each.

    Args:
        noise_multiplier: above 0.
        rounds: in which a client's update of a group was used.
        delta: in (0, 1).

    Reference: Mironov, CSF 2017: Renyi divergence of order a is rounds a / (2 z^2); minimised over a in closed form.
    """
    if not (noise_multiplier > 0 and 0 < delta < 1 and rounds >= 0):
        raise ConfigError(
            f"epsilon needs a positive noise_multiplier and delta in (0, 1), got {noise_multiplier}, {delta}"
        )
    rho = rounds / (2 * noise_multiplier**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))
