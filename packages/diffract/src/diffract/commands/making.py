"""After training: what errors of making cost, and files for making."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError
from core_utils.files import write_atomically
from diffract.commands.options import Lengths, material_of, numbers
from diffract.units import metres

if TYPE_CHECKING:
    from diffract.job import Trained

_FORMAT = "stl, png16, tiff, npy, csv, slices (needs --step), gds (needs --levels and gdstk), slm; parted by commas"


@dataclass(frozen=True, kw_only=True)
class Tolerance(cli.Command):
    """Tabulate what errors of making, mounting and lighting cost a trained network."""

    run: Path  # folder of `diffract train`
    lateral: Lengths | None = None  # largest random shift of each layer, such as 0:0.9mm:0.15mm
    axial: Lengths | None = None  # largest random shift of each layer along the axis
    rotation: Lengths | None = None  # largest random turn of each layer about the axis, rad
    tilt: Lengths | None = None  # largest random tilt of each layer, rad
    thickness: Lengths | None = None  # deviation of every pixel's height
    index: Lengths | None = None  # errors of the material's refractive index
    wavelength: Lengths | None = None  # relative errors of the wavelength
    levels: Lengths | None = None  # numbers of heights
    material: str = "n=1.72"  # of the layers, as n=1.72
    diffusers: int = 12  # new ones, each with random errors of its own
    count: int = 20  # test objects
    seed: int = 0  # of the random errors
    out: Path = Path("runs/tolerance")  # folder of tolerance.csv and tolerance.png

    def __call__(self) -> None:
        """Writes table and picture; without any range, a usual one of each kind."""
        from diffract.job import new_diffusers, read_trained
        from diffract.tolerances import tolerance

        trained = read_trained(self.run)
        for name in ("diffusers", "count"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        lines = tolerance(
            trained.network.resampled() if trained.design.method != "auto" else trained.network,
            trained.test_objects(self.count),
            new_diffusers(trained.design, self.diffusers),
            self.sweep(trained),
            material=material_of(self.material),
            seed=self.seed,
            progress=self.say,
        )
        rows = [asdict(line) for line in lines]
        content = io.StringIO()
        table = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.out / "tolerance.csv", content.getvalue())
        write_atomically(self.out / "tolerance.png", _picture(lines))
        self.show({"rows": rows, "out": self.out}, lambda: _tolerance_table(lines))

    def sweep(self, trained: Trained) -> dict[str, list[float]]:
        """Sizes by kind of error."""
        from diffract.tolerances import KINDS, UNITS

        grid = trained.design.grid
        given = {}
        for kind in KINDS:
            text = getattr(self, kind)
            if text is not None:
                length = grid.wavelength if UNITS.get(kind) == "m" else None
                given[kind] = numbers(f"--{kind}", text, length)
                if kind not in ("index", "wavelength") and min(given[kind]) < (2 if kind == "levels" else 0):
                    raise UserError(f"--{kind} {text}: sizes must be at least {2 if kind == 'levels' else 0}")
        pixel = grid.pitch
        usual = {
            "lateral": [0.5 * pixel, pixel, 2 * pixel],
            "axial": [0.5 * pixel, pixel],
            "rotation": [0.01, 0.03],
            "tilt": [0.01, 0.03],
            "thickness": [0.02 * grid.wavelength, 0.05 * grid.wavelength],
            "index": [-0.02, 0.02],
            "wavelength": [-0.02, 0.02],
            "levels": [2.0, 4.0, 8.0, 16.0],
        }
        return given or usual


def _picture(lines: Any) -> bytes | str:
    from matplotlib.figure import Figure

    from diffract.plots import picture
    from diffract.tolerances import UNITS

    kinds = list(dict.fromkeys(line.kind for line in lines))
    figure = Figure(figsize=(3 * min(4, len(kinds)), 2.6 * -(-len(kinds) // 4)), layout="constrained")
    axes = figure.subplots(-(-len(kinds) // 4), min(4, len(kinds)), squeeze=False, sharey=True).ravel()
    for axis, kind in zip(axes, kinds, strict=False):
        own = [line for line in lines if line.kind == kind]
        scale, unit = (1e3, ", mm") if UNITS.get(kind) == "m" else (1, f", {UNITS[kind]}" if kind in UNITS else "")
        axis.errorbar(
            [scale * line.size for line in own],
            [line.mean for line in own],
            [line.std for line in own],
            fmt="ko-",
            capsize=3,
        )
        axis.set(xlabel=f"{kind}{unit}", ylabel="correlation")
    for axis in axes[len(kinds) :]:
        axis.set_axis_off()
    return picture(figure, ".png")


def _tolerance_table(lines: Any) -> Any:
    from rich.table import Table

    from diffract.tolerances import UNITS

    table = Table("error", "size", "correlation", "deviation", "lost")
    for line in lines:
        length = UNITS.get(line.kind) == "m"
        size = f"{line.size * 1e3:.4g} mm" if length else f"{line.size:g} {UNITS.get(line.kind, '')}".strip()
        table.add_row(line.kind, size, f"{line.mean:.3f}", f"{line.std:.3f}", f"{line.loss:+.3f}")
    return table


@dataclass(frozen=True, kw_only=True)
class Export(cli.Command):
    """Write a trained network's layers for a printer, a lithography machine or a light modulator."""

    run: Path  # folder of `diffract train`
    format: Annotated[str, tyro.conf.arg(help=_FORMAT)] = "stl,png16"
    material: str | None = None  # n=1.72,k=0.03; the design's unless given
    base: str | None = None  # thickness below the relief
    step: str | None = None  # height of a printer's layer
    levels: int | None = None  # of a quantised relief
    upsample: int | None = None  # printed pixels a side of a design's pixel
    mirror: bool = False  # print the mirror image
    turns: int | None = None  # quarter turns anticlockwise
    frame: str = "0"  # width of a flat rim
    holes: str = "0"  # diameter of alignment holes in the rim's corners
    surface: Literal["steps", "smooth"] = "steps"  # of meshes
    panel: tuple[int, int] = (1080, 1920)  # rows and columns of a light modulator
    diffusers: bool = False  # write the known diffusers instead of the layers
    out: Path = Path("export")  # folder

    def __call__(self) -> None:
        """Writes the files, reads the heights back, and says what the made network would achieve."""
        import numpy as np

        from diffract.exports import export_layers
        from diffract.job import read_trained

        trained = read_trained(self.run)
        material, relief = self.piece(trained)
        forms = [form.strip() for form in self.format.split(",")]
        phases = trained.known if self.diffusers else np.asarray(trained.network.phases[...], np.float64)
        files = export_layers(
            phases,
            trained.design.grid,
            self.out,
            material,
            forms,
            relief,
            name="diffuser" if self.diffusers else "layer",
            panel=self.panel,
            surface=self.surface,
        )
        result: dict[str, Any] = {"files": [str(file) for file in files]}
        if not self.diffusers:
            result |= _made(trained, material, relief)
        self.show(result)

    def piece(self, trained: Trained) -> tuple[Any, Any]:
        """Material and relief: typed options beat the design's."""
        from diffract.reliefs import Material, Relief

        facts, wavelength = trained.design.export, trained.design.grid.wavelength
        material = Material(facts.n, facts.kappa) if self.material is None else material_of(self.material)
        step = facts.step if self.step is None else self.step
        return material, Relief(
            base=metres("--base", facts.base if self.base is None else self.base, wavelength, zero=True),
            levels=facts.levels if self.levels is None else self.levels,
            step=None if step is None else metres("--step", step, wavelength),
            upsample=facts.upsample if self.upsample is None else self.upsample,
            mirror=self.mirror or facts.mirror,
            turns=facts.turns if self.turns is None else self.turns,
            frame=metres("--frame", self.frame, wavelength, zero=True),
            holes=metres("--holes", self.holes, wavelength, zero=True),
        )


def _made(trained: Trained, material: Any, relief: Any) -> dict[str, float]:
    """Correlation of the design and of the network as made, through new diffusers; light that the material absorbs."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from diffract.evaluation import evaluate
    from diffract.job import new_diffusers
    from diffract.reliefs import heights, phase_of, transmittance

    grid, network = trained.design.grid, trained.network
    objects = trained.test_objects(20)
    screens = new_diffusers(trained.design, 8) if trained.design.screens else None
    designed = evaluate(network, objects, screens).mean
    height = [heights(phase, grid, material, relief) for phase in np.asarray(network.phases[...], np.float64)]
    made = nnx.clone(network)
    made.phases = nnx.Param(jnp.asarray([phase_of(each, grid, material) for each in height], jnp.float32))
    passed = [float((np.abs(transmittance(each, grid, material, relief.base)) ** 2).mean()) for each in height]
    return {
        "pcc_designed": designed,
        "pcc_made": evaluate(made, objects, screens).mean,
        "light_passed": float(np.prod(passed)),
    }
