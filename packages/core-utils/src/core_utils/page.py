"""What a report holds, and the one page that shows it: no network, no script, every text escaped."""

from __future__ import annotations

import base64
import importlib.resources
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core_utils.bench import Comparison
from core_utils.claims import Result
from core_utils.errors import UserError

UNPUBLISHED = "not published in a form we could read"
OUTCOMES = ("reproduced", "refuted", "inconclusive", "crashed", "broken package", "not run in the demo")

PICTURE_LIMIT = 600_000
"""Bytes of one picture; a larger one is named and left out of the page."""
PICTURES_LIMIT = 3_000_000
"""Bytes of all pictures; base64 makes 4 of 3, which leaves 1 MB of a page of 5 MB for everything else."""
TEXT_LIMIT = 8_000
"""Characters of one error or traceback; its end says what went wrong."""
_PICTURE_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class PackageReport:
    """What became of one package's claims.

    Attributes:
        name: of the distribution.
        results: one a claim.
        error: why the package's claims could not be loaded or evaluated.
    """

    name: str
    results: tuple[Result, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    Attributes:
        packages: by name.
        environment: versions, platform and commit, as `runs.environment` gives them.
        benchmarks: comparisons with peers.
        created: time in UTC, ISO 8601.
    """

    packages: tuple[PackageReport, ...]
    environment: Mapping[str, Any]
    benchmarks: tuple[Comparison, ...] = ()
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def counts(self) -> dict[str, int]:
        """How many claims, and broken packages, had each outcome; in the order of `OUTCOMES`."""
        found = [result.outcome for package in self.packages for result in package.results]
        broken = ["broken package" for package in self.packages if package.error is not None]
        return {outcome: [*found, *broken].count(outcome) for outcome in OUTCOMES}

    @property
    def crashed(self) -> bool:
        """Whether a claim crashed or a package broke: the outcomes that say nothing of a paper."""
        return self.counts["crashed"] + self.counts["broken package"] > 0

    @property
    def seconds(self) -> float:
        """Time of all trials; those that claims share count once."""
        trials: dict[Path, float] = {}
        for result in (result for package in self.packages for result in package.results):
            trials |= {result.workdirs[seed]: seconds for seed, seconds in result.seconds.items()}
        return sum(trials.values(), 0.0)


@dataclass(frozen=True)
class Picture:
    """A figure that a trial drew: its file name, its bytes, and its content as a data URI unless it is too large."""

    name: str
    size: int
    uri: str | None


def page(report: Report) -> str:
    """The report as one HTML document that needs nothing else.

    Raises:
        UserError: jinja2 is not installed.
    """
    functions = {"plot": _plot, "table": _table, "ratios": _ratios, "rerun": rerun, "unpublished": UNPUBLISHED}
    filters = {"number": number, "measured": measured, "duration": duration, "anchor": anchor, "tail": _tail}
    return rendered("page.html.jinja", functions, filters, report=report, pictures=_pictures(report))


def rendered(template: str, functions: Mapping[str, Any], filters: Mapping[str, Any], **values: Any) -> str:
    """A page made of one of this package's templates, which share one style.

    Raises:
        UserError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise UserError("a report needs jinja2", "install core-utils[report]") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters)
    texts = importlib.resources.files("core_utils")
    style = texts.joinpath("page.css").read_text(encoding="utf-8")
    environment.globals.update(functions, style=style)
    return environment.from_string(texts.joinpath(template).read_text(encoding="utf-8")).render(**values)


def number(value: float, resolution: float | None = None) -> str:
    """A number for people.

    Args:
        value: the number.
        resolution: half an interval, say: the decimals then show two digits of it. Without one, up to four
            significant digits and no trailing zeros.
    """
    if not math.isfinite(value):
        return str(value)
    scale, digits = (resolution, 2) if resolution else (abs(value) or 1.0, 4)
    decimals = digits - 1 - math.floor(math.log10(scale))
    if decimals > 8 or abs(value) >= 1e9:
        return f"{value:.3g}"
    text = f"{value:z,.{max(decimals, 0)}f}"
    if not resolution and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}")


def measured(result: Result) -> str:
    """The effect as "mean [low, high] unit, n = N", or a dash where there is no verdict."""
    if (verdict := result.verdict) is None:
        return "\N{EN DASH}"
    half = (verdict.high - verdict.low) / 2
    mean, low, high = (number(value, half) for value in (verdict.mean, verdict.low, verdict.high))
    return f"{mean} [{low}, {high}] {result.claim.unit}, n = {verdict.n}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rerun(package: str, result: Result) -> str:
    """The command that runs one claim alone, in the settings of its result."""
    settings, seeds = result.settings, len(result.workdirs) or result.claim.seeds
    words = [package, "reproduce", result.claim.id, "--seeds", str(seeds)]
    if settings.get("full") or not result.workdirs:
        words.append("--full")
    if settings.get("data") is not None:
        words += ["--data", str(settings["data"])]
    if settings.get("device", "cpu") != "cpu":
        words += ["--device", settings["device"]]
    return shlex.join(words)


def _plot(result: Result) -> dict[str, Any] | None:
    """Where things lie on the axis of a claim's figure, as fractions of its length; None when nothing was measured."""
    claim, verdict = result.claim, result.verdict
    effects = {seed: effect for seed, effect in result.effects.items() if math.isfinite(effect)}
    if not effects:
        return None
    margin = 0.0 if claim.exact else claim.margin
    values = [*effects.values(), margin, *((verdict.low, verdict.high) if verdict else ())]
    padding = 0.08 * (max(values) - min(values)) or abs(margin) or 1.0
    low, length = min(values) - padding, max(values) - min(values) + 2 * padding
    step = _step(length / 5)
    ticks = (index * step for index in range(math.ceil(low / step), math.floor((low + length) / step) + 1))
    return {
        "seeds": [(seed, effect, (effect - low) / length) for seed, effect in effects.items()],
        "mean": (verdict.mean - low) / length if verdict else None,
        "interval": [(end - low) / length for end in (verdict.low, verdict.high)] if verdict else None,
        "margin": (margin - low) / length,
        "margin_value": margin,
        "ticks": [(number(tick, 10 * step), (tick - low) / length) for tick in ticks],
    }


def _step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _table(result: Result) -> list[tuple[str, float, float, list[float | None]]]:
    """Every figure's name, mean, half its range, and values by seed, in the order in which the experiment gave them."""
    rows = []
    for name in dict.fromkeys(name for figures in result.figures.values() for name in figures):
        values = [figures.get(name) for figures in result.figures.values()]
        given = [value for value in values if value is not None]
        half = (max(given) - min(given)) / 2
        rows.append((name, sum(given) / len(given), half if math.isfinite(half) else 0.0, values))
    return rows


def _ratios(report: Report) -> dict[str, list[Comparison]]:
    """The benchmarks by package, which comes before a blank in their ids; one without is of no package."""
    grouped: dict[str, list[Comparison]] = {}
    for benchmark in report.benchmarks:
        package, _, name = benchmark.id.rpartition(" ")
        grouped.setdefault(package, []).append(replace(benchmark, id=name))
    return grouped


def _pictures(report: Report) -> dict[tuple[str, str], list[Picture]]:
    """What the first seed of each experiment drew, by package and the first claim that rests on the experiment."""
    pictures: dict[tuple[str, str], list[Picture]] = {}
    shown: set[tuple[str, Path]] = set()
    left = PICTURES_LIMIT
    for name, result in ((package.name, result) for package in report.packages for result in package.results):
        folder = result.workdirs[min(result.workdirs)] / "figures" if result.workdirs else None
        if folder is None or (name, folder) in shown or not folder.is_dir():
            continue
        shown.add((name, folder))
        found = pictures[name, result.claim.id] = []
        for file in sorted(file for file in folder.iterdir() if file.suffix in _PICTURE_TYPES):
            size = file.stat().st_size
            fits = size <= min(PICTURE_LIMIT, left)
            left -= size if fits else 0
            found.append(Picture(file.name, size, data_uri(file.suffix, file.read_bytes()) if fits else None))
    return pictures


def data_uri(suffix: str, content: bytes) -> str:
    """A picture as the address of an image in a page.

    Args:
        suffix: ".png" or ".svg".
        content: the file.
    """
    return f"data:{_PICTURE_TYPES[suffix]};base64,{base64.b64encode(content).decode()}"


def anchor(name: str) -> str:
    """A name as the end of a link."""
    return re.sub(r"[^\w.-]+", "-", name)


def _tail(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"[...] {text[-TEXT_LIMIT:]}"
