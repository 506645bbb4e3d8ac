"""Before training: what sampling will do, and diffusers with their statistics."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_utils import cli
from core_utils.errors import UserError
from diffract.commands.options import Designed
from diffract.units import metres

if TYPE_CHECKING:
    from diffract.designs import Design


@dataclass(frozen=True, kw_only=True)
class Check(cli.Command, Designed):
    """Say what a design's sampling, memory and time will be, before anything is computed."""

    def __call__(self) -> int:
        """Prints a table of the distances; exit code 1 where one errs by more than 20 %."""
        from diffract.sampling import TOLERABLE, propagation_report

        design = self.design()
        grid, planes = design.grid, design.planes
        stretches = {
            "object - diffuser": planes.object_to_diffuser,
            "diffuser, layer": planes.diffuser_to_layer,
            "layer, layer": planes.layer_spacing,
            "layer, output": planes.layer_to_output,
        }
        reports = {name: propagation_report(grid, z, design.pad) for name, z in stretches.items()}
        rows = []
        for name, report in reports.items():
            method = report.method if design.method == "auto" else design.method
            error = report.errors.get(method, math.nan)
            refused = not error <= TOLERABLE and method != "fresnel"
            rows.append({"stretch": name, **asdict(report), "used": method, "error": error, "refused": refused})
        facts = {"design": {"shape": grid.shape, "pitch": grid.pitch, "wavelength": grid.wavelength}, "stretches": rows}
        facts |= _costs(design)
        self.show(facts, lambda: _check_table(facts))
        for row in rows:
            for warning in row["warnings"]:
                self.say(f"{row['stretch']}: {warning}")
        return cli.CHECK_FAILED if any(row["refused"] for row in rows) else cli.DONE


def _costs(design: Design) -> dict[str, Any]:
    """Memory of a pair, and time of a step from one propagation, timed here."""
    import numpy as np

    from diffract.propagation import propagate

    H, W = design.grid.shape
    P, Q = design.grid.padded(design.pad).shape
    field = np.ones((H, W), np.complex64)
    transfer = np.ones((P, Q), np.complex64)
    propagate(field, transfer).block_until_ready()
    started = time.perf_counter()
    for _ in range(5):
        propagate(field, transfer).block_until_ready()
    seconds = (time.perf_counter() - started) / 5
    layers, config = design.planes.n_layers, design.train
    pairs = config.pairs or config.batch_size * (config.n if design.diffuser.kind != "none" else 1)
    return {
        "megabytes_a_pair": 8 * ((layers + 2) * H * W + 3 * P * Q) / 2**20,
        "seconds_a_propagation": seconds,
        "seconds_a_step": seconds * pairs * (1 + 2 * layers),
        "pairs_a_step": pairs,
    }


def _check_table(facts: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table(
        "between", "z, mm", "method", "window", "error", "rs", "asm", "blas", title="estimated relative L2 errors"
    )
    for row in facts["stretches"]:
        errors = [
            "-" if math.isnan(row["errors"][name]) else f"{row['errors'][name]:.1e}" for name in ("rs", "asm", "blas")
        ]
        error = f"{row['error']:.1e}" + (" refused" if row["refused"] else "")
        window = " x ".join(map(str, row["window"]))
        table.add_row(row["stretch"], f"{row['z'] * 1e3:.4g}", row["used"], window, error, *errors)
    cost = (
        f"about {facts['megabytes_a_pair']:.1f} MB a pair; {facts['pairs_a_step']} pairs a step take about "
        f"{facts['seconds_a_step']:.2g} s here"
    )
    return Group(table, cost)


@dataclass(frozen=True, kw_only=True)
class Diffuser(cli.Command, Designed):
    """Draw diffusers, measure them, and write them as phases and as meshes."""

    n: int = 20  # how many
    length: str | None = None  # correlation length L, such as "10 lambda"; the design's diffusers unless given
    rms_phase: float | None = None  # strength, rad; needed with --length
    threshold: float = 0.0  # least distance between two of them, rad
    distance: Literal["physical", "paper_wrapped", "unwrapped"] = "physical"
    stl: bool = False  # write a mesh of each beside --out
    base: str = "0.5 mm"  # thickness below a mesh's relief
    out: Path = Path("diffusers.npy")  # phases, rad, [n, H, W]

    def __call__(self) -> None:
        """Writes the phases and prints their statistics."""
        from diffract.diffusers import RandomDiffuser
        from diffract.job import write_array
        from diffract.statistics import unique_bank
        from diffract.streams import Stream, stream

        design = self.design()
        grid = design.grid
        if self.out.suffix != ".npy":
            raise UserError(f"--out {self.out} must end in .npy")
        if self.n < 1:
            raise UserError(f"--n must be at least 1, got {self.n}")
        if self.length is not None:
            if self.rms_phase is None:
                raise UserError("--length needs --rms-phase, the strength in rad")
            length = metres("--length", self.length, grid.wavelength)
            kind = RandomDiffuser(
                grid, correlation_length=length, rms_phase=self.rms_phase, delta_n=design.diffuser.delta_n
            )
        elif design.screens:
            kind = design.screens[0]
        else:
            raise UserError("the design has no diffusers", "give --length and --rms-phase")
        screens = unique_bank(kind, stream(design.seed, Stream.NEW), self.n, self.threshold, self.distance)
        write_array(self.out, screens)
        if self.stl:
            _write_meshes(kind, screens, self.out, metres("--base", self.base, grid.wavelength))
        facts = _statistics(kind, screens)
        self.show({**facts, "out": self.out}, lambda: _statistics_table(facts))


def _write_meshes(kind: Any, screens: Any, out: Path, base: float) -> None:
    import numpy as np

    from core_utils.files import write_atomically
    from diffract.meshes import mesh, stl

    for number, height in enumerate(np.asarray(kind.height(screens), np.float64), start=1):
        file = out.with_name(f"{out.stem}-{number}.stl")
        write_atomically(file, stl(mesh(height - height.min() + base, kind.grid.pitch), file.stem))


def _statistics(kind: Any, screens: Any) -> dict[str, Any]:
    import numpy as np

    from diffract.statistics import correlation_length, diffuser_distance, expected_distance

    wavelength = kind.grid.wavelength
    values = np.asarray(screens, np.float64)
    first, second = np.triu_indices(len(values), 1)
    keep = slice(None, 50)
    facts: dict[str, Any] = {
        "rms_phase": {"measured": float(values.std((1, 2)).mean()), "expected": kind.rms_phase},
    }
    for of in ("phase", "transmittance"):
        measured = correlation_length(values, kind.grid, of) / wavelength
        facts[f"length_{of}"] = {"measured": measured, "expected": kind.expected_L(of) / wavelength}
    for name in ("physical", "unwrapped", "paper_wrapped"):
        pairs = [
            float(diffuser_distance(screens[i], screens[j], name))
            for i, j in zip(first[keep], second[keep], strict=True)
        ]
        facts[f"distance_{name}"] = {
            "measured": float(np.mean(pairs)) if pairs else math.nan,
            "expected": expected_distance(kind, name),
        }
    return facts


def _statistics_table(facts: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("figure", "measured", "expected", "unit")
    for name, each in facts.items():
        unit = "wavelengths" if name.startswith("length") else "rad"
        table.add_row(name.replace("_", " "), f"{each['measured']:.3f}", f"{each['expected']:.3f}", unit)
    return table
