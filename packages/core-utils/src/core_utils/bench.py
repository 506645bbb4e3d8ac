"""Ours against the named peer, side by side: times from one process, peak memory from one fresh process each."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from core_utils.errors import UserError
from core_utils.jobs import map_jobs

SetUp = Callable[[], Callable[[], object]]
"""Imports what it needs, makes the inputs, and gives the call to measure."""

FEWEST_REPEATS = 6
"""Below this, not even the smallest and the largest of the ratios enclose their median with 95 % confidence."""

SMALLEST_PEAK = 2**20
"""Bytes below which a peak is the allocator's noise, and a ratio of peaks means nothing."""

_ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "sve")


class BenchmarkError(Exception):
    """One side of a benchmark raised or died; the message names the side."""


class NotMeasured(Exception):  # noqa: N818 -- an outcome, not a mistake
    """One side could not be imported; the message names the side."""


@dataclass(frozen=True)
class Benchmark:
    """Something that we do at least as well as a peer, and how both are called.

    Attributes:
        id: short name, unique in its package.
        statement: the sentence that the ratio supports; names the peer.
        ours: module-level set-up of our call, which should take a millisecond or more.
        peer: module-level set-up of the peer's call on the same inputs.
        target: the ratio peer/ours of the times to reach, or None to report it only.
        threads: BLAS, OpenMP and torch threads of both.
    """

    id: str
    statement: str
    ours: SetUp
    peer: SetUp
    target: float | None = None
    threads: int = 1

    def run(self, repeats: int = 10) -> Comparison:
        """Compares the two and says of what the figures are."""
        comparison = compare(self.ours, self.peer, repeats, threads=self.threads)
        return replace(comparison, id=self.id, statement=self.statement, target=self.target)


@dataclass(frozen=True)
class Ratio:
    """Median of `n` paired ratios with a distribution-free interval of at least 95 % confidence."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Side:
    """One side's figures.

    Attributes:
        seconds: median time of a call.
        resident_bytes: memory of a fresh process after set-up.
        peak_bytes: what its first call needs on top of that at its peak.
    """

    seconds: float
    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Ours against the peer.

    Attributes:
        ratio: time of the peer over ours; above 1, ours is faster.
        memory_ratio: peak memory of the peer over ours; above 1, ours is leaner. None where a peak is below 1 MiB.
        ours: our figures.
        peer: the peer's figures.
        environment: versions of what was loaded, processor, instruction sets, threads, cores, way of finding the peak.
        not_measured: why there are no figures.
        id: the benchmark's name.
        statement: the benchmark's sentence.
        target: the ratio to reach.
    """

    ratio: Ratio | None = None
    memory_ratio: float | None = None
    ours: Side | None = None
    peer: Side | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    not_measured: str | None = None
    id: str = ""
    statement: str = ""
    target: float | None = None

    @property
    def outcome(self) -> Literal["met", "missed", "inconclusive", "no target", "not measured"]:
        """Where the interval of the ratio lies against the target."""
        if self.ratio is None:
            return "not measured"
        if self.target is None:
            return "no target"
        return "met" if self.ratio.low >= self.target else "missed" if self.ratio.high < self.target else "inconclusive"

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Comparison:
        """The comparison that `jsonable` made these facts of."""
        parts = {"ratio": Ratio, "ours": Side, "peer": Side}
        return cls(**{k: parts[k](**v) if k in parts and v is not None else v for k, v in facts.items()})


def compare(ours: SetUp, peer: SetUp, repeats: int = 10, *, threads: int = 1) -> Comparison:
    """Times both sides in one fresh process, taking turns, and finds the peak memory of each in one of its own.

    Args:
        ours: module-level set-up of our call.
        peer: module-level set-up of the peer's call.
        repeats: timed calls of each side after one that warms up; neighbours form a pair, and who goes first alternates.
        threads: BLAS, OpenMP and torch threads of every process, set before anything is imported.

    Returns:
        Ratios peer/ours; or, when a side raises ImportError, the reason why nothing was measured.

    Raises:
        UserError: fewer than 6 repeats.
        BenchmarkError: a side raised something else, or its process died.
    """
    if repeats < FEWEST_REPEATS:
        raise UserError(f"repeats must be at least {FEWEST_REPEATS}, got {repeats}", "fewer give no 95 % interval")
    try:
        times = _in_fresh_process(_times, (ours, peer, repeats, threads), "timing", threads)
        memory = [_in_fresh_process(_memory, side, side[0], threads) for side in (("ours", ours), ("peer", peer))]
    except NotMeasured as reason:
        return Comparison(not_measured=str(reason))
    seconds, peaks = (times["ours"], times["peer"]), [each["peak"] for each in memory]
    return Comparison(
        median_interval([theirs / own for own, theirs in zip(*seconds, strict=True)]),
        peaks[1] / peaks[0] if min(peaks) >= SMALLEST_PEAK else None,
        Side(statistics.median(seconds[0]), memory[0]["resident"], peaks[0]),
        Side(statistics.median(seconds[1]), memory[1]["resident"], peaks[1]),
        {**times["environment"], "threads": threads, "peak_from": memory[0]["peak_from"]},
    )


def median_interval(values: Sequence[float]) -> Ratio:
    """The median and the narrowest pair of order statistics, as many from each end, that encloses it at 95 %.

    Args:
        values: at least 6 independent measurements.

    Reference: of n values, the k-th smallest and the k-th largest miss the median with probability
        2 P(Binomial(n, 1/2) < k), whatever the distribution.
    """
    from scipy.special import bdtr

    ordered, n = sorted(values), len(values)
    k = max(k for k in range(1, n // 2 + 1) if 2 * bdtr(k - 1, n, 0.5) <= 0.05)
    return Ratio(statistics.median(ordered), ordered[k - 1], ordered[n - k], n)


def _in_fresh_process(function: Callable[[Any], Any], job: Any, name: str, threads: int) -> Any:
    (result,) = map_jobs(function, {name: job}, threads=threads, progress=False)
    if result.error is None:
        return result.value
    if result.error.kind == NotMeasured.__name__:
        raise NotMeasured(result.error.message)
    ours = result.error.kind == BenchmarkError.__name__
    error = BenchmarkError(result.error.message if ours else f"{name}: {result.error}")
    error.add_note(result.error.traceback)
    raise error


def _times(job: tuple[SetUp, SetUp, int, int]) -> dict[str, Any]:
    ours, peer, repeats, threads = job
    calls = {"ours": _set_up("ours", ours, threads), "peer": _set_up("peer", peer, threads)}
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for turn in range(-1, repeats):
        for side in sorted(calls, reverse=bool(turn % 2)):
            with _blamed_on(side):
                started = time.perf_counter()
                calls[side]()
                elapsed = time.perf_counter() - started
            if turn >= 0:  # the first turn warms up
                seconds[side].append(elapsed)
    return {**seconds, "environment": _environment()}


def _memory(job: tuple[str, SetUp]) -> dict[str, Any]:
    """Peak of the first call: after a warm-up the allocator would hand out what it kept."""
    side, set_up = job
    call = _set_up(side, set_up, int(os.environ["OMP_NUM_THREADS"]))
    resident, reset = _status("VmRSS"), _reset_peak()
    before = resident if reset else _largest()
    with _blamed_on(side):
        kept = call()  # alive until the peak is read
    peak = (_status("VmHWM") if reset else _largest()) - before
    del kept
    return {"resident": resident, "peak": max(peak, 0), "peak_from": "VmHWM" if reset else "ru_maxrss"}


def _set_up(side: str, function: SetUp, threads: int) -> Callable[[], object]:
    with _blamed_on(side):
        call = function()
    if "torch" in sys.modules:  # it reads no environment variable after it was loaded
        sys.modules["torch"].set_num_threads(threads)
    return call


@contextlib.contextmanager
def _blamed_on(side: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise NotMeasured(f"{side}: {error}") from error
    except Exception as error:
        raise BenchmarkError(f"{side} raised {type(error).__name__}: {error}") from error


def _reset_peak() -> bool:
    """Sets the process's peak back to what it holds now, where the kernel lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmHWM") - _status("VmRSS") < SMALLEST_PEAK
    except (OSError, StopIteration):
        return False


def _status(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _environment() -> dict[str, Any]:
    """The processor, which of the instruction sets that decide speed it has, and versions of what is loaded."""
    facts = {"model name": platform.machine()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        facts |= {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    owners = importlib.metadata.packages_distributions()
    loaded = {name for module in sys.modules for name in owners.get(module, ())}
    return {
        "processor": facts["model name"],
        "isa": [name for name in _ISA if name in flags],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in sorted(loaded)},
    }
