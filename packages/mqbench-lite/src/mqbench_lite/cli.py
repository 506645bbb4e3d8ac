"""The job: quantise a network for a device, prove that its engine agrees, and compare algorithms on a grid."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError
from mqbench_lite.grids import GridConfig

Format = Literal["qdq", "tensorrt", "snpe", "qnn"]


@dataclass(frozen=True, kw_only=True)
class Doctor(cli.Command):
    """Say which engines and plug-ins are here, what is wrong with others, and whether 8-bit weights saturate on this host."""

    def __call__(self) -> int:
        """Prints; exit code 1 if a plug-in is broken or a name taken twice."""
        from mqbench_lite import algorithms, engines, host, profiles

        found, registry = engines.discover(), algorithms.registry()
        problems = [*found.problems, *registry.problems, *profiles.problems()]
        here = host.host()
        facts = {
            "engines": {
                name: engine.versions() if engine.available() else "not installed"
                for name, engine in found.engines.items()
            },
            "algorithms": list(registry.algorithms),
            "machine": here.machine,
            "instructions": list(here.flags),
            "held_back_by": dict(here.forced),
            "saturating": list(here.saturating),
            "advice": here.advice,
            "problems": problems,
        }
        self.show(facts, lambda: _doctor_tables(facts))
        return cli.CHECK_FAILED if problems else cli.DONE


@dataclass(frozen=True, kw_only=True)
class Profiles(cli.Command):
    """List the hardware profiles, or print and check one."""

    name: tyro.conf.Positional[str | None] = None  # a profile's name, or a TOML file

    def __call__(self) -> int:
        """Prints; exit code 1 if the profile's scheme cannot run."""
        from mqbench_lite import profiles

        if self.name is None:
            rows = [_profile_row(profiles.get(name)) for name in profiles.names()]
            self.show(rows, lambda: _table(rows))
            return cli.DONE
        profile = profiles.get(self.name)
        findings = profiles.lint(profile)
        facts = {**dataclasses.asdict(profile), "findings": [str(finding) for finding in findings]}
        self.show(facts, lambda: profiles.to_toml(profile) + "".join(f"\n# {finding}" for finding in findings))
        return cli.CHECK_FAILED if any(finding.level == "error" for finding in findings) else cli.DONE


@dataclass(frozen=True, kw_only=True)
class Quantize(cli.RunCommand, cli.Configured):
    """Quantise a network for a device and export it; algorithms that train go on after an interruption.

    Settings are those of a grid: network, weights, data, calibration, steps, lr, ... A network FILE.py:FUNCTION runs that
    file.
    """

    network: str | None = None  # residual, depthwise, lite0, torchvision:NAME, timm:NAME or FILE.py:FUNCTION
    weights: Path | None = None  # its weights, .safetensors
    data: Path | None = None  # folder of IDX files, or of images as ImageNet has them, instead of the embedded images
    profile: str = "onnxruntime"  # name, or a TOML file
    algorithm: str = "mse"  # minmax and mse find ranges alone; others are listed by `doctor`
    bits: str = "8/8"  # of weights and activations
    format: Format = "qdq"  # what is exported
    seed: int = 0  # of calibration images and the order of training
    out: Path = Path("runs/quantize")  # the run's folder: model.onnx, model.safetensors, result.json

    def __call__(self) -> None:
        """Writes the run, prints accuracies and the table of bits."""
        from mqbench_lite.job import quantize_job

        config = self.settings(GridConfig, network=self.network, weights=self.weights, data=self.data)
        asked = {"config": config, **{n: getattr(self, n) for n in ("profile", "algorithm", "bits", "format", "seed")}}
        with self.open_run(asked) as run:
            if not run.finished:
                run.finish(quantize_job(run, config, self.profile, self.algorithm, self.bits, self.format, self.seed))
            result = run.result()
        self.show(result, lambda: _quantize_tables(result))
        self.say(f"model in {self.out / 'model.onnx'}")


@dataclass(frozen=True, kw_only=True)
class Verify(cli.Command):
    """Run an exported file in engines and compare every output with the integer model's, to the bit."""

    file: tyro.conf.Positional[Path]  # ONNX with QuantizeLinear and DequantizeLinear, by whomever it was written
    engines: tuple[str, ...] = ("onnxruntime",)  # names that `doctor` lists
    data: Path | None = None  # folder of images, as for quantize
    count: int = 256  # images of the test part
    tolerance: float = 0.0  # largest difference of an output that passes
    top1: float = 1.0  # least share of images with the same best class
    coverage: float = 1.0  # least share of layers that must run on integers
    report: Path | None = None  # HTML page to write
    overwrite: bool = False  # replace --report

    def __call__(self) -> int:
        """Prints what every engine gave; exit code 1 if one leaves a bound or runs in float."""
        from core_utils.errors import CheckFailed
        from core_utils.files import write_atomically
        from mqbench_lite.errors import AgreementError
        from mqbench_lite.job import verify_job
        from mqbench_lite.pages import agreement_page

        if self.report is not None and self.report.exists() and not self.overwrite:
            raise UserError(f"--report {self.report} exists", "--overwrite replaces it")
        found = verify_job(self.file, self.engines, self.data, self.count)
        rows = [dataclasses.asdict(each) for each in found.engines]
        if self.report is not None:
            write_atomically(self.report, agreement_page(self.file.name, rows))
        self.show({**dataclasses.asdict(found), "engines": rows}, lambda: _table([_agreement_row(row) for row in rows]))
        try:
            found.check(self.tolerance, self.top1, self.coverage)
        except (AgreementError, CheckFailed) as error:
            self.say(str(error))
            return cli.CHECK_FAILED
        return cli.DONE


@dataclass(frozen=True, kw_only=True)
class Grid(cli.RunCommand, cli.Configured):
    """Run the benchmark: algorithms, profiles, bits and seeds, each point a job of its own; write the leaderboard."""

    workers: int = 1  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    out: Path = Path("runs/grid")  # the run's folder: leaderboard.md, .csv, .json, .html, results.jsonl

    def __call__(self) -> int:
        """Runs the points that the folder does not hold; exit code 1 if one failed."""
        from mqbench_lite.grids import run_grid
        from mqbench_lite.leaderboard import leaderboard

        config = self.settings(GridConfig)
        with self.open_run(config) as run:
            rows, failures = run_grid(run, config, workers=self.workers, cluster=self.cluster, progress=not self.quiet)
            if not failures and not run.finished:
                run.finish({"points": len(rows)})
        boards = leaderboard(rows)
        self.show(boards, lambda: _boards(boards))
        self.say(f"leaderboard in {self.out / 'leaderboard.html'}")
        for key, error in failures.items():
            sys.stderr.write(f"{key} failed: {error}\n")
        return cli.CHECK_FAILED if failures else cli.DONE


@dataclass(frozen=True, kw_only=True)
class Sensitivity(cli.Command, cli.Configured):
    """Quantise one layer at a time and say what each costs, to decide which to leave at more bits."""

    network: str | None = None  # as for quantize
    weights: Path | None = None  # as for quantize
    data: Path | None = None  # as for quantize
    profile: str = "onnxruntime"  # name, or a TOML file
    bits: str = "4/4"  # of weights and activations
    algorithm: Literal["minmax", "mse"] = "mse"  # how ranges are found
    seed: int = 0  # of calibration images
    plot: Path | None = None  # picture to write, .svg
    overwrite: bool = False  # replace --plot

    def __call__(self) -> None:
        """Prints one row a layer, the costliest first."""
        from core_utils.files import write_atomically
        from mqbench_lite.job import sensitivity_job
        from mqbench_lite.plots import layers_figure

        if self.plot is not None and self.plot.exists() and not self.overwrite:
            raise UserError(f"--plot {self.plot} exists", "--overwrite replaces it")
        config = self.settings(GridConfig, network=self.network, weights=self.weights, data=self.data)
        rows = sensitivity_job(config, self.profile, self.bits, self.algorithm, self.seed)
        if self.plot is not None:
            figure = layers_figure(
                [row["layer"] for row in rows],
                [row["sqnr_db"] for row in rows],
                "signal over noise at the output (dB)",
                f"one layer at a time at W/A {self.bits}",
            )
            write_atomically(self.plot, figure)
        worst = sorted(rows, key=lambda row: row["sqnr_db"])
        self.show(worst, lambda: _table(worst))


def _profile_row(profile: Any) -> dict[str, Any]:
    def scheme(spec: Any) -> str:
        words = ["symmetric" if spec.symmetric else "asymmetric", "per channel" if spec.per_channel else "per tensor"]
        words += ["power-of-two steps"] * spec.pot_scale + ["7 bits"] * spec.reduce_range
        return ", ".join(words)

    return {
        "profile": profile.name,
        "graph": profile.graph,
        "weights": scheme(profile.weight),
        "activations": scheme(profile.act),
        "engine": profile.engine if profile.executable else "exported, not run",
    }


def _agreement_row(row: dict[str, Any]) -> dict[str, Any]:
    if row["skipped"]:
        return {"engine": row["engine"], "differing": row["skipped"]}
    first = row["first"]
    return {
        "engine": row["engine"],
        "differing": f"{row['differing']} of {row['logits']}",
        "largest": f"{row['max_difference']:.3g}",
        "LSB": row["max_lsb"],
        "top-1": f"{100 * row['top1']:.2f} %",
        "integers": f"{100 * row['layers']:.0f} %",
        "first at": "none" if first is None else first["layer"],
    }


def _quantize_tables(result: dict[str, Any]) -> Any:
    facts = {key: value for key, value in result.items() if not isinstance(value, list | dict)}
    layers = [
        {"layer": row["name"], "weight": row["weight_bits"], "input": row["act_bits"], "input's quantiser": row["act"]}
        for row in result["layers"]
    ]
    return _group(_table([{"figure": key, "value": value} for key, value in facts.items()]), _table(layers))


def _doctor_tables(facts: dict[str, Any]) -> Any:
    engines = [
        {
            "engine": name,
            "versions": ", ".join(f"{k} {v}" for k, v in found.items()) if isinstance(found, dict) else found,
        }
        for name, found in facts["engines"].items()
    ]
    lines = [
        f"algorithms: {', '.join(facts['algorithms'])}",
        f"{facts['machine']}: {' '.join(facts['instructions'])}",
        *(f"held back by {name}={value}" for name, value in facts["held_back_by"].items()),
        facts["advice"],
        *(f"problem: {problem}" for problem in facts["problems"]),
    ]
    return _group(_table(engines), *lines)


def _boards(boards: list[Any]) -> Any:
    from mqbench_lite.leaderboard import cells_of

    tables = []
    for board in boards:
        heads, rows = cells_of(board)
        title = f"{board.network}, W/A {board.bits}, float {board.float_accuracy:.2f} %"
        tables.append(_table([dict(zip(heads, row, strict=True)) for row in rows], title))
    return _group(*tables)


def _table(rows: list[dict[str, Any]], title: str | None = None) -> Any:
    from rich.table import Column, Table

    heads = list(dict.fromkeys(head for row in rows for head in row))
    table = Table(*(Column(head, overflow="fold") for head in heads), title=title)
    for row in rows:
        table.add_row(*(str(row.get(head, "")) for head in heads))
    return table


def _group(*parts: Any) -> Any:
    from rich.console import Group

    return Group(*parts)


def main() -> int:
    """Runs the program `mqbench-lite`."""
    jobs: dict[str, type[cli.Command]] = {
        "doctor": Doctor,
        "profiles": Profiles,
        "quantize": Quantize,
        "verify": Verify,
        "grid": Grid,
        "sensitivity": Sensitivity,
    }
    return cli.main(
        "mqbench-lite", {**jobs, **cli.shared(claims="mqbench_lite.claims:CLAIMS", benchmarks="mqbench_lite")}
    )
