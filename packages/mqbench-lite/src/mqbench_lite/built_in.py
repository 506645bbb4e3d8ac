"""The algorithms of this package.

References: see the modules of their quantisers; MQBench, arXiv:2111.03759, section 2.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import nn

from mqbench_lite.adaround import AdaRound
from mqbench_lite.calibration import calibrate, quantizers_of
from mqbench_lite.errors import MQBenchError
from mqbench_lite.learned import BoundedWeight, LearnedClip, LearnedStep, UnitRange
from mqbench_lite.nonuniform import AcademicQuantizer, IntervalQuantizer, PowersOfTwo
from mqbench_lite.quantizers import Quantizer, Role
from mqbench_lite.soft import SoftQuantizer
from mqbench_lite.specs import QuantSpec

_log = logging.getLogger(__name__)

API_VERSION = 1


@dataclass(frozen=True)
class Lsq:
    """LSQ, and LSQ+ where the grid is asymmetric.

    Attributes:
        init: where learning starts: `mse` at the range of least error; `mean` at 2 mean|x| / sqrt(qmax), the papers'
            form; `std` has LSQ+'s mean +- 3 standard deviations for weights, and `mse` for activations.
    """

    init: str = "mse"
    name: ClassVar[str] = "lsq"
    kind: ClassVar[Literal["qat", "ptq"]] = "qat"
    api_version: ClassVar[int] = API_VERSION

    def __post_init__(self) -> None:
        if self.init not in ("mse", "mean", "std"):
            raise MQBenchError(f"lsq has no init {self.init!r}", "use mse, mean or std")

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """A learned step size."""
        return LearnedStep(spec, role, observer="mse" if self.init == "std" and role == "act" else self.init)


@dataclass(frozen=True)
class Pact:
    """PACT activations over DoReFa weights.

    Attributes:
        start: alpha at first; None takes the calibrated range instead of the paper's fixed start.
        paper_scale: weights as `Dorefa` has them.
    """

    start: float | int | None = 6.0
    paper_scale: bool = False
    name: ClassVar[str] = "pact"
    kind: ClassVar[Literal["qat", "ptq"]] = "qat"
    api_version: ClassVar[int] = API_VERSION

    def __post_init__(self) -> None:
        if self.start is not None and not 0 < self.start < math.inf:
            raise MQBenchError(f"pact starts at {self.start}", "give a positive number")
        _warn_of(self.paper_scale)

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """DoReFa's weight or a learned clip."""
        if role == "weight":
            return BoundedWeight(spec, role, keeps_scale=not self.paper_scale)
        return LearnedClip(spec, role, start=self.start)


@dataclass(frozen=True)
class Dorefa:
    """DoReFa-Net.

    Attributes:
        paper_scale: the literal form, whose weights lie in [-1, 1]. Where batch normalisation is folded into weights
            (strategies 1 to 4), it feeds the statistics back into themselves and training diverges.
    """

    paper_scale: bool = False
    name: ClassVar[str] = "dorefa"
    kind: ClassVar[Literal["qat", "ptq"]] = "qat"
    api_version: ClassVar[int] = API_VERSION

    def __post_init__(self) -> None:
        _warn_of(self.paper_scale)

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """A bounded weight or a fixed range."""
        if role == "weight":
            return BoundedWeight(spec, role, keeps_scale=not self.paper_scale)
        return UnitRange(spec, role)


def _warn_of(paper_scale: bool) -> None:
    if paper_scale:
        _log.warning("DoReFa's weights forget their scale; with batch normalisation folded in, training diverges")


@dataclass(frozen=True)
class Dsq:
    """DSQ with its soft staircase."""

    name: ClassVar[str] = "dsq"
    kind: ClassVar[Literal["qat", "ptq"]] = "qat"
    api_version: ClassVar[int] = API_VERSION

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """A fixed range with a soft gradient."""
        return SoftQuantizer(spec, role, observer=_DSQ_RANGES[role])


@dataclass(frozen=True)
class Ste:
    """Straight-through with DSQ's ranges: what DSQ's released code does."""

    name: ClassVar[str] = "ste"
    kind: ClassVar[Literal["qat", "ptq"]] = "qat"
    api_version: ClassVar[int] = API_VERSION

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """A fixed range."""
        return Quantizer(spec, role, observer=_DSQ_RANGES[role])


_DSQ_RANGES: Mapping[Role, str] = MappingProxyType({"weight": "clip_std", "act": "batch_mean_max"})


@dataclass(frozen=True)
class Academic:
    """QIL or APoT, for the academic profile alone."""

    name: str
    quantizer: type[AcademicQuantizer]
    kind: ClassVar[Literal["qat", "ptq"]] = "qat"
    api_version: ClassVar[int] = API_VERSION

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """A quantiser without codes.

        Raises:
            ProfileError: the grid is not that of the academic profile.
        """
        return self.quantizer(spec, role)


@dataclass(frozen=True)
class MinMax:
    """Plain post-training quantisation: ranges from data, and nothing learned.

    Attributes:
        observer: of both roles where calibration names no other.
    """

    observer: str = "minmax"
    name: ClassVar[str] = "minmax"
    kind: ClassVar[Literal["qat", "ptq"]] = "ptq"
    api_version: ClassVar[int] = API_VERSION

    def make_quantizer(self, spec: QuantSpec, role: Role) -> Quantizer:
        """A fixed range."""
        return Quantizer(spec, role, observer=self.observer)

    def apply(
        self,
        qmodel: nn.Module,
        calib_loader: Iterable[Any],
        *,
        seed: int = 0,
        steps: int = 0,
        batches: int = 32,
        observer: str | tuple[str, str] | None = None,
    ) -> nn.Module:
        """Calibrates and freezes, in place; nothing is drawn or learned, so seed and steps change nothing."""
        del seed, steps
        calibrate(qmodel, calib_loader, batches, observer)
        for _, quantizer in quantizers_of(qmodel):
            quantizer.freeze()
        return qmodel


LSQ, PACT, DOREFA, DSQ, STE = Lsq(), Pact(), Dorefa(), Dsq(), Ste()
MINMAX, ADAROUND = MinMax(), AdaRound()
QIL, APOT = Academic("qil", IntervalQuantizer), Academic("apot", PowersOfTwo)
