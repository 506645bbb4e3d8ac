"""The job: train a spiking network, run it for any number of steps, see what it costs and how flat its minimum is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_utils import cli
from core_utils.errors import UserError

if TYPE_CHECKING:
    from core_utils.runs import Run
    from snn_tet.job import JobConfig
    from snn_tet.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Train(cli.RunCommand, cli.Configured):
    """Train a network; write weights, log and a picture into the run's folder."""

    preset: Literal["cifar10", "cifar100", "cifar10-dvs", "imagenet"] | None = None  # a configuration of the paper
    data: Path | None = None  # folder of the data set; the miniature is embedded
    network: str | None = None  # tiny_vgg (default), vggsnn, vggsnn_woap, resnet19, sew_resnet34, spiking_resnet34
    dataset: str | None = None  # miniature (default), cifar10, cifar100, cifar10-dvs, imagenet
    loss: Literal["tet", "sdt"] | None = None  # on every step (tet, the default), or on the mean over time
    time_steps: int | None = None  # 5 unless configured
    stages: str | None = None  # time inheritance training, as steps:epochs[:rate],..., for example 2:25,5:5
    epochs: int | None = None  # passes over the training data; 40 unless configured
    seed: int | None = None  # decides data, initial weights and order; 0 unless configured
    workers: int = 1  # processes that make a frame cache
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/train")  # the run's folder

    def __call__(self) -> None:
        """Trains, or goes on, or shows what a finished run holds."""
        from snn_tet.job import JobConfig, load_data, preset_file

        if self.preset is not None and self.config is not None:
            raise UserError("--preset and --config are two configurations", "name one, and change it by --set")
        file = preset_file(self.preset) if self.preset is not None else self.config
        typed = {name: getattr(self, name) for name in ("network", "dataset", "loss", "time_steps", "epochs", "seed")}
        stages = None if self.stages is None else tuple(self.stages.split(","))
        config = self.settings(JobConfig, file=file, stages=stages, **typed).complete
        with self.open_run({"config": config, "data": self.data}) as run:
            if not run.finished:
                data = load_data(config, self.data, workers=self.workers, progress=not self.quiet)
                _train(run, config, data, self.data, device=self.device, progress=not self.quiet)
            result = run.result()
        self.show(result, lambda: _steps_table(result))


@dataclass(frozen=True, kw_only=True)
class OnTrained(cli.Command):
    """Options of every command that reads a finished training."""

    run: Path  # folder of a finished `train`
    data: Path | None = None  # where the data set lies now, if it was moved
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnTrained):
    """Run a trained network for 1, 2, ... time steps on the test data and print its accuracy."""

    time_steps: int | None = None  # run at most so many steps; by default as many as in training
    early_exit: float | None = None  # also stop every sample at this confidence, between 0 and 1

    def __call__(self) -> None:
        """Prints the accuracies; writes nothing."""
        from core_utils.training import resolve_device
        from snn_tet.evaluation import accuracy_vs_steps, early_exit_report
        from snn_tet.job import evaluation_loader
        from snn_tet.trained import read_trained

        device = resolve_device(self.device)
        trained = read_trained(self.run, self.data)
        model, encoding = trained.model.to(device), trained.config.encoding
        loader = evaluation_loader(trained.config, trained.data.test)
        steps = self.time_steps if self.time_steps is not None else trained.config.time_steps
        result: dict[str, Any] = dict(accuracy_vs_steps(model, loader, steps, encoding=encoding))
        if self.early_exit is not None:
            result["early_exit"] = early_exit_report(model, loader, self.early_exit, steps, encoding=encoding)
        self.show(result, lambda: _steps_table(result))


@dataclass(frozen=True, kw_only=True)
class Prepare(cli.Command):
    """Make the frame cache of CIFAR10-DVS recordings; `train` would make it, too."""

    data: Path  # folder with a folder a class
    time_steps: int = 10  # frames of a recording
    size: int = 48  # height and width of the frames, pixels
    sort: bool = False  # accept recordings whose times decrease, by sorting their events
    workers: int = 2  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    out: Path | None = None  # folder of the cache; by default .frames in --data

    def __call__(self) -> None:
        """Makes what is missing and prints the file."""
        from snn_tet.datasets import prepare

        file = prepare(
            self.data,
            time_steps=self.time_steps,
            size=self.size,
            sort=self.sort,
            cache=self.out,
            workers=self.workers,
            cluster=self.cluster,
            progress=not self.quiet,
        )
        self.show({"file": file})


@dataclass(frozen=True, kw_only=True)
class Landscape(OnTrained):
    """Scan the loss on a plane of random directions through a trained network's weights; write a picture and CSV."""

    span: float = 1.0  # the plane reaches so far, in norms of each filter
    points: int = 21  # along each direction
    seed: int = 0  # decides the directions
    samples: int = 1000  # of the training data, the first ones
    out: Path = Path("runs/landscape")  # folder of landscape.svg and landscape.csv

    def __call__(self) -> None:
        """Writes the landscape of the training loss."""
        from core_utils.files import write_atomically
        from core_utils.training import resolve_device
        from snn_tet.landscape import loss_landscape
        from snn_tet.plots import landscape_figure
        from snn_tet.trained import read_trained

        device = resolve_device(self.device)
        if self.samples < 1 or not self.span > 0:
            raise UserError(f"--samples and --span must be positive, got {self.samples} and {self.span}")
        trained = read_trained(self.run, self.data)
        batches = _first(trained, trained.data.train, self.samples)
        grid = loss_landscape(
            trained.model.to(device),
            batches,
            self.span,
            self.points,
            self.seed,
            encoding=trained.config.encoding,
            time_steps=trained.config.time_steps,
        )
        rows = "\n".join(",".join(f"{value:.9g}" for value in row) for row in grid.tolist())
        write_atomically(self.out / "landscape.csv", rows + "\n")
        write_atomically(
            self.out / "landscape.svg", landscape_figure(grid, self.span, f"Training loss around {self.run}")
        )
        self.show({"lowest": grid.min(), "highest": grid.max(), "picture": self.out / "landscape.svg"})


@dataclass(frozen=True, kw_only=True)
class Energy(OnTrained):
    """Count synaptic operations on test data and print the theoretical energy of one inference."""

    samples: int = 256  # of the test data, the first ones

    def __call__(self) -> None:
        """Prints operations, firing rates and energy; writes nothing."""
        from core_utils.training import resolve_device
        from snn_tet.energy import energy_report
        from snn_tet.trained import read_trained

        device = resolve_device(self.device)
        if self.samples < 1:
            raise UserError(f"--samples must be positive, got {self.samples}")
        trained = read_trained(self.run, self.data)
        report = energy_report(
            trained.model.to(device),
            _first(trained, trained.data.test, self.samples),
            encoding=trained.config.encoding,
            time_steps=trained.config.time_steps,
            device=device,
        )
        self.show(report, lambda: _energy_table(report))


@dataclass(frozen=True, kw_only=True)
class Export(OnTrained):
    """Write a trained network as a NIR graph (needs the extra `nir`)."""

    out: Path  # file to write, for example model.nir

    def __call__(self) -> None:
        """Writes the file."""
        from snn_tet.export import export_nir
        from snn_tet.trained import read_trained

        trained = read_trained(self.run, self.data)
        export_nir(trained.model, self.out, shape=(trained.data.channels, trained.data.size, trained.data.size))
        self.show({"file": self.out})


def _train(run: Run, config: JobConfig, data: Any, folder: Path | None, *, device: str, progress: bool) -> None:
    """Trains, evaluates on the test data once, and leaves weights, split, picture and result in the run's folder."""
    from core_utils.training import save_weights
    from snn_tet.evaluation import accuracy_vs_steps
    from snn_tet.job import evaluation_loader, fit_job
    from snn_tet.plots import accuracy_vs_steps_figure
    from snn_tet.trained import WEIGHTS

    model = fit_job(config, data, folder, run=run, device=device, progress=progress)
    loader = evaluation_loader(config, data.test)
    result = accuracy_vs_steps(model, loader, config.time_steps, encoding=config.encoding)
    title = f"Accuracy over time steps ({config.network}, {config.loss.upper()}, seed {config.seed})"
    run.write(WEIGHTS, save_weights(model))
    run.write("split.json", data.split)
    run.write("figures/accuracy_vs_steps.svg", accuracy_vs_steps_figure({config.loss.upper(): result["prefix"]}, title))
    run.finish({**result, "selected_on": "last epoch"})


def _first(trained: Trained, part: Any, samples: int) -> Any:
    """Batches of the first samples of a part of the data."""
    from torch.utils.data import Subset

    from snn_tet.job import evaluation_loader

    return evaluation_loader(trained.config, Subset(part, range(min(samples, len(part)))))


def _steps_table(result: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table("time steps", "accuracy", "accuracy of this step alone")
    for step, (prefix, single) in enumerate(zip(result["prefix"], result["single"], strict=True), start=1):
        table.add_row(str(step), f"{100 * prefix:.1f} %", f"{100 * single:.1f} %")
    if "early_exit" not in result:
        return table
    stopped = result["early_exit"]
    text = f"stopping at confidence {stopped['threshold']:g}: {100 * stopped['accuracy']:.1f} %"
    return Group(table, f"{text} after {stopped['mean_steps']:.2f} steps on average")


def _energy_table(report: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    costs = Table(
        "layer", "accumulates", "multiply-accumulates", title=f"operations an inference, {report['samples']} samples"
    )
    for layer in report["layers"]:
        costs.add_row(layer["name"], f"{layer['accumulates']:.3g}", f"{layer['multiplies']:.3g}")
    rates = Table("neurons", "firing rate", "")
    for name, rate in report["firing_rates"].items():
        rates.add_row(name, f"{rate:.4f}", report["unhealthy"].get(name, ""))
    energy = report["theoretical_energy_uj"], report["theoretical_energy_of_artificial_network_uj"]
    text = (
        f"theoretical energy: {energy[0]:.3g} uJ an inference; the same layers without spikes, once: {energy[1]:.3g} uJ"
    )
    return Group(costs, rates, text, report["note"])


def main() -> int:
    """Runs the program `snn-tet`."""
    jobs = {
        "train": Train,
        "evaluate": Evaluate,
        "prepare": Prepare,
        "landscape": Landscape,
        "energy": Energy,
        "export": Export,
    }
    return cli.main("snn-tet", {**jobs, **cli.shared(claims="snn_tet.claims:CLAIMS", benchmarks="snn_tet")})
