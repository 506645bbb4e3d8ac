"""A claim of a paper as an executable experiment, and the one rule that turns its effects into a verdict."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core_utils.errors import UserError
from core_utils.jobs import JobError, map_jobs
from core_utils.memory import reuse_freed_memory
from core_utils.runs import Run

ENTRY_POINTS = "core_utils.claims"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trial:
    """What one execution of an experiment is given.

    Attributes:
        seed: decides everything random.
        workdir: a folder of its own, kept between attempts; `figures/` in it is shown in the report.
        data: the user's data folder, or None for the embedded data.
        device: "cpu", "cuda", "cuda:1"...
        full: the long configuration instead of the miniature.
    """

    seed: int
    workdir: Path
    data: Path | None = None
    device: str = "cpu"
    full: bool = False


@dataclass(frozen=True)
class Claim:
    """One falsifiable sentence of a paper and how it is measured.

    Attributes:
        id: short name, unique in its package.
        statement: the sentence.
        source: paper, and table or figure.
        paper_value: what the paper prints, as text, or None when it was not published in a form we could read.
        unit: of the effect.
        measure: module-level function of a trial; gives figures by name. Claims of the same measure share its runs.
        effect: the figure that this claim judges; positive is the paper's direction, ratios are logarithms.
        margin: what the effect must exceed; "not worse by more than 1 point" is -1.
        seeds: how many trials, seeds 0, 1, ...
        exact: the effect is a deviation that must be exactly zero in every trial; one seed suffices.
        full_only: too long for the demo; runs under `reproduce --full`.
    """

    id: str
    statement: str
    source: str
    paper_value: str | None
    unit: str
    measure: Callable[[Trial], Mapping[str, float]]
    effect: str = "effect"
    margin: float = 0.0
    seeds: int = 5
    exact: bool = False
    full_only: bool = False

    @property
    def package(self) -> str:
        """Import name of the package whose claim this is."""
        return self.measure.__module__.partition(".")[0]


Kind = Literal["reproduced", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """What the trials say of a claim: the mean effect and its 95 % interval over `n` seeds."""

    kind: Kind
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Result:
    """A claim with what its trials gave.

    Attributes:
        claim: the claim.
        verdict: None when it crashed or did not run.
        figures: every figure of every trial, by seed.
        settings: data, device and full.
        seconds: of every trial, by seed; claims that share a measure share its trials.
        error: why there is no verdict: the first failure by seed; its `user` tells bad input from a crash.
        workdirs: the trials' folders by seed.
    """

    claim: Claim
    verdict: Verdict | None
    figures: dict[int, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    error: JobError | None = None
    workdirs: dict[int, Path] = field(default_factory=dict)

    @property
    def outcome(self) -> Literal["reproduced", "refuted", "inconclusive", "crashed", "not run in the demo"]:
        """The verdict's kind, or why there is none."""
        if self.verdict is not None:
            return self.verdict.kind
        return "crashed" if self.error is not None else "not run in the demo"

    @property
    def effects(self) -> dict[int, float]:
        """The judged figure by seed, for the trials that gave it."""
        effect = self.claim.effect
        return {seed: figures[effect] for seed, figures in self.figures.items() if effect in figures}


@dataclass(frozen=True)
class Package:
    """An installed package's claims, or why they could not be loaded."""

    name: str
    claims: tuple[Claim, ...]
    error: str | None = None


def judge(effects: Sequence[float] | np.ndarray, margin: float = 0.0, exact: bool = False) -> Verdict:
    """The verdict on one claim from its effects over seeds.

    Args:
        effects: one per seed, shape (n,); positive is the claimed direction.
        margin: what the effect must exceed.
        exact: the effects are deviations; the claim holds only if each is exactly zero.

    Returns:
        `reproduced` if the 95 % Student-t interval lies above the margin, `refuted` if below, else `inconclusive`.
        Effects without spread give low = high = mean. For an exact claim low and high are the extremes.

    Raises:
        UserError: an effect that is not finite, fewer than 3 seeds, or none where the claim is exact.
    """
    values = np.asarray(effects, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UserError(f"effects must be finite numbers, one per seed, got {values.tolist()}")
    if values.size < _fewest(exact):
        raise UserError(f"a verdict needs at least {_fewest(exact)} seeds, got {values.size}")
    low, high = float(values.min()), float(values.max())
    mean = low if low == high else float(values.mean())
    if exact:
        return Verdict("reproduced" if low == high == 0.0 else "refuted", mean, low, high, values.size)
    if low != high:
        from scipy.special import stdtrit

        half = float(stdtrit(values.size - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(values.size))
        low, high = mean - half, mean + half
    kind: Kind = "reproduced" if low > margin else "refuted" if high < margin else "inconclusive"
    return Verdict(kind, mean, low, high, values.size)


def evaluate(
    claims: Sequence[Claim],
    *,
    seeds: int | None = None,
    workers: int = 1,
    cluster: str | None = None,
    data: Path | None = None,
    device: str = "cpu",
    full: bool = False,
    run: Run,
    progress: bool = True,
) -> list[Result]:
    """Runs the trials that `run` does not hold yet, stores each as it ends, and judges every claim.

    Trials are kept under `trials/`, keyed by measure, seed, data, settings and a digest of the package's source: a
    second call repeats none, and a changed experiment repeats all of its own. Each trial has one thread, so that the
    number of workers does not decide the figures.

    Args:
        claims: what to judge.
        seeds: the first so many seeds, or None for each claim's own number.
        workers: processes on this machine.
        cluster: a Dask scheduler's address instead.
        data: the user's data folder, or None for the embedded data.
        device: where the experiments compute.
        full: the long configurations, and the claims that have only such.
        run: where trials are stored.
        progress: show progress on stderr.

    Returns:
        One result a claim, in the given order. A crashed measure leaves the other claims alone.

    Raises:
        UserError: too few seeds for a verdict.
    """
    settings = {"data": data, "device": device, "full": full}
    keys = [_keys(claim, seeds, settings) for claim in claims]
    trials = {
        key: (claim.measure, Trial(seed, run.path / "trials" / key, data, device, full))
        for claim, own in zip(claims, keys, strict=True)
        for seed, key in own.items()
    }
    done = {key for key in trials if (run.path / f"trials/{key}.json").is_file()}
    failures: dict[str, JobError] = {}
    jobs = map_jobs(_execute, trials, workers=workers, cluster=cluster, done=done, progress=progress, threads=1)
    with contextlib.closing(jobs):
        for job in jobs:
            if job.error is None:
                run.write(f"trials/{job.key}.json", {"figures": job.value, "seconds": job.seconds})
            else:
                failures[job.key] = job.error
    return [_result(claim, own, settings, failures, run) for claim, own in zip(claims, keys, strict=True)]


def discover() -> list[Package]:
    """The claims of every installed package, by distribution name; a broken package is named and hides no other."""
    packages = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            packages.append(Package(entry.name, _checked(entry.load())))
        except Exception as error:  # somebody else's import may fail in any way
            packages.append(Package(entry.name, (), f"{type(error).__name__}: {error}"))
    return packages


def _checked(claims: Any) -> tuple[Claim, ...]:
    for claim in claims:
        if not isinstance(claim, Claim):
            raise TypeError(f"{claim!r} is no Claim")
    return tuple(claims)


def load(reference: str) -> tuple[Claim, ...]:
    """The claims behind a `module:NAME` reference."""
    module, _, name = reference.partition(":")
    return _checked(getattr(importlib.import_module(module), name))


def _keys(claim: Claim, seeds: int | None, settings: Mapping[str, Any]) -> dict[int, str]:
    """The key of every trial of a claim by seed; none for one that does not run in these settings."""
    if claim.full_only and not settings["full"]:
        return {}
    count, fewest = (claim.seeds if seeds is None else seeds), _fewest(claim.exact)
    if count < fewest:
        raise UserError(f"--seeds {count} is too few for claim {claim.id!r}", f"a verdict needs at least {fewest}")
    data = settings["data"] and str(settings["data"].resolve())
    facts = json.dumps({**settings, "data": data, "source": source_digest(claim.package)}, sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:12]
    return {seed: f"{_name(claim)}/{seed}-{digest}" for seed in range(count)}


def _result(
    claim: Claim, keys: Mapping[int, str], settings: dict[str, Any], failures: Mapping[str, JobError], run: Run
) -> Result:
    stored = {seed: run.read(f"trials/{key}.json") for seed, key in keys.items() if key not in failures}
    figures = {seed: _with_nan(trial["figures"]) for seed, trial in stored.items()}
    error = next((failures[key] for key in keys.values() if key in failures), None)
    verdict = None
    if keys and error is None:
        try:
            verdict = judge([each[claim.effect] for each in figures.values()], claim.margin, claim.exact)
        except KeyError:
            error = JobError("KeyError", f"{_name(claim)} gives no figure {claim.effect!r}, only {sorted(figures[0])}")
        except UserError as bad:
            error = JobError("UserError", f"{claim.effect!r} of {_name(claim)}: {bad}")
    return Result(
        claim=claim,
        verdict=verdict,
        figures=figures,
        settings=settings,
        seconds={seed: trial["seconds"] for seed, trial in stored.items()},
        error=error,
        workdirs={seed: run.path / "trials" / key for seed, key in keys.items()},
    )


def _with_nan(figures: Mapping[str, Any]) -> dict[str, float]:
    """Undoes how strict JSON writes figures that are not finite."""
    return {name: math.nan if value is None else value for name, value in figures.items() if name != "non_finite"}


def _execute(job: tuple[Callable[[Trial], Mapping[str, float]], Trial]) -> dict[str, float]:
    measure, trial = job
    reuse_freed_memory()
    trial.workdir.mkdir(parents=True, exist_ok=True)
    return {name: float(value) for name, value in measure(trial).items()}


def _name(claim: Claim) -> str:
    return f"{claim.measure.__module__}.{claim.measure.__qualname__}"


def _fewest(exact: bool) -> int:
    return 1 if exact else 3


@functools.cache
def source_digest(package: str) -> str:
    """SHA-256 over the Python files of a package and of core_utils: what a stored trial was measured with."""
    digest = hashlib.sha256()
    for name in sorted({package, "core_utils"}):
        module = importlib.import_module(name)
        if module.__file__ is None:
            continue
        origin = Path(module.__file__)
        for file in sorted(origin.parent.rglob("*.py")) if hasattr(module, "__path__") else [origin]:
            digest.update(f"{file.relative_to(origin.parent)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
