"""Commands on one network: train a cell, test it, see what it costs, hand it on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError
from core_utils.files import write_atomically
from snasnet.commands.cells import valid_cell
from snasnet.commands.folders import best_of


@dataclass(frozen=True, kw_only=True)
class Train(cli.Configured, cli.RunCommand):
    """Train a cell from scratch, and test it once."""

    cell: tyro.conf.Positional[str | None] = None  # such as "0302 0030 3003 0000"
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None  # a search's folder instead: its best cell
    preset: Literal["cifar10", "cifar100", "tinyimagenet"] | None = None  # a configuration of the paper, for a GPU
    dataset: str | None = None  # digits, fashion, or in --data: cifar10, cifar100, tinyimagenet, images, events
    data: Path | None = None  # folder of the data
    epochs: int | None = None  # passes over the training data
    time_steps: int | None = None  # for which an image is shown
    seed: int | None = None  # decides what is held out, initial weights and order
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/train")  # the training's folder

    def __call__(self) -> None:
        """Leaves weights, log and result in the run's folder."""
        from snasnet.job import JobConfig, asked_of, preset_file, train_job

        if self.cell is not None and self.from_ is not None:
            raise UserError("a cell and --from are two architectures", "give one of them")
        if self.preset is not None and self.config is not None:
            raise UserError("--preset and --config are two configurations", "name one, and change it by --set")
        cell = best_of(self.from_) if self.from_ is not None else self.cell
        typed = {name: getattr(self, name) for name in ("dataset", "epochs", "time_steps", "seed")}
        if cell is not None:
            typed["cell"] = str(valid_cell(cell).pruned())
        file = None if self.preset is None else preset_file(self.preset)
        config = self.settings(JobConfig, file=file, **typed)
        with self.open_run(asked_of(config, self.data)) as run:
            if not run.finished:
                run.finish(train_job(config, self.data, run=run, device=self.device, progress=not self.quiet))
            self.show(run.result())


@dataclass(frozen=True, kw_only=True)
class OnTrained(cli.Command):
    """What commands on a finished training have."""

    run: Path  # folder of `snasnet train`
    data: Path | None = None  # where the data lie now
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto

    def trained(self) -> Any:
        """The training, with its network on the device."""
        from core_utils.training import resolve_device
        from snasnet.job import read_trained

        device = resolve_device(self.device)
        trained = read_trained(self.run, self.data)
        trained.model.to(device)
        return trained


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnTrained):
    """Accuracy of a trained cell on the test data."""

    def __call__(self) -> None:
        """Prints it."""
        from snasnet import accuracy
        from snasnet.job import evaluation_loader

        trained = self.trained()
        measured = accuracy(trained.model, evaluation_loader(trained.data.test, trained.config.workers))
        self.show({"cell": trained.config.cell, "test_accuracy": measured})


@dataclass(frozen=True, kw_only=True)
class Profile(OnTrained):
    """Spikes, synaptic operations and theoretical energy of one inference of a trained cell."""

    samples: int = 256  # of the test data, the first ones

    def __call__(self) -> None:
        """Prints them."""
        from snasnet import profile
        from snasnet.job import evaluation_loader

        if self.samples < 1:
            raise UserError(f"--samples must be at least 1, got {self.samples}")
        trained = self.trained()
        report = profile(trained.model, evaluation_loader(trained.data.test, samples=self.samples))
        self.show(report, lambda: _energy_table(report))


@dataclass(frozen=True, kw_only=True)
class Export(OnTrained):
    """Write a trained cell for other programs."""

    out: Path  # file to write
    format: Literal["onnx", "nir", "json"] = "onnx"  # one time step (extra onnx), a graph (extra nir), or the cell

    def __call__(self) -> None:
        """Writes the file."""
        trained = self.trained()
        if self.format == "json":
            write_atomically(self.out, json.dumps(trained.model.cell.to_json(), indent=2) + "\n")
        elif self.format == "onnx":
            from snasnet.export import export_onnx

            export_onnx(trained.model, self.out)
        else:
            from snasnet.export import export_nir

            export_nir(trained.model, self.out)
        self.show({"file": self.out})


def _energy_table(report: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    costs = Table(
        "layer", "accumulates", "multiply-accumulates", title=f"operations an inference, {report['samples']} samples"
    )
    for layer in report["layers"]:
        costs.add_row(layer["name"], f"{layer['accumulates']:.3g}", f"{layer['multiplies']:.3g}")
    spikes = Table("neurons", "spikes an image", "spikes a neuron and step", "")
    for name, count in report["spikes"].items():
        spikes.add_row(name, f"{count:.1f}", f"{report['rates'][name]:.4f}", report["unhealthy"].get(name, ""))
    energy = report["theoretical_energy_uj"], report["theoretical_energy_of_artificial_network_uj"]
    return Group(
        costs,
        spikes,
        f"{report['parameters']} parameters; {report['spikes_per_image']:.1f} spikes an image",
        f"theoretical energy: {energy[0]:.3g} uJ an inference; the same layers without spikes, once: {energy[1]:.3g} uJ",
        report["note"],
    )
