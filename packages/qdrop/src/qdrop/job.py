"""What `qdrop quantize` is asked to do, what it leaves in its folder, and how that is read back."""

from __future__ import annotations

import csv
import io
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from core_utils.errors import CheckFailed
from core_utils.runs import Run, read_finished
from core_utils.settings import from_tree
from core_utils.training import Loader, resolve_device
from qdrop.config import QDropConfig
from qdrop.data import Part, batches, samples
from qdrop.errors import QDropError, ReconstructionError
from qdrop.evaluation import closeness
from qdrop.models import FloatModel, float_model
from qdrop.plots import loss_figure, sqnr_figure
from qdrop.preprocessing import Preprocessing

if TYPE_CHECKING:
    from qdrop.planning import Plan
    from qdrop.reconstruction import UnitResult
    from qdrop.student import QuantizedModel

WEIGHTS = "model.safetensors"
UNITS = "units"
"""Folder of the finished units of a run; it goes when the run is finished."""
BATCH = 64
"""Samples that go through a model at once where nothing is learned."""


@dataclass(frozen=True)
class Job:
    """A model and its data. What is None is as the model's source says.

    Attributes:
        model: as `models.float_model` takes it.
        weights: file of a state dictionary.
        download: fetch pretrained weights.
        calib: samples to calibrate on, as `data.samples` takes it; None where nothing is calibrated.
        samples: how many of them, drawn without replacement; all where there are fewer.
        size: height and width of the images that the model sees, pixels.
        resize: length of their shorter side before the crop, pixels.
        mean: of each channel, as a fraction of 255.
        std: likewise, the deviation.
    """

    model: str
    weights: Path | None = None
    download: bool = False
    calib: str | None = None
    samples: int = 1024
    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise QDropError(f"samples must be at least 1, got {self.samples}")

    @cached_property
    def float_model(self) -> FloatModel:
        """The model, built once."""
        return float_model(self.model, self.weights, download=self.download)

    @property
    def preprocessing(self) -> Preprocessing:
        """Of images."""
        known = self.float_model.preprocessing
        size = self.size or known.size
        resize = self.resize or (known.resize if size == known.size else round(size * known.resize / known.size))
        return Preprocessing(size, resize, self.mean or known.mean, self.std or known.deviation)

    def calibration(self, seed: int, workers: int = 0) -> Loader:
        """The samples to calibrate on that a seed draws."""
        if self.calib is None:
            raise QDropError("there is nothing to calibrate on", "add --calib")
        data = samples(self.calib, "train", self.preprocessing)
        return batches(data, BATCH, count=min(self.samples, len(data)), seed=seed, workers=workers)

    def data(self, source: str, part: Part = "test", count: int | None = None, workers: int = 0) -> Loader:
        """Samples to measure on: all of a data set, or the first so many that seed 0 draws."""
        data = samples(source, part, self.preprocessing)
        return batches(data, BATCH, count=None if count is None else min(count, len(data)), workers=workers)

    def example(self) -> Any:
        """Inputs of two samples: of those to calibrate on, else of empty images."""
        if self.calib is not None:
            return inputs_of(next(iter(self.calibration(0))))[:2]
        normal = self.preprocessing
        return torch.zeros(2, normal.channels, normal.size, normal.size)


def require_trained(job: Job) -> None:
    """Refuses to spend time on a model of random weights.

    Raises:
        QDropError: the model's source gives no weights.
    """
    if not job.float_model.trained:
        raise QDropError(f"{job.model} has random weights", "add --weights FILE or --download")


def quantize_job(
    run: Run,
    job: Job,
    config: QDropConfig,
    *,
    device: str = "cpu",
    workers: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Quantises the model of a job into a run's folder and finishes the run; goes on where it stopped.

    Args:
        run: the folder.
        job: model and data.
        config: how.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        workers: loading processes.
        say: shows a line of progress; the plan comes first.

    Raises:
        UserError: model, data or settings cannot be used.
        CheckFailed: a unit could not be reconstructed; the finished ones are kept.
    """
    import qdrop

    where = resolve_device(device)
    require_trained(job)
    model, calibration = job.float_model.model.to(where), job.calibration(config.seed, workers)
    example = job.example().to(where)
    plan = qdrop.plan(model, example, config, samples=len(calibration.dataset))
    say(str(plan))

    logged = {record.get("name") for record in run.records()}
    numbers = itertools.count(1)

    def finished(result: UnitResult) -> None:
        if result.name not in logged:  # else an earlier call learned it, and the engine read it back
            run.log(**{name: value for name, value in asdict(result).items() if name != "losses"})
        say(f"[{next(numbers)}/{len(plan.units)}] {_line(result)}")

    def warned(text: str) -> None:
        run.log(warning=text)
        say(f"warning: {text}")

    with _warnings(warned):
        try:
            qm = qdrop.quantize(model, calibration, config, workdir=run.path / UNITS, progress=False, callback=finished)
        except ReconstructionError as error:
            raise CheckFailed(f"{error}; finished units are kept in {run.path / UNITS}") from error
    qdrop.save(qm, run.path / WEIGHTS)
    run.write("quant.json", described(qm, job))
    run.write("report.csv", report_csv(qm.report))
    name = f"{job.model}, W{config.w_bits}A{config.a_bits}, {config.method}"
    if qm.report:  # nothing is learned where weights are rounded to nearest
        run.write("loss.png", loss_figure(qm.report, f"Loss of every unit ({name})"))
        run.write("sqnr.png", sqnr_figure(qm.report, f"Precision unit by unit ({name})"))
    close = closeness(qm, model, calibration)
    run.finish(
        {
            "model": run.path / WEIGHTS,
            "units": len(plan.units),
            "agreement_with_float": close.agreement,
            "sqnr_db": close.sqnr_db,
            "seconds": sum(result.seconds for result in qm.report),
            "measured_on": "calibration samples",
        }
    )
    shutil.rmtree(run.path / UNITS)


@dataclass(frozen=True, eq=False)
class Quantized:
    """What a run of `qdrop quantize` left.

    Attributes:
        job: model and data.
        float_model: the float model, on the device.
        model: the quantised model, on the device.
        seed: of the run.
    """

    job: Job
    float_model: nn.Module
    model: QuantizedModel
    seed: int

    def inputs(self, count: int) -> list[Any]:
        """Batches of so many of the samples that it was calibrated on, without labels."""
        data = samples(self.job.calib or "", "train", self.job.preprocessing)
        count = min(count, self.job.samples, len(data))
        return [inputs_of(batch) for batch in batches(data, BATCH, count=count, seed=self.seed)]


def inputs_of(batch: Any) -> Any:
    """A loader's batch without its labels."""
    return batch[0] if isinstance(batch, list) else batch


def read_quantized(folder: Path, device: str = "cpu") -> Quantized:
    """The quantised model of a finished run and its float model.

    Args:
        folder: the run's.
        device: where to put both.

    Raises:
        UserError: the folder is no such run or is not finished, or the float model is not there any more.
    """
    import qdrop

    where = resolve_device(device)
    ours = {"job", "config"}
    asked = read_finished(folder, "qdrop quantize", lambda asked: asked.keys() == ours, error=QDropError)
    job = from_tree(Job, asked["job"], str(folder / "config.json"))
    model = job.float_model.model.to(where)
    return Quantized(job, model, qdrop.load(folder / WEIGHTS, model), asked["config"]["seed"])


def described(qm: QuantizedModel, job: Job) -> dict[str, Any]:
    """Bits, step sizes and zero points of every layer and tensor, for other programs."""
    weights = {
        path: {
            "bits": weight.bits,
            "qmin": weight.qmin,
            "qmax": weight.qmax,
            "axis": weight.axis,
            "scale": weight.scale.tolist(),
            "zero_point": weight.zero_point.tolist(),
        }
        for path, weight in qm.weights.items()
    }
    activations = {
        name: {
            "bits": each.bits,
            "qmin": each.qmin,
            "qmax": each.qmax,
            "scale": each.scale.item(),
            "zero_point": each.zero_point.item(),
        }
        for name, each in qm.activations.items()
    }
    config = asdict(qm.config)
    return {"job": job, "config": config, "weights": weights, "activations": activations, "notes": qm.plan.notes}


def plan_facts(plan: Plan) -> dict[str, Any]:
    """A plan as JSON data; of functional tails, the names."""
    units = [
        {
            field.name: getattr(unit, field.name) if field.name != "tail" else [_name(each) for each in unit.tail]
            for field in fields(unit)
        }
        for unit in plan.units
    ]
    return {**{field.name: getattr(plan, field.name) for field in fields(plan)}, "units": units}


def report_csv(report: Sequence[UnitResult]) -> str:
    """The report as a table: a row a unit, in order of execution."""
    columns = ("unit", "loss_start", "loss_end", "sqnr_db", "unconverged", "seconds", "note")
    return table_csv(columns, [(each.name, *(getattr(each, column) for column in columns[1:])) for each in report])


def table_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV; floats with 9 digits, nothing for None."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.9g}" if isinstance(value, float) else value for value in row] for row in rows)
    return content.getvalue()


@contextmanager
def _warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """What the engine warns of, as lines."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: tell(" ".join(str(message).split()))
        yield


def _line(result: UnitResult) -> str:
    numbers = f"squared error {result.loss_start:.4g} -> {result.loss_end:.4g}, {result.sqnr_db:.1f} dB"
    return f"{result.name}  {numbers}, {result.seconds:.1f} s" + (f"  {result.note}" if result.note else "")


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
