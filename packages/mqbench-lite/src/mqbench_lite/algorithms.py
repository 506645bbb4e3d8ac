"""The algorithms by name: those of this package, and those that other packages register.

An algorithm makes the quantisers of a model; one of kind `ptq` also applies itself with calibration data. Plug-ins come
by the entry-point group `mqbench_lite.algorithms`. One that does not load, is none, or takes a name that is taken is
kept as a problem for `doctor` to show and hides no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from core_utils.errors import one_line
from mqbench_lite import built_in
from mqbench_lite.errors import MQBenchError
from mqbench_lite.quantizers import Role
from mqbench_lite.specs import QuantSpec

GROUP = "mqbench_lite.algorithms"


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
            problems.append(f"{_origin(point)} does not load: {one_line(error)}")
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
    if loaded.api_version != built_in.API_VERSION:
        return f"is for api_version {loaded.api_version}; this is {built_in.API_VERSION}"
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


BUILT_IN: tuple[Algorithm, ...] = (
    built_in.LSQ,
    built_in.PACT,
    built_in.DOREFA,
    built_in.DSQ,
    built_in.STE,
    built_in.QIL,
    built_in.APOT,
    built_in.MINMAX,
    built_in.ADAROUND,
)
