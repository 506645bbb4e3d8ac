"""The job: plan, quantise, evaluate, export and compare models from the shell."""

from __future__ import annotations

import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from core_utils import cli
from core_utils.errors import UserError
from qdrop.config import LayerOverride, Method, QDropConfig

if TYPE_CHECKING:
    from qdrop.job import Job

_SOURCES = "timm:NAME, torchvision:NAME, package.module:factory or file.py:factory (runs that code), miniature, lite0"
Model = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL", help=_SOURCES)]]
Folder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR", help="folder of a finished quantize")]]
Override = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(help="PATTERN:key=value,... for matching modules: w_bits, a_bits, skip, reg_weight; may be repeated"),
]


@dataclass(frozen=True, kw_only=True)
class OnModel(cli.Command):
    """Options of every command that takes a float model and samples."""

    model: Model
    weights: Path | None = None  # state dictionary: .safetensors, or PyTorch's format with tensors only
    download: bool = False  # fetch pretrained weights of timm: and torchvision: models
    samples: int = 1024  # calibration samples, drawn without replacement; all if there are fewer
    size: int | None = None  # height and width of images, pixels; by default the model's own
    resize: int | None = None  # shorter side before the central crop, pixels
    mean: tuple[float, ...] | None = None  # of each channel, as a fraction of 255
    std: tuple[float, ...] | None = None  # of each channel, likewise

    def job(self, calib: str | None) -> Job:
        """Model and data."""
        from qdrop.job import Job

        return Job(
            model=self.model,
            weights=self.weights,
            download=self.download,
            calib=calib,
            samples=self.samples,
            size=self.size,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
        )


@dataclass(frozen=True, kw_only=True)
class Quantisation(cli.Configured):
    """Options that decide how a model is quantised; `--set` and `--config` take every field of QDropConfig."""

    override: Override = ()

    def quantisation(self, model: str, **typed: Any) -> QDropConfig:
        """The configuration, with the paper's lambda for the architecture unless it is set."""
        own = QDropConfig.for_arch(model).reg_weight
        kind = make_dataclass("QDropConfig", [("reg_weight", float, own)], bases=(QDropConfig,), frozen=True)
        found = dict(vars(self.settings(kind, **typed)))
        overrides = {**found.pop("overrides"), **dict(map(_override, self.override))}
        return QDropConfig(**found, overrides=overrides)


@dataclass(frozen=True, kw_only=True)
class Plan(OnModel, Quantisation):
    """Print which layers, tensors and units would be quantised, and what it would cost; spends no time on it."""

    calib: str | None = None  # as for quantize; its first samples are run through the model instead of empty images
    w_bits: int | None = None  # bits of weights, 2 to 8; 4 unless configured
    a_bits: int | None = None  # bits of activations, 2 to 8; 4 unless configured
    method: Method | None = None  # qdrop unless configured
    iters: int | None = None  # iterations of each unit; 20000 unless configured

    def __call__(self) -> None:
        """Prints the plan; writes nothing."""
        import qdrop
        from qdrop.job import plan_facts

        typed = {name: getattr(self, name) for name in ("w_bits", "a_bits", "method", "iters")}
        config = self.quantisation(self.model, **typed)
        job = self.job(self.calib)
        plan = qdrop.plan(job.float_model.model, job.example(), config, samples=self.samples)
        if self.json:
            self.show(plan_facts(plan))
        else:
            sys.stdout.write(f"{plan}\n")


@dataclass(frozen=True, kw_only=True)
class Quantize(cli.RunCommand, OnModel, Quantisation):
    """Quantise a model with unlabelled samples; write codes, report and pictures into the run's folder."""

    calib: str  # fashion-mnist, an .npz (array x), a folder of images (flat, by class, or train/ by class) or IDX files
    w_bits: int | None = None  # bits of weights, 2 to 8; 4 unless configured
    a_bits: int | None = None  # bits of activations, 2 to 8; 4 unless configured
    method: Method | None = None  # qdrop unless configured
    iters: int | None = None  # iterations of each unit; 20000 unless configured
    seed: int | None = None  # decides calibration samples, batches and masks; 0 unless configured
    workers: int = 0  # processes that load images
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/quantize")  # the run's folder

    def __call__(self) -> None:
        """Quantises, or goes on, or shows what a finished run holds."""
        from qdrop.job import quantize_job

        typed = {name: getattr(self, name) for name in ("w_bits", "a_bits", "method", "iters", "seed")}
        config, job = self.quantisation(self.model, **typed), self.job(self.calib)
        with self.open_run({"job": job, "config": config}) as run:
            if not run.finished:
                quantize_job(run, job, config, device=self.device, workers=self.workers, say=self.say)
            self.show(run.result())


@dataclass(frozen=True, kw_only=True)
class OnQuantized(cli.Command):
    """Options of every command that reads a finished quantisation."""

    run: Folder
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnQuantized):
    """Print the accuracy of a quantised model and of its float model on labelled samples."""

    data: str  # fashion-mnist, an .npz (arrays x and y), or a folder: images by class, val/ by class, or IDX files
    samples: int | None = None  # evaluate on so many, drawn without replacement; by default on all
    workers: int = 0  # processes that load images

    def __call__(self) -> None:
        """Prints accuracies and how close the two models are; writes nothing."""
        from qdrop.evaluation import closeness, evaluate
        from qdrop.job import read_quantized

        held = read_quantized(self.run, self.device)
        loader = held.job.data(self.data, count=self.samples, workers=self.workers)
        close = closeness(held.model, held.float_model, loader)
        self.show(
            {
                "accuracy": evaluate(held.model, loader),
                "float_accuracy": evaluate(held.float_model, loader),
                "agreement_with_float": close.agreement,
                "sqnr_db": close.sqnr_db,
                "samples": len(loader.dataset),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Export(OnQuantized):
    """Write a quantised model as ONNX with QuantizeLinear and DequantizeLinear (needs the extra `onnx`)."""

    onnx: Path  # file to write, for example model.onnx
    opset: int = 21  # of ONNX; 21 and later have 4-bit integers
    no_verify: bool = False  # do not run the file in ONNX Runtime and compare

    def __call__(self) -> None:
        """Writes the file."""
        import qdrop
        from qdrop.job import read_quantized

        held = read_quantized(self.run, self.device)
        qdrop.export_onnx(held.model, self.onnx, held.model.example, opset=self.opset, verify=not self.no_verify)
        self.show({"file": self.onnx})


@dataclass(frozen=True, kw_only=True)
class Compare(cli.RunCommand, OnModel, Quantisation):
    """Quantise a model by several methods, bits and seeds; write a table and a picture."""

    calib: str  # samples to calibrate on, as for quantize; every seed draws its own
    data: str | None = None  # labelled samples to evaluate on; by default agreement with float on --calib is measured
    methods: str = "nearest,brecq,case2,case3,qdrop"  # of nearest, adaround, brecq, case2, case3, qdrop
    bits: str = "4/4,3/3,2/2"  # of weights/activations
    seeds: int = 3  # how many, from 0
    iters: int | None = None  # iterations of each unit; 20000 unless configured
    workers: int = 1  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/compare")  # the run's folder; points that are finished are not repeated

    def __call__(self) -> int:
        """Runs the points that the folder does not hold yet; exit code 1 if one failed."""
        from qdrop.comparison import compare, grid

        config, job = self.quantisation(self.model, iters=self.iters), self.job(self.calib)
        points = grid(
            job,
            config,
            self.methods.split(","),
            self.bits.split(","),
            self.seeds,
            data=self.data,
            device=self.device,
            workdir=self.out.resolve() / "unfinished",
        )
        asked = {"job": job, "config": config, "points": list(points), "data": self.data}
        with self.open_run(asked) as run:
            rows, failures = compare(run, points, workers=self.workers, cluster=self.cluster, progress=not self.quiet)
            for failure in failures.values():
                if failure.user:
                    raise UserError(failure.message)
            if not failures and not run.finished:
                run.finish(rows)
        self.show(rows, lambda: _grid_table(rows))
        for key, failure in failures.items():
            sys.stderr.write(f"{key} failed: {failure}\n")
        return cli.CHECK_FAILED if failures else cli.DONE


@dataclass(frozen=True, kw_only=True)
class Flatness(OnQuantized):
    """Displace a quantised model's weights in random directions and see how its loss rises; write picture and CSV."""

    data: str | None = None  # labelled samples; by default the calibration samples, against the float model
    samples: int = 256  # how many, drawn without replacement
    magnitudes: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2)  # of the displacement, in norms of each channel
    directions: int = 10  # random ones
    seed: int = 0  # decides them
    out: Path = Path("runs/flatness")  # folder of flatness.svg and flatness.csv

    def __call__(self) -> None:
        """Writes loss and agreement for every magnitude and direction."""
        from core_utils.files import write_atomically
        from qdrop.evaluation import flatness
        from qdrop.job import read_quantized, table_csv
        from qdrop.plots import flatness_figure

        if self.samples < 1:
            raise UserError(f"--samples must be at least 1, got {self.samples}")
        held = read_quantized(self.run, self.device)
        loader: Any = held.inputs(self.samples)
        quantity = "divergence from the float model (nats)"
        if self.data is not None:
            loader, quantity = held.job.data(self.data, count=self.samples), "cross-entropy (nats)"
        rows = flatness(held.float_model, held.model, loader, self.magnitudes, self.directions, self.seed)
        columns = ("magnitude", "direction", "loss", "agreement")
        table = table_csv(columns, [[getattr(row, name) for name in columns] for row in rows])
        write_atomically(self.out / "flatness.csv", table)
        picture = flatness_figure({"": rows}, quantity, f"Loss around {self.run}", "svg")
        write_atomically(self.out / "flatness.svg", picture)
        self.show({"rows": rows, "picture": self.out / "flatness.svg"}, lambda: _flatness_table(rows))


def _override(text: str) -> tuple[str, LayerOverride]:
    from core_utils.settings import settings

    pattern, colon, pairs = text.rpartition(":")
    if not colon or not pattern:
        raise UserError(f"--override {text}: expected PATTERN:key=value", "for example 'layer1.*:w_bits=8'")
    try:
        return pattern, settings(LayerOverride, pairs=pairs.split(","))
    except UserError as error:
        raise UserError(error.message.replace("--set ", f"--override {pattern}:"), error.hint) from None


def _grid_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("method", "W/A", "seed", "accuracy", "agreement with float", "SQNR", "seconds")
    for row in rows:
        accuracy, agreement = ("" if row[name] is None else f"{100 * row[name]:.2f} %" for name in _PERCENT)
        bits, sqnr = f"{row['w_bits']}/{row['a_bits']}", f"{row['sqnr_db']:.1f} dB"
        table.add_row(row["method"], bits, str(row["seed"]), accuracy, agreement, sqnr, f"{row['seconds']:.1f}")
    return table


_PERCENT = ("accuracy", "agreement")


def _flatness_table(rows: list[Any]) -> Any:
    from rich.table import Table

    table = Table("displacement", "mean loss (nats)", "mean agreement")
    for magnitude in dict.fromkeys(row.magnitude for row in rows):
        own = [row for row in rows if row.magnitude == magnitude]
        loss, agreement = (sum(getattr(row, name) for row in own) / len(own) for name in ("loss", "agreement"))
        table.add_row(f"{100 * magnitude:g} %", f"{loss:.4f}", f"{100 * agreement:.2f} %")
    return table


def main() -> int:
    """Runs the program `qdrop`."""
    jobs = {
        "plan": Plan,
        "quantize": Quantize,
        "evaluate": Evaluate,
        "export": Export,
        "compare": Compare,
        "flatness": Flatness,
    }
    return cli.main("qdrop", {**jobs, **cli.shared(claims="qdrop.claims:CLAIMS", benchmarks="qdrop")})
