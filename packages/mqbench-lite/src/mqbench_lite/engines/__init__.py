"""Engines that run exported files; third parties add theirs by the entry-point group `mqbench_lite.engines`.

No engine is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from mqbench_lite.errors import MQBenchError
from mqbench_lite.exporting import Artifact

GROUP = "mqbench_lite.engines"
API_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Which of a network's operations run on integers.

    Attributes:
        integer: operation by name.
        floating: likewise, of those in float.
    """

    integer: Mapping[str, str] = field(default_factory=dict)
    floating: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of integer operations; 1 for a network without any."""
        total = len(self.integer) + len(self.floating)
        return len(self.integer) / total if total else 1.0


@runtime_checkable
class Engine(Protocol):
    """What runs a file.

    Attributes:
        name: unique name.
        api_version: of this protocol, 1.
        exact: whether its outputs are promised to be the integer model's to the bit, for files of its own profile.
    """

    name: str
    api_version: int
    exact: bool

    def available(self) -> bool:
        """Whether it is installed and runs on this host."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the distributions it consists of; empty where it is not installed."""
        ...

    def run(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> Float32[np.ndarray, " ..."]:
        """The first output for a batch.

        Raises:
            EngineMissingError: it is not installed.
        """
        ...

    def integer_coverage(self, artifact: Artifact) -> Coverage:
        """Which operations it runs on integers."""
        ...

    def layer_codes(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> dict[str, Int32[np.ndarray, " ..."]]:
        """Codes by quantiser, of those that it lets see."""
        ...


BUILT_IN = {
    "onnxruntime": "mqbench_lite.engines.onnxruntime:ENGINE",
    "openvino": "mqbench_lite.engines.openvino:ENGINE",
    "torch-x86": "mqbench_lite.engines.torch_kernels:X86",
    "torch-onednn": "mqbench_lite.engines.torch_kernels:ONEDNN",
    "torch-fbgemm": "mqbench_lite.engines.torch_kernels:FBGEMM",
    "torch-qnnpack": "mqbench_lite.engines.torch_kernels:QNNPACK",
    "executorch": "mqbench_lite.engines.executorch:ENGINE",
}
"""What this package's own entry points say; so they are known where it is not installed but on the path."""


@dataclass(frozen=True)
class Discovered:
    """The engines found and what is wrong with others.

    Attributes:
        engines: by name.
        problems: one line for each entry point that cannot be used.
    """

    engines: Mapping[str, Engine]
    problems: tuple[str, ...]


def discover() -> Discovered:
    """Loads every engine; a broken plug-in or a name taken twice is a problem listed, not an error raised."""
    engines: dict[str, Engine] = {}
    problems: list[str] = []
    for name, value in [*BUILT_IN.items(), *_plugins()]:
        try:
            engine = _loaded(value)
        except Exception as error:  # whatever a plug-in raises
            problems.append(f"engine {name} ({value}) cannot be loaded: {error}")
            continue
        if not isinstance(engine, Engine) or engine.api_version != API_VERSION:
            problems.append(f"engine {name} ({value}) does not follow version {API_VERSION} of the protocol")
        elif name in engines:
            problems.append(f"engine {name} ({value}) has the name of another engine")
        else:
            engines[name] = engine
    return Discovered(engines, tuple(problems))


def get(name: str) -> Engine:
    """An engine by name.

    Raises:
        MQBenchError: there is none; the message lists the known names.
    """
    found = discover()
    if name not in found.engines:
        raise MQBenchError(f"engine {name!r} is unknown", f"known are {', '.join(sorted(found.engines))}")
    return found.engines[name]


def _plugins() -> list[tuple[str, str]]:
    return [(point.name, point.value) for point in entry_points(group=GROUP) if point.value not in BUILT_IN.values()]


def _loaded(value: str) -> object:
    from importlib import import_module

    module, _, attribute = value.partition(":")
    return getattr(import_module(module), attribute)
