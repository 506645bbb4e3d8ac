"""The job: decay rates from a CSV file, integrated in a run folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from core_utils import cli
from core_utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Integrate(cli.RunCommand):
    """Integrate the rates of a CSV file, each from the state 1."""

    rates: Path  # CSV file with a column `rate`, 1/s
    step: float = 0.01  # step length, s
    duration: float = 1.0  # integration time, s

    def __call__(self) -> None:
        """Writes the final states into the run's result, or shows what a finished run holds."""
        import numpy as np

        from fedcl import integrate

        rates = read_rates(self.rates)
        with self.open_run({"rates": rates, "step": self.step, "duration": self.duration}) as run:
            if not run.finished:
                states = integrate(np.array(rates), np.ones(len(rates)), step=self.step, duration=self.duration)
                run.finish({"states": states})
            self.show(run.result())


def read_rates(file: Path) -> list[float]:
    """The column `rate` of a CSV file, 1/s.

    Raises:
        UserError: the file, the column or a number cannot be read; the message names the file and the line.
    """
    try:
        with file.open(newline="") as lines:
            rows = csv.DictReader(lines)
            if "rate" not in (rows.fieldnames or ()):
                raise UserError(f"{file} has no column `rate`")
            return [_number(row["rate"], f"{file}, line {rows.line_num}") for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _number(text: str | None, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise UserError(f"{where}: {text!r} is no number") from None


def main() -> int:
    """Runs the program `fedcl`."""
    shared = cli.shared(claims="fedcl.claims:CLAIMS", benchmarks="fedcl")
    return cli.main("fedcl", {"integrate": Integrate, **shared})
