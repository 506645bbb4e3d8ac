"""What the processor does with products of 8-bit codes."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mqbench_lite.graph import QuantizedGraph

UNSIGNED_MAX, INT16_MAX = 255, 2**15 - 1
SAFE_WEIGHT = INT16_MAX // (2 * UNSIGNED_MAX)
"""Largest weight code, 64, with which two products with unsigned codes always fit int16."""

VNNI = ("avx512_vnni", "avx_vnni")
"""Flags of processors that add products of unsigned and signed codes in int32."""
LIMITS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": (),  # MLAS chooses by the processor alone
    "openvino": ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    "torch-onednn": ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    "torch-x86": ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS"),
    "torch-fbgemm": ("FBGEMM_ENABLE_INSTRUCTIONS",),
}
"""Environment variables by which each engine that may saturate is held back from the processor's instructions."""
WITH_VNNI = ("vnni", "amx", "avx10", "bf16", "fp16", "default", "all")
"""What the names of instruction sets contain that have these instructions."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The processor as quantised kernels see it.

    Attributes:
        machine: architecture.
        flags: those of its instruction sets that matter here.
        forced: environment variables that hold an engine back, with their values.
        saturating: engines whose pairs of products are added in int16 here.
    """

    machine: str
    flags: tuple[str, ...]
    forced: Mapping[str, str]
    saturating: tuple[str, ...]

    @property
    def advice(self) -> str:
        """One line for `doctor`."""
        if not self.saturating:
            return "8-bit weights are safe in all engines"
        names = ", ".join(self.saturating)
        return f"8-bit weights saturate in {names}: use a profile with reduce_range (7 bits, its name ends in -avx2)"

    def profile(self, engine: str) -> str:
        """Name of the built-in profile with which an engine is exact here: `<engine>-avx2` where it saturates."""
        return f"{engine}-avx2" if engine in self.saturating else engine


def host(flags: Set[str] | None = None, environment: Mapping[str, str] | None = None) -> Host:
    """Inspects this processor and the variables that restrict engines.

    Args:
        flags: instead of the processor's.
        environment: instead of the process's.
    """
    found = _flags() if flags is None else frozenset(flags)
    variables = os.environ if environment is None else environment
    machine = platform.machine()
    names = {name for names in LIMITS.values() for name in names}
    forced = {name: variables[name] for name in sorted(names) if variables.get(name)}
    saturating = tuple(engine for engine, limits in LIMITS.items() if _saturates(found, limits, forced))
    kept = sorted(
        flag for flag in found if flag.startswith(("avx", "amx", "fma", "f16c", "sse4", "asimd", "i8mm", "sve"))
    )
    on_x86 = machine.lower() in ("x86_64", "amd64") or flags is not None
    return Host(machine=machine, flags=tuple(kept), forced=forced, saturating=saturating if on_x86 else ())


def saturating_layers(model: QuantizedGraph) -> dict[str, int]:
    """Layers with a weight beyond what is safe without VNNI, with the largest code's size: a static bound.

    Two neighbouring products are at most 2 * 255 * max|q_w| and must not exceed 32,767.
    """
    found = {}
    for name, layer in model.layers.items():
        if layer.grid is not None and layer.grid.qmin < 0:
            largest = int(np.abs(layer.weight.astype(np.int32)).max(initial=0))
            if largest > SAFE_WEIGHT:
                found[name] = largest
    return found


def _saturates(flags: Set[str], limits: tuple[str, ...], forced: Mapping[str, str]) -> bool:
    if not any(flag in flags for flag in VNNI):
        return True
    values = [forced[name].lower() for name in limits if name in forced]
    return any(not any(part in value for part in WITH_VNNI) for value in values)


def _flags() -> frozenset[str]:
    """Linux's names of the processor's instruction sets; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    marked = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(marked, "").split())
