"""How a federation is run: who takes part in a round, what is merged, and what is borne."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fedcl.errors import ConfigError
from fedcl.privacy import Privacy
from fedcl.robust import Aggregator
from fedcl.server import Scope


@dataclass(frozen=True)
class Straggler:
    """Clients that do not keep up.

    Attributes:
        fraction: of the sampled clients, each round anew.
        mode: "drop" ignores them; "partial" takes what they have after a uniformly drawn share of their steps.

    Raises:
        ConfigError: a fraction outside [0, 1].
    """

    fraction: float
    mode: Literal["drop", "partial"] = "drop"

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"fraction of stragglers must lie in [0, 1], got {self.fraction}")
        if self.mode not in ("drop", "partial"):
            raise ConfigError(f"mode of stragglers must be drop or partial, got {self.mode!r}")


@dataclass(frozen=True)
class Protocol:
    """Settings of the server's loop.

    Attributes:
        scope: what is merged with what, as of `Server`.
        rounds: of each phase.
        fraction: of the available clients that are sampled each round.
        dropout: probability that a client is not available in a round.
        straggler: clients that are late.
        weights: of clients in the mean: "examples" or "uniform".
        aggregator: how a group is merged.
        privacy: clipping and noise.
        max_update_norm: longest update of a client.
        norm_policy: a longer one is clipped or rejected.
        quorum: fewest admitted replies of a round.
        max_failed_rounds: rounds without quorum in a row that are borne.
        diagnose: when local and merged accuracy are compared: at the end of each "phase", in every "round", or "never".
        seed: of sampling, batches, initial weights and noise.

    Raises:
        ConfigError: a value outside its range.
    """

    scope: Scope = "task"
    rounds: int = 8
    fraction: float = 1.0
    dropout: float = 0.0
    straggler: Straggler | None = None
    weights: Literal["examples", "uniform"] = "examples"
    aggregator: Aggregator = field(default_factory=Aggregator)
    privacy: Privacy | None = None
    max_update_norm: float | None = None
    norm_policy: Literal["clip", "reject"] = "clip"
    quorum: int = 1
    max_failed_rounds: int = 3
    diagnose: Literal["phase", "round", "never"] = "phase"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("quorum", 1), ("max_failed_rounds", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction must lie in (0, 1], got {self.fraction}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.max_update_norm is not None and not 0 < self.max_update_norm < math.inf:
            raise ConfigError(f"max_update_norm must be above 0, got {self.max_update_norm}")
        for name, known in (("weights", ("examples", "uniform")), ("norm_policy", ("clip", "reject"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
