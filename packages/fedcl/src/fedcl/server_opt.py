"""Server optimisers: what becomes of the mean of the clients' updates (Reddi et al., ICLR 2021, algorithm 2).

The update is the mean of `after - before`, a step in the direction of descent and not a gradient: it is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedcl.errors import ConfigError

Preset = Literal["paper", "flwr"]


class ServerOptimizer:
    """What all server optimisers have: a learning rate, moments by name, a count of steps.

    A name that a step does not mention keeps its parameters and moments. One object serves one group of tensors;
    `fresh` gives an equal one for another group.

    Args:
        lr: server learning rate, above 0.
    """

    moments: tuple[str, ...] = ()
    """Names of the moments that a step needs, each a mapping of tensors like the parameters."""

    def __init__(self, lr: float) -> None:
        self.settings: dict[str, Any] = {"lr": _positive("lr", lr)}
        self.steps = 0
        self._state: dict[str, dict[str, Tensor]] = {name: {} for name in self.moments}

    @property
    def name(self) -> str:
        """As in a configuration: fedavg, fedavgm, fedadagrad, fedadam or fedyogi."""
        return type(self).__name__.lower()

    def fresh(self) -> ServerOptimizer:
        """An optimiser of the same settings without moments."""
        return type(self)(**self.settings)

    def step(self, params: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New parameters from the current ones and the mean update.

        Args:
            params: floating-point tensors by name, any shape.
            delta: their mean updates, same names, shapes and dtypes; not every parameter needs one.

        Returns:
            The new parameters; those without an update are the same objects as before.
        """
        self.steps += 1
        for name in delta:
            for moment, start in zip(self.moments, self._starts(), strict=True):
                if name not in self._state[moment]:
                    self._state[moment][name] = torch.full_like(params[name], start)
        return {**params, **{name: self._stepped(params[name], delta[name], name) for name in delta}}

    def state_dict(self) -> dict[str, Tensor]:
        """Moments as `<moment>/<name>`, and `steps`, int64."""
        held = {f"{moment}/{name}": value for moment in self.moments for name, value in self._state[moment].items()}
        return {**held, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state that `state_dict` gave."""
        self.steps = int(state["steps"])
        for moment in self.moments:
            of_moment = {key: value for key, value in state.items() if key.startswith(f"{moment}/")}
            self._state[moment] = {key.partition("/")[2]: value.clone() for key, value in of_moment.items()}

    def _starts(self) -> tuple[float, ...]:
        return (0.0,) * len(self.moments)

    def _stepped(self, x: Tensor, delta: Tensor, name: str) -> Tensor:
        raise NotImplementedError


class FedAvg(ServerOptimizer):
    """x + lr * delta; the clients' mean at lr 1.

    Args:
        lr: server learning rate.
    """

    def __init__(self, lr: float = 1.0) -> None:
        super().__init__(lr)

    def _stepped(self, x: Tensor, delta: Tensor, name: str) -> Tensor:  # noqa: ARG002 -- it keeps no moment
        return x + self.settings["lr"] * delta


class FedAvgM(ServerOptimizer):
    """Server momentum: b <- momentum * b + delta; x + lr * b.

    Args:
        lr: server learning rate.
        momentum: in [0, 1).
    """

    moments = ("b",)

    def __init__(self, lr: float = 1.0, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.settings["momentum"] = _fraction("momentum", momentum)

    def _stepped(self, x: Tensor, delta: Tensor, name: str) -> Tensor:
        held = self._state["b"]
        held[name] = self.settings["momentum"] * held[name] + delta
        return x + self.settings["lr"] * held[name]


class _Adaptive(ServerOptimizer):
    """x + lr * m / (sqrt(v) + tau), where m is a running mean of updates and v one of their squares."""

    moments = ("m", "v")

    def __init__(
        self,
        lr: float,
        betas: tuple[float, float],
        tau: float,
        v0: float | None,
        bias_correction: bool | None,
        preset: Preset,
    ) -> None:
        super().__init__(lr)
        if preset not in ("paper", "flwr"):
            raise ConfigError(f"preset must be paper or flwr, got {preset!r}")
        b1, b2 = (_fraction(f"betas[{i}]", beta) for i, beta in enumerate(betas))
        tau = _positive("tau", tau)
        v0 = v0 if v0 is not None else tau**2 if preset == "paper" else 0.0
        if not 0 <= v0 < float("inf"):
            raise ConfigError(f"v0 must not be negative, got {v0}")
        if bias_correction is None:
            bias_correction = preset == "flwr" and isinstance(self, FedAdam)
        given = {"betas": (b1, b2), "tau": tau, "v0": v0, "bias_correction": bias_correction, "preset": preset}
        self.settings |= given

    def _starts(self) -> tuple[float, ...]:
        return 0.0, self.settings["v0"]

    def _stepped(self, x: Tensor, delta: Tensor, name: str) -> Tensor:
        m, v, (b1, _) = self._state["m"], self._state["v"], self.settings["betas"]
        m[name] = b1 * m[name] + (1 - b1) * delta
        v[name] = self._second(v[name], delta**2)
        return x + self._rate() * m[name] / (torch.sqrt(v[name]) + self.settings["tau"])

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        raise NotImplementedError

    def _rate(self) -> float:
        lr: float = self.settings["lr"]
        if not self.settings["bias_correction"]:
            return lr
        # flwr's exponent is one more than the steps taken, so 2 at the first; Kingma and Ba's is the steps taken.
        exponent = self.steps + 1.0 if self.settings["preset"] == "flwr" else float(self.steps)
        # NumPy's power, as in flwr: on some processors it differs from Python's in the last bit.
        first, second = np.power(self.settings["betas"], exponent)
        return float(lr * np.sqrt(1 - second) / (1 - first))


class FedAdagrad(_Adaptive):
    """v <- v + delta^2.

    Args:
        lr: server learning rate.
        betas: decay of m, in [0, 1), 0 in the paper; the second is not used.
        tau: what is added to sqrt(v), above 0.
        v0: initial v; by default tau^2 (paper) or 0 (flwr).
        bias_correction: by default none.
        preset: "paper" (algorithm 2) or "flwr" (what flwr 1.42 computes).
    """

    def __init__(
        self,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.0, 0.99),
        tau: float = 1e-3,
        v0: float | None = None,
        bias_correction: bool | None = None,
        preset: Preset = "paper",
    ) -> None:
        super().__init__(lr, betas, tau, v0, bias_correction, preset)

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


class FedAdam(_Adaptive):
    """v <- b2 v + (1 - b2) delta^2.

    Args:
        lr: server learning rate.
        betas: decays of m and v, in [0, 1).
        tau: what is added to sqrt(v), above 0.
        v0: initial v; by default tau^2 (paper) or 0 (flwr).
        bias_correction: by default none (paper) or flwr's, whose exponent is one too many.
        preset: "paper" (algorithm 2) or "flwr" (what flwr 1.42 computes).
    """

    def __init__(
        self,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
        v0: float | None = None,
        bias_correction: bool | None = None,
        preset: Preset = "paper",
    ) -> None:
        super().__init__(lr, betas, tau, v0, bias_correction, preset)

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        b2 = self.settings["betas"][1]
        return b2 * v + (1 - b2) * square


class FedYogi(_Adaptive):
    """v <- v - (1 - b2) delta^2 sign(v - delta^2).

    Args:
        lr: server learning rate.
        betas: decays of m and v, in [0, 1).
        tau: what is added to sqrt(v), above 0.
        v0: initial v; by default tau^2 (paper) or 0 (flwr).
        bias_correction: by default none.
        preset: "paper" (algorithm 2) or "flwr" (what flwr 1.42 computes).
    """

    def __init__(
        self,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
        v0: float | None = None,
        bias_correction: bool | None = None,
        preset: Preset = "paper",
    ) -> None:
        super().__init__(lr, betas, tau, v0, bias_correction, preset)

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1.0 - self.settings["betas"][1]) * square * torch.sign(v - square)


OPTIMIZERS: dict[str, type[ServerOptimizer]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be above 0, got {value}")
    return float(value)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must lie in [0, 1), got {value}")
    return float(value)
