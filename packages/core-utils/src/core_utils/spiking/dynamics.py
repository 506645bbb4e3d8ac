"""What a backend is given: a neuron's dynamics, and the precision that they run in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from core_utils.errors import UserError
from core_utils.spiking.surrogates import Surrogate, triangle

Compare = Literal[">", ">="]
Reset = Literal["hard", "soft"]

TRIANGLE = triangle()


@dataclass(frozen=True)
class Neuron:
    """What decides a neuron's dynamics; the arguments of `lif` by the same names, checked."""

    decay: float
    threshold: float = 1.0
    input_scale: float = 1.0
    compare: Compare = ">"
    reset: Reset = "hard"
    detach_reset: bool = False
    surrogate: Surrogate = TRIANGLE

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise UserError(
                f"decay must lie in (0, 1], got {self.decay}", "for a time constant tau give exp(-step / tau)"
            )
        require_one_of("compare", self.compare, get_args(Compare))
        require_one_of("reset", self.reset, get_args(Reset))

    @property
    def fires(self) -> Callable[..., Tensor]:
        """Of (u, threshold): where the potential is past the threshold."""
        return torch.gt if self.compare == ">" else torch.ge

    @property
    def silent(self) -> Callable[..., Tensor]:
        """Of (u, threshold): where it is not."""
        return torch.le if self.compare == ">" else torch.lt


def kept(dtype: torch.dtype) -> torch.dtype:
    """The precision of the membrane potential: a comparison in half precision would move spikes."""
    return torch.promote_types(dtype, torch.float32)


def rest(x: Tensor) -> Tensor:
    """The membrane potential before the first step, in the shape of the input of one step."""
    return torch.zeros(x.shape, dtype=kept(x.dtype), device=x.device)


def require_one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Refuses a value that is none of the valid ones, which it names."""
    if value not in valid:
        raise UserError(f"{name} must be one of {', '.join(valid)}, got {value!r}")
