"""What is decided before a model is quantised: bits, method, and the schedule of the reconstruction."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from qdrop.errors import ConfigError

Method = Literal["nearest", "adaround", "brecq", "case2", "case3", "qdrop"]
Granularity = Literal["layer", "block"]
Placement = Literal["auto", "device", "cpu", "disk"]

PAPER_ITERS = 20_000
"""Iterations of the paper's schedule; the default rates are its own at this length and larger for shorter runs."""
LR_ALPHA, LR_ALPHA_MAX = 1e-3, 1e-2
LR_SCALE, LR_SCALE_MAX = 4e-5, 1e-3


@dataclass(frozen=True)
class LayerOverride:
    """What differs for the layers, tensors and units whose name matches.

    Args:
        w_bits: bits of the weights, 2 to 8.
        a_bits: bits of the activations that the matching modules produce, 2 to 8.
        skip: leave the matching modules in floating point.
        reg_weight: lambda of the matching units.
    """

    w_bits: int | None = None
    a_bits: int | None = None
    skip: bool = False
    reg_weight: float | None = None

    def __post_init__(self) -> None:
        for name in ("w_bits", "a_bits"):
            _check_bits(f"overrides: {name}", getattr(self, name), optional=True)
        if self.reg_weight is not None and not self.reg_weight >= 0:
            raise ConfigError(f"overrides: reg_weight must be at least 0, got {self.reg_weight}")


@dataclass(frozen=True)
class QDropConfig:
    """How a model is quantised. The defaults are the paper's, at 4 bits.

    Args:
        w_bits: bits of the weights, 2 to 8.
        a_bits: bits of the activations, 2 to 8.
        w_symmetric: weights on a grid around zero; at 2 bits its levels are -2, -1, 0, 1 steps, a large bias.
        a_symmetric: activations on a grid around zero.
        first_last_bits: bits of the first and last layers' weights and of the tensor that enters the last layer;
            None treats them as the others.
        stem_output_bits: bits of the tensor that the first layer produces; 8 is BRECQ's setting.
        method: `nearest` rounds and does no reconstruction; `adaround` and `brecq` learn the rounding with activations
            in floating point (case 1), by layers and by blocks; `case2` with all activations quantised; `case3` with
            those before the unit quantised; `qdrop` with each element quantised at random.
        granularity: what is reconstructed at once. `adaround` is by layers, `brecq` by blocks, whatever is said here.
        drop_p: probability that an activation's element keeps its floating-point value (`qdrop` only); 0 is case 2.
        iters: iterations per unit.
        batch_size: samples per iteration.
        lr_alpha: Adam's rate of the rounding variables; None: 1e-3 at 20,000 iterations, more for fewer, at most 1e-2.
        lr_scale: Adam's rate of the activation step sizes at the start of its cosine; None: 4e-5 at 20,000 iterations,
            in inverse proportion for fewer, at most 1e-3.
        reg_weight: lambda, the weight of the rounding regulariser.
        warmup: share of the iterations without the regulariser.
        beta: the regulariser's exponent at the end of the warm-up and of the run.
        act_init: activation ranges of all tensors from the floating-point network (`fp`), or of a unit's tensors when
            it is reached, behind the quantised ones (`sequential`).
        init_samples: calibration samples that the ranges are taken from.
        holdout: share of the calibration samples that no unit is tuned on; a unit whose loss on them did not fall
            keeps its nearest rounding.
        overrides: by name or glob of modules, what differs; the last match decides.
        cache: where the inputs and outputs of the unit at hand are kept.
        cache_budget: bytes that they may take there before the next slower place is used; None: half of what is free.
        reduction: what the squared error is summed over before the mean: the channel axis, or axis 1 as the reference
            code has it, which for [B, T, C] sums over tokens.
        seed: decides calibration draws and drop masks, per unit.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """

    w_bits: int = 4
    a_bits: int = 4
    w_symmetric: bool = False
    a_symmetric: bool = False
    first_last_bits: int | None = 8
    stem_output_bits: int | None = None
    method: Method = "qdrop"
    granularity: Granularity = "block"
    drop_p: float = 0.5
    iters: int = PAPER_ITERS
    batch_size: int = 32
    lr_alpha: float | None = None
    lr_scale: float | None = None
    reg_weight: float = 0.01
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    act_init: Literal["fp", "sequential"] = "fp"
    init_samples: int = 256
    holdout: float = 0.0
    overrides: Mapping[str, LayerOverride] = field(default_factory=dict)
    cache: Placement = "auto"
    cache_budget: int | None = None
    reduction: Literal["channel", "dim1"] = "channel"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("w_bits", "a_bits"):
            _check_bits(name, getattr(self, name))
        for name in ("first_last_bits", "stem_output_bits"):
            _check_bits(name, getattr(self, name), optional=True)
        choices = {
            "method": Method,
            "granularity": Granularity,
            "act_init": Literal["fp", "sequential"],
            "cache": Placement,
            "reduction": Literal["channel", "dim1"],
        }
        for name, type_ in choices.items():
            if getattr(self, name) not in get_args(type_):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(type_))}, got {getattr(self, name)!r}")
        for name in ("drop_p", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout must lie in [0, 1), got {self.holdout}")
        for name, least in (("iters", 0), ("batch_size", 1), ("init_samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("lr_alpha", "lr_scale", "cache_budget"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if not self.reg_weight >= 0:
            raise ConfigError(f"reg_weight must be at least 0, got {self.reg_weight}")
        for pattern, override in self.overrides.items():
            if not isinstance(override, LayerOverride):
                raise ConfigError(f"overrides: {pattern!r} must be a LayerOverride, got {type(override).__name__}")
        if len(self.beta) != 2 or not all(value > 0 for value in self.beta):
            raise ConfigError(f"beta must be two positive numbers, start and end, got {self.beta}")

    @classmethod
    def for_arch(cls, name: str, **settings: object) -> QDropConfig:
        """The paper's settings for an architecture: lambda is 0.1 for MobileNetV2 and 0.2 for MNASNet, else 0.01.

        Args:
            name: name of the architecture as timm or torchvision writes it, for example `mobilenet_v2`.
            **settings: fields that differ.
        """
        plain = name.lower().replace("_", "").replace("-", "")
        by_name = {"mobilenetv2": 0.1, "mnasnet": 0.2}
        reg_weight = next((value for known, value in by_name.items() if known in plain), cls.reg_weight)
        return cls(**{"reg_weight": reg_weight, **settings})  # type: ignore[arg-type]  # checked when made

    @property
    def keep_p(self) -> float:
        """Probability that an element is quantised while a unit is reconstructed."""
        return 1.0 - self.drop_p if self.method == "qdrop" else 1.0

    @property
    def feels_activations(self) -> bool:
        """Whether the unit's own activation quantisers are on while its rounding is learned."""
        return self.method in ("case2", "qdrop")

    @property
    def rate_of_alpha(self) -> float:
        """Adam's rate of the rounding variables: a short run has to move them as far as a long one, up to a cap."""
        if self.lr_alpha is not None:
            return self.lr_alpha
        return min(LR_ALPHA_MAX, max(LR_ALPHA, LR_ALPHA * 0.25 * PAPER_ITERS / max(self.iters, 1)))

    @property
    def rate_of_scale(self) -> float:
        """Adam's rate of the activation step sizes at the start."""
        if self.lr_scale is not None:
            return self.lr_scale
        return min(LR_SCALE_MAX, max(LR_SCALE, LR_SCALE * PAPER_ITERS / max(self.iters, 1)))

    @property
    def by_block(self) -> bool:
        """Whether units are blocks: AdaRound is by layers and BRECQ by blocks by definition."""
        return {"adaround": False, "brecq": True}.get(self.method, self.granularity == "block")

    def override(self, name: str) -> LayerOverride:
        """What the overrides say together about a module, tensor or unit; a later match decides over an earlier one."""
        found = LayerOverride()
        for pattern, override in self.overrides.items():
            if name == pattern or fnmatch.fnmatchcase(name, pattern):
                said = {key: value for key, value in vars(override).items() if value not in (None, False)}
                found = replace(found, **said)
        return found


def _check_bits(name: str, bits: int | None, *, optional: bool = False) -> None:
    if optional and bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ConfigError(f"{name} must be a whole number from 2 to 8, got {bits!r}")
