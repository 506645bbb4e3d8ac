"""The temperature of the routers: high at first, so that all kernels learn, then 1.

References: Chen et al., CVPR 2020, arXiv:1912.03458, section 3.3; spec section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from torch import nn

from dynsparse.converting import dynamic_layers
from dynsparse.errors import ConfigError, check_choice
from dynsparse.routers import Router

DROPS = 10
"""Equal falls of the kind "step": with t0 = 31, one of 3 after each of ten epochs."""


@dataclass(frozen=True, kw_only=True)
class TemperatureSchedule:
    """A temperature for every step, never rising and never below 1.

    Attributes:
        t0: temperature of step 0, at least 1.
        steps: optimiser steps until the temperature is 1 (ten epochs in dynamic convolution and ODConv).
        kind: "linear" falls every step, "step" in ten equal drops.

    Raises:
        ConfigError: t0 below 1 or not finite, negative steps, no such kind.
    """

    t0: float | int = 30.0
    steps: int
    kind: str = "linear"

    def __post_init__(self) -> None:
        if not (isfinite(self.t0) and self.t0 >= 1):
            raise ConfigError(f"t0, the first temperature, must be at least 1; got {self.t0}")
        if self.steps < 0:
            raise ConfigError(f"steps must not be negative; got {self.steps}")
        check_choice("kind", self.kind, ("linear", "step"))

    def __call__(self, step: int) -> float:
        """T(i) = 1 + (T0 - 1) max(0, N - i) / N; the kind "step" rounds i down to a tenth of N."""
        if step >= self.steps:
            return 1.0
        done = step / self.steps if self.kind == "linear" else DROPS * step // self.steps / DROPS
        return 1 + (self.t0 - 1) * (1 - done)

    def apply(self, model: nn.Module, step: int) -> float:
        """Sets the temperature of every router that has one (CondConv's has none), and returns it.

        Raises:
            ConversionError: the model has no dynamic layer.
        """
        temperature = self(step)
        for _, layer in dynamic_layers(model):
            if isinstance(layer.router, Router):
                layer.router.temperature.fill_(temperature)
        return temperature
