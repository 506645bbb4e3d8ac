"""The job from the shell: list, compare, evaluate, diagnose, identify, generate and train (S = systematic noise)."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError

_DATA = (
    "photographs, garments or garments-test (built in); or a folder of images by class or flat, a text file of "
    "'path label' lines, Parquet files or WebDataset tars"
)
_MODEL = "timm:NAME, onnx:FILE, lite0, or package.module:function or file.py:function (runs that code)"
_PIPELINE = (
    "preset, decoder, resizer, DECODER/RESIZER, timm:NAME, FILE.json or preprocessor_config.json; then ,field=value"
)
Data = Annotated[str, tyro.conf.arg(help=_DATA)]
Model = Annotated[str, tyro.conf.arg(help=_MODEL)]
PipelineName = Annotated[str, tyro.conf.arg(help=_PIPELINE)]


@dataclass(frozen=True, kw_only=True)
class List(cli.Command):
    """List decoders and resizers with their versions, and which decoders give the same pixels here."""

    def __call__(self) -> None:
        """Prints the tables; a library that is missing is listed with how to get it."""
        from imagenet_s.decoding import decoders, identical_decoders
        from imagenet_s.resizing import resizers

        entries: dict[str, Any] = {"decoders": decoders(), "resizers": resizers()}
        facts: dict[str, Any] = {
            kind: [
                {"name": e.name, "version": e.version if e.available else None, "missing": e.why_not}
                for e in of_kind.values()
            ]
            for kind, of_kind in entries.items()
        }
        facts["identical"] = [list(group) for group in identical_decoders()]
        self.show(facts, lambda: _entry_tables(facts))


@dataclass(frozen=True, kw_only=True)
class Compare(cli.Command):
    """Compare two pipelines on image files, stage by stage, without a model."""

    a: tyro.conf.Positional[PipelineName]
    b: tyro.conf.Positional[PipelineName]
    files: tyro.conf.Positional[tuple[Path, ...]] = ()  # image files; the built-in photographs when none is named

    def __call__(self) -> None:
        """Prints how much the images differ after each stage, and what that looks like; writes nothing."""
        from imagenet_s.comparison import compare
        from imagenet_s.naming import pipeline_of, samples_of
        from imagenet_s.samples import Entry, FileSamples

        samples = samples_of("photographs")
        if self.files:
            for file in self.files:
                if not file.is_file():
                    raise UserError(f"{file} is no file", "name image files")
            samples = FileSamples((Entry(str(file), None, str(file)) for file in self.files), "files")
        found = compare(pipeline_of(self.a), pipeline_of(self.b), samples)
        for error in found.errors:
            self.say(f"left out: {error.name}: {error.message}")
        if not found.n:
            raise UserError(f"none of the {len(samples)} files can be read")
        facts = {
            "a": json.loads(found.a.to_json()),
            "b": json.loads(found.b.to_json()),
            "n": found.n,
            "stages": [asdict(each) for each in found.stages],
            "findings": [asdict(each) for each in found.findings],
            "errors": [asdict(each) for each in found.errors],
        }
        self.show(facts, lambda: _comparison_table(found))


@dataclass(frozen=True, kw_only=True)
class OnModel(cli.Command):
    """Options of every command that runs a classifier on image files."""

    model: Model
    data: Data
    root: Path | None = None  # folder that the paths of a text file start from; its own by default
    weights: Path | None = None  # state dictionary of the model: .safetensors, or PyTorch's format with tensors only
    download: bool = False  # fetch pretrained weights of a timm: model
    batch_size: int = 16  # images at a time; more on a GPU
    max_errors: float = 0.01  # share of files that may be unreadable
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    seed: int = 0  # of the bootstrap

    def loaded(self) -> tuple[Any, Any, str]:
        """Model, samples and device."""
        from core_utils.training import resolve_device
        from imagenet_s.models import load_model

        device = str(resolve_device(self.device))
        return load_model(self.model, device, weights=self.weights, download=self.download), self.samples(), device

    def samples(self) -> Any:
        """The image files."""
        from imagenet_s.naming import samples_of

        return samples_of(self.data, self.root)


@dataclass(frozen=True, kw_only=True)
class Evaluate(cli.RunCommand, OnModel):
    """Measure what every decoder and resizer of a grid does to a classifier's predictions."""

    grid: Literal["paper", "modern"] = "paper"  # 3 x 11 of the paper, or all that are installed and differ here
    decoders: str = ""  # names parted by commas, instead of the grid's
    resizers: str = ""  # names parted by commas, instead of the grid's
    factors: str = ""  # more changes, each alone: nv12, float16, bfloat16, int8, ceil-mode; parted by commas
    pipeline: PipelineName = "paper"
    reference: str | None = None  # DECODER/RESIZER that the model was trained with; the pipeline's own by default
    workers: int = 1  # 1 makes views in a thread beside the model, more in processes
    cluster: str | None = None  # address of a Dask scheduler that makes the views instead
    worst: int = 8  # images to show that suffer most
    out: Path = Path("runs/evaluate")  # the run's folder

    def __call__(self) -> None:
        """Evaluates, or goes on, or shows what a finished run holds."""
        from imagenet_s.evaluation import evaluate
        from imagenet_s.naming import grid_of, pipeline_of
        from imagenet_s.reports import PAGE, evaluation_sections, worst_images, write_page

        pipeline = pipeline_of(self.pipeline)
        grid = grid_of(self.grid, pipeline, self.decoders, self.resizers, self.factors)
        reference = self.reference or f"{pipeline.decoder}/{pipeline.resizer}"
        model, samples, device = self.loaded()
        config = {"evaluate": self.model, "data": self.data, "grid": grid.hash, "reference": reference}
        with self.open_run(config | {"weights": self.weights, "seed": self.seed, "device": device}) as run:
            if not run.finished:
                result = evaluate(
                    model,
                    samples,
                    grid,
                    reference=reference,
                    batch_size=self.batch_size,
                    device=device,
                    workers=self.workers,
                    cluster=self.cluster,
                    cache_dir=run.path / "evaluation",
                    seed=self.seed,
                    max_errors=self.max_errors,
                    progress=not self.quiet,
                )
                summary = result.summary()
                run.write("predictions.json", result.to_json())
                run.write("combinations.csv", result.to_csv())
                run.write("figures/grid.svg", result.plot())
                sections = evaluation_sections(result, worst_images(result, samples, pipeline, self.worst))
                lead = f"{self.model} on {summary.n} images of {self.data}, reference {reference}."
                write_page(run, f"what {self.model} sees", lead, sections)
                run.finish({"summary": asdict(summary), "text": str(summary), "page": str(run.path / PAGE)})
            self.show(run.result(), lambda: run.result()["text"])
            self.say(f"the page is {run.path / PAGE}")


@dataclass(frozen=True, kw_only=True)
class Diagnose(cli.RunCommand, OnModel):
    """Say which pre-processing stage between two pipelines, or a pipeline and dumped tensors, costs accuracy."""

    a: PipelineName  # right, as in training
    b: str  # another such name, or a folder of .npy tensors named after the images
    fail_above: float | None = (
        None  # exit with 1 if more points are lost, or without labels more % of predictions change
    )
    worst: int = 8  # images to show that suffer most
    out: Path = Path("runs/diagnose")  # the run's folder

    def __call__(self) -> int:
        """Diagnoses, or shows what a finished run holds; exit code 1 above `--fail-above`."""
        from imagenet_s.diagnosis import diagnose
        from imagenet_s.naming import pipeline_of
        from imagenet_s.reports import PAGE, diagnosis_sections, write_page

        a = pipeline_of(self.a)
        tensors = Path(self.b).is_dir() and not (Path(self.b) / "preprocessor_config.json").is_file()
        b: Any = Path(self.b) if tensors else pipeline_of(self.b)
        model, samples, device = self.loaded()
        config = {"diagnose": self.model, "data": self.data, "a": a.to_json(), "b": str(b) if tensors else b.to_json()}
        with self.open_run(config | {"weights": self.weights, "seed": self.seed, "device": device}) as run:
            if not run.finished:
                found = diagnose(
                    model,
                    samples,
                    a,
                    b,
                    batch_size=self.batch_size,
                    device=device,
                    seed=self.seed,
                    worst=self.worst,
                    max_errors=self.max_errors,
                )
                run.write("diagnosis.json", found.to_json())
                lead = f"{self.model} on {found.n} images of {self.data}; a is {self.a}, b is {self.b}."
                write_page(run, "which stage does it", lead, diagnosis_sections(found))
                total = found.total
                lost = 100 * (total.flips / total.n if total.drop is None else total.drop)
                unit = "% of predictions changed" if total.drop is None else "points of accuracy lost"
                facts = json.loads(found.to_json()) | {"lost": lost, "unit": unit, "text": str(found)}
                run.finish(facts | {"page": str(run.path / PAGE)})
            result = run.result()
            self.show(result, lambda: result["text"])
            self.say(f"the page is {run.path / PAGE}")
        if self.fail_above is not None and result["lost"] > self.fail_above:
            self.say(f"{result['lost']:.2f} {result['unit']}, more than --fail-above {self.fail_above:g}")
            return cli.CHECK_FAILED
        return cli.DONE


@dataclass(frozen=True, kw_only=True)
class Identify(cli.Command):
    """Find the pipeline that reproduces tensors dumped by another runtime."""

    tensors: tyro.conf.Positional[Path]  # folder of .npy files, named after the images
    data: Data
    root: Path | None = None  # folder that the paths of a text file start from; its own by default
    start: PipelineName = "paper"
    top: int = 5  # candidates to show

    def __call__(self) -> None:
        """Prints the candidates, best first; writes nothing."""
        from imagenet_s.identification import identify
        from imagenet_s.naming import pipeline_of, samples_of

        found = identify(self.tensors, samples_of(self.data, self.root), start=pipeline_of(self.start), top=self.top)
        facts = [
            {
                "pipeline": json.loads(each.pipeline.to_json()),
                "error": each.error,
                "exact": each.exact,
                "alike": each.alike,
            }
            for each in found
        ]
        self.show(facts, lambda: _candidate_table(found))


@dataclass(frozen=True, kw_only=True)
class Generate(cli.RunCommand):
    """Write every view of a data set into shards, without loss."""

    data: Data
    root: Path | None = None  # folder that the paths of a text file start from; its own by default
    grid: Literal["paper", "modern"] = "paper"  # 3 x 11 of the paper, or all that are installed and differ here
    decoders: str = ""  # names parted by commas, instead of the grid's
    resizers: str = ""  # names parted by commas, instead of the grid's
    pipeline: PipelineName = "paper"
    shard: Literal["webdataset", "parquet", "npy"] = "webdataset"  # npy: the authors' folders and text files
    codec: Literal["webp", "png", "npy"] | None = None  # how pixels are stored; webp, or npy with npy shards
    shard_size: int = 256  # images in a shard
    workers: int = 1  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    max_errors: float = 0.01  # share of files that may be unreadable
    out: Path = Path("runs/views")  # folder of the shards

    def __call__(self) -> None:
        """Writes the shards that are not there yet, and the manifest last."""
        from imagenet_s.generation import generate
        from imagenet_s.naming import grid_of, pipeline_of, samples_of

        found = generate(
            samples_of(self.data, self.root),
            grid_of(self.grid, pipeline_of(self.pipeline), self.decoders, self.resizers, ""),
            self.out,
            self.shard,
            codec=self.codec,
            shard_size=self.shard_size,
            workers=self.workers,
            cluster=self.cluster,
            resume=self.resume,
            overwrite=self.overwrite,
            max_errors=self.max_errors,
            progress=not self.quiet,
        )
        self.show(
            {
                "out": found.out,
                "images": found.images,
                "shards": len(found.shards),
                "resumed": found.resumed,
                "unreadable": len(found.errors),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Train(cli.RunCommand, cli.Configured):
    """Train a classifier on a mix of decoders and resizers; --set and --config take every field of TrainConfig."""

    model: Model
    data: Data
    root: Path | None = None  # folder that the paths of a text file start from; its own by default
    weights: Path | None = None  # state dictionary to begin with
    download: bool = False  # fetch pretrained weights of a timm: model
    decoders: str = ""  # names parted by commas; the paper's by default, one trains on one decoder
    resizers: str = ""  # names parted by commas; the paper's by default
    pipeline: PipelineName = "paper"
    method: Literal["mix", "worst", "consistency"] | None = None  # mix unless configured
    epochs: int | None = None  # 100 unless configured
    seed: int | None = None  # of order, views and crops; 0 unless configured
    workers: int = 0  # processes that make views
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/train")  # the run's folder

    def __call__(self) -> None:
        """Trains, or goes on, and leaves model.safetensors in the run's folder."""
        import safetensors.torch

        from core_utils.training import resolve_device, seed_everything
        from imagenet_s.models import load_model
        from imagenet_s.naming import parted, pipeline_of, samples_of
        from imagenet_s.training import TrainConfig, train

        config = self.settings(
            TrainConfig,
            method=self.method,
            epochs=self.epochs,
            seed=self.seed,
            decoders=parted(self.decoders) or None,
            resizers=parted(self.resizers) or None,
        )
        config = TrainConfig(**(vars(config) | {"pipeline": pipeline_of(self.pipeline)}))
        samples, device = samples_of(self.data, self.root), str(resolve_device(self.device))
        seed_everything(config.seed)
        model: Any = load_model(self.model, device, weights=self.weights, download=self.download)
        if not hasattr(model, "state_dict"):
            raise UserError(f"--model {self.model} is no torch module, and cannot be trained")
        asked = {"model": self.model, "data": self.data, "weights": self.weights, "config": config, "device": device}
        with self.open_run(asked) as run:
            if not run.finished:
                history = train(
                    model,
                    samples,
                    config,
                    device=device,
                    workers=self.workers,
                    run=run,
                    progress=not self.quiet,
                )
                state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
                run.write("model.safetensors", safetensors.torch.save(state))
                run.finish({"weights": str(run.path / "model.safetensors"), "loss": history.last["loss"]})
            self.show(run.result())


@dataclass(frozen=True, kw_only=True)
class Report(cli.Command):
    """Copy the page of a finished evaluate or diagnose: heat map, stages, worst images, in one HTML file."""

    run: tyro.conf.Positional[Path]  # folder of the run
    out: Path = Path("report.html")  # file to write

    def __call__(self) -> None:
        """Writes the page."""
        from core_utils.files import write_atomically
        from imagenet_s.reports import page_of

        write_atomically(self.out, page_of(self.run))
        self.show({"file": self.out})


def _entry_tables(facts: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    tables = []
    for kind in ("decoders", "resizers"):
        table = Table(kind[:-1], "version")
        for row in facts[kind]:
            table.add_row(row["name"], row["version"] or f"missing: {row['missing']}")
        tables.append(table)
    same = "; ".join(" = ".join(group) for group in facts["identical"] if len(group) > 1)
    return Group(*tables, f"decoders that give the same pixels here: {same or 'none'}")


def _comparison_table(found: Any) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table("after", "mean |difference|", "largest", "values that differ", title=f"{found.n} files, b against a")
    for each in found.stages:
        if each.shapes == found.n:
            table.add_row(each.stage, "", "", "other shapes")
            continue
        note = f" ({each.shapes} files have other shapes)" if each.shapes else ""
        table.add_row(each.stage, f"{each.mean:.4g}", f"{each.largest:.4g}", f"{100 * each.changed:.2f} %{note}")
    return Group(table, *map(str, found.findings))


def _candidate_table(found: Any) -> Any:
    from rich.table import Table

    table = Table("error", "exact", "pipeline", "as good")
    for each in found:
        p = each.pipeline
        text = f"{p.decoder}/{p.resizer}, {p.geometry} {p.resize_to}, {p.crop} {p.size}, {p.orientation} orientation"
        text += f", colour {p.colour}" if p.colour != "rgb" else ""
        text += f", scale {p.scale:.6g}, mean {p.mean}, std {p.std}, {p.channels}, {p.layout}, {p.dtype}"
        table.add_row(f"{each.error:.4f}", "yes" if each.exact else "no", text, ", ".join(each.alike[:4]))
    return table


def _warn(message: Any) -> None:
    sys.stderr.write(f"imagenet-s: {' '.join(str(message).split())}\n")


def main() -> int:
    """Runs the program `imagenet-s`."""
    jobs = {
        "list": List,
        "compare": Compare,
        "evaluate": Evaluate,
        "diagnose": Diagnose,
        "identify": Identify,
        "generate": Generate,
        "train": Train,
        "report": Report,
    }
    shared = cli.shared(claims="imagenet_s.claims:CLAIMS", benchmarks="imagenet_s")
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: _warn(message)
        return cli.main("imagenet-s", {**jobs, **shared})
