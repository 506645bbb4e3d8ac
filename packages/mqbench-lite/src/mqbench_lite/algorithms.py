"""The algorithms by name: those of this package, and those that other packages register.

An algorithm makes the quantisers of a model; one of kind `ptq` also applies itself with calibration data. Plug-ins come
by the entry-point group `mqbench_lite.algorithms`. One that does not load, is none, or takes a name that is taken is
kept as a problem for `doctor` to show and hides no other.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

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

GROUP = "mqbench_lite.algorithms"
API_VERSION = 1


@runtime_checkable
class Algorithm(Protocol):
    """What an entry point gives.

    Attributes:
        name: unique.
        kind: `qat` is trained; `ptq` also has `apply(qmodel, calib_loader, *, seed, steps, **options)`, which returns
            the model with its quantisers frozen.
        api_version: 1.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 -- above

    @property
    def kind(self) -> Literal["qat", "ptq"]: ...  # noqa: D102

    @property
    def api_version(self) -> int: ...  # noqa: D102

    def make_quantizer(self, spec: QuantSpec, role: Role) -> nn.Module:
        """A quantiser: a module with `scale`, `zero_point`, `qmin`, `qmax` and `enabled`."""
        ...


@dataclass(frozen=True)
class Registry:
    """What is there.

    Attributes:
        algorithms: by name.
        problems: a line for each plug-in that is left out, with the reason.
    """

    algorithms: Mapping[str, Algorithm]
    problems: tuple[str, ...]


def get(name: str, **options: Any) -> Algorithm:
    """An algorithm by name.

    Args:
        name: of this package or of a plug-in.
        **options: fields of this package's, such as `init="mean"` for lsq.

    Raises:
        MQBenchError: no algorithm of that name, or it has no such option; names those that there are.
    """
    known = registry().algorithms
    if name not in known:
        raise MQBenchError(f"there is no algorithm {name!r}", f"use one of {', '.join(sorted(known))}")
    algorithm: Any = known[name]
    if not options:
        return algorithm  # type: ignore[no-any-return]
    fields = [field.name for field in dataclasses.fields(algorithm)] if dataclasses.is_dataclass(algorithm) else []
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise MQBenchError(f"{name} has no option {unknown[0]!r}", f"it has {', '.join(fields) or 'none'}")
    return dataclasses.replace(algorithm, **options)  # type: ignore[no-any-return]


def names() -> tuple[str, ...]:
    """Names of all algorithms, this package's first."""
    return tuple(registry().algorithms)


def registry(found: Iterable[EntryPoint] | None = None) -> Registry:
    """Everything that is installed now.

    Args:
        found: entry points to look at; None: those of the installed packages.
    """
    algorithms: dict[str, Algorithm] = {each.name: each for each in BUILT_IN}
    problems = []
    for point in entry_points(group=GROUP) if found is None else found:
        try:
            loaded = point.load()
        except Exception as error:
            problems.append(f"{_origin(point)} does not load: {type(error).__name__}: {_one_line(error)}")
            continue
        problem = _problem(loaded, algorithms)
        if problem:
            problems.append(f"{_origin(point)} {problem}")
        else:
            algorithms[loaded.name] = loaded
    return Registry(MappingProxyType(algorithms), tuple(problems))


def _problem(loaded: Any, taken: Mapping[str, Algorithm]) -> str | None:
    """What keeps an object from being an algorithm; this package's own entry points are no duplicates."""
    if not isinstance(loaded, Algorithm):
        missing = [name for name in ("name", "kind", "api_version", "make_quantizer") if not hasattr(loaded, name)]
        return f"is no algorithm: it lacks {', '.join(missing)}"
    if loaded.api_version != API_VERSION:
        return f"is for api_version {loaded.api_version}; this is {API_VERSION}"
    if loaded.kind not in ("qat", "ptq"):
        return f"has the kind {loaded.kind!r}; it must be qat or ptq"
    if loaded.kind == "ptq" and not callable(getattr(loaded, "apply", None)):
        return "is of kind ptq and has no apply"
    if loaded.name in taken and taken[loaded.name] is not loaded:
        return f"takes the name {loaded.name!r}, which is taken"
    return None


def _origin(point: EntryPoint) -> str:
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"the plug-in {point.name}{package} ({point.value})"


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@dataclass(frozen=True)
class Lsq:
    """LSQ, and LSQ+ where the grid is asymmetric.

    Attributes:
        init: where learning starts: `mse` at the range of least error; `mean` at 2 mean|x| / sqrt(qmax), the papers'
            form; `std` has LSQ+'s mean +- 3 standard deviations for weights, and `mse` for activations.
    """

    init: Literal["mse", "mean", "std"] = "mse"
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

    start: float | None = 6.0
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
BUILT_IN: tuple[Algorithm, ...] = (@dataclass(frozen=True)
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


LSQ, PACT, DOREFA, DSQ, STE, QIL, APOT, MINMAX, ADAROUND)
