"""Every installed package's claims, run and written down: one page, one JSON file, one table for the README."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_utils.bench import Comparison
from core_utils.claims import Package, Result, discover, evaluate
from core_utils.errors import UserError
from core_utils.files import write_atomically
from core_utils.jsonable import dumps
from core_utils.page import UNPUBLISHED, PackageReport, Report, measured, page, rerun
from core_utils.runs import Run

FORMAT = 1
"""Version of `report.json`."""

START, END = "<!-- verdicts:start -->", "<!-- verdicts:end -->"


def report(
    *,
    only: Collection[str] = (),
    seeds: int | None = None,
    workers: int = 1,
    cluster: str | None = None,
    data: Path | None = None,
    device: str = "cpu",
    full: bool = False,
    out: Path,
    readme: Path | None = None,
    benchmarks: Sequence[Comparison] = (),
    progress: bool = True,
) -> Report:
    """Runs the claims of every installed package and writes `index.html` and `report.json`.

    Trials are kept in `run/` under `out`, so that a second call repeats none. A package that breaks, or whose claims
    crash, does not stop the others.

    Args:
        only: distributions to run; all installed ones when empty. The README's table then holds just these.
        seeds: the first so many seeds, or None for each claim's own number.
        workers: processes on this machine.
        cluster: a Dask scheduler's address instead.
        data: the user's data folder, or None for the embedded data.
        device: where the experiments compute.
        full: the long configurations, and the claims that have only such.
        out: the report's folder.
        readme: a Markdown file; the table of verdicts replaces what lies between its two markers.
        benchmarks: comparisons with peers to show as well.
        progress: show progress on stderr.

    Returns:
        What was written; its `crashed` says whether a claim or a package gave no verdict by a fault.

    Raises:
        UserError: an unknown distribution, a README without the markers, a folder that cannot be used, or bad input
            that leaves no package to show.
    """
    packages = _chosen(discover(), only)
    if readme is not None:
        _split(readme)  # before the trials, not after hours of them
    options = {
        "seeds": seeds,
        "workers": workers,
        "cluster": cluster,
        "data": data,
        "device": device,
        "full": full,
        "progress": progress,
    }
    with Run.open(out / "run", {"kind": "report"}, resume=True) as run:
        found = Report(
            packages=tuple(_evaluated(packages, run, options)),
            environment=run.read("environment.json"),
            benchmarks=tuple(benchmarks),
        )
    write_atomically(out / "index.html", page(found))
    write_atomically(out / "report.json", dumps(facts(found), indent=2) + "\n")
    if readme is not None:
        update_readme(readme, verdict_table(found.packages))
    return found


def facts(report: Report) -> dict[str, Any]:
    """What `report.json` holds."""
    return {
        "format": FORMAT,
        "created": report.created,
        "counts": report.counts,
        "seconds": report.seconds,
        "packages": [
            {
                "name": package.name,
                "version": report.environment["versions"].get(package.name),
                "error": package.error,
                "claims": [claim_facts(package.name, result) for result in package.results],
            }
            for package in report.packages
        ],
        "benchmarks": report.benchmarks,
        "environment": report.environment,
    }


def read_benchmarks(folder: Path) -> list[Comparison]:
    """What packages' `bench --out` left in the folders within a folder; each benchmark's id begins with its package.

    Raises:
        UserError: the folder is not there, or a file in it is no comparison.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give the one that holds the folders of `bench --out`")
    found: list[Comparison] = []
    for config in sorted(folder.glob("*/config.json")):
        command = str(_json(config).get("command"))
        if command.startswith("bench "):
            package = command.removeprefix("bench ").replace("_", "-")
            files = sorted(set(config.parent.glob("*.json")) - {config, config.with_name("environment.json")})
            found += [_comparison(file, package) for file in files]
    return found


def _comparison(file: Path, package: str) -> Comparison:
    try:
        comparison = Comparison.from_json(_json(file))
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} is no comparison: {error}") from None
    return replace(comparison, id=f"{package} {comparison.id}")


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object")
    return content


def verdict_table(packages: Sequence[PackageReport]) -> str:
    """The verdicts as a Markdown table: a line for every claim, and one for every broken package."""
    rows = [("package", "claim", "paper", "measured", "verdict"), ("---",) * 5]
    for package in packages:
        for result in package.results:
            claim = result.claim
            cells = (package.name, claim.statement, claim.paper_value or UNPUBLISHED, measured(result), result.outcome)
            rows.append(cells)
        if package.error is not None:
            rows.append((package.name, package.error, "", "", "broken package"))
    return "\n".join("| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows)


def update_readme(readme: Path, table: str) -> None:
    """Replaces what lies between the two markers of a README; every other byte stays.

    Raises:
        UserError: the file cannot be read, or does not hold each marker once and in order.
    """
    before, after = _split(readme)
    write_atomically(readme, before + f"\n\n{table}\n\n".encode() + after)


def _chosen(packages: Sequence[Package], only: Collection[str]) -> list[Package]:
    names = [package.name for package in packages]
    if not names:
        raise UserError("no installed package has claims", "install one of the ten, for example qdrop")
    for name in only:
        if name not in names:
            (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0)
            raise UserError(f"--only {name}: no installed package of that name has claims", f"did you mean {nearest}?")
    return [package for package in packages if not only or package.name in only]


def _evaluated(packages: Sequence[Package], run: Run, options: Mapping[str, Any]) -> Iterator[PackageReport]:
    mistakes = 0
    for package in packages:
        try:
            results = evaluate(package.claims, run=run, **options)
        except Exception as error:  # somebody else's claims may fail in any way
            mistakes += isinstance(error, UserError)
            if mistakes == len(packages):
                raise
            yield PackageReport(package.name, (), f"{type(error).__name__}: {error}")
        else:
            yield PackageReport(package.name, tuple(results), package.error)


def claim_facts(package: str, result: Result) -> dict[str, Any]:
    """A claim with what its trials gave and the command that reruns it, as JSON data."""
    declared = ("id", "statement", "source", "paper_value", "unit", "effect", "margin", "exact", "full_only")
    found = ("outcome", "verdict", "figures", "settings", "seconds", "error")
    return {
        **{name: getattr(result.claim, name) for name in declared},
        **{name: getattr(result, name) for name in found},
        "command": rerun(package, result),
    }


def _markdown(text: str) -> str:
    """A cell of a table: on one line, and nothing in it ends the cell or starts a tag."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())


def _split(readme: Path) -> tuple[bytes, bytes]:
    """The README up to and with the first marker, and from the second one on."""
    try:
        content = readme.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {readme}: {error.strerror}") from None
    start, end = START.encode(), END.encode()
    if (content.count(start), content.count(end)) != (1, 1) or content.index(start) > content.index(end):
        raise UserError(f"{readme} does not hold the markers of the table", f"add {START} and {END}, once each")
    return content[: content.index(start) + len(start)], content[content.index(end) :]
