"""The job: train a spiking network on events, and see its accuracy over the time steps it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_utils import cli
from core_utils.errors import UserError

if TYPE_CHECKING:
    from core_utils.data import Split
    from core_utils.runs import Run
    from snn_tet.training import TrainConfig

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Train(cli.RunCommand, cli.Configured):
    """Train on images before the simulated event camera; write weights, log and a picture into the run's folder."""

    data: Path | None = None  # folder of a full MNIST-like set in IDX files; by default the embedded Fashion-MNIST
    loss: Literal["tet", "sdt"] | None = None  # loss on every step (tet, the default), or on the mean over time
    time_steps: int | None = None  # frames of a recording; 5 unless configured
    epochs: int | None = None  # passes over the training data; 40 unless configured
    seed: int | None = None  # decides data, initial weights and order; 0 unless configured
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/train")  # the run's folder

    def __call__(self) -> None:
        """Trains, or goes on, or shows what a finished run holds."""
        from snn_tet.training import TrainConfig

        config = self.settings(
            TrainConfig, loss=self.loss, time_steps=self.time_steps, epochs=self.epochs, seed=self.seed
        )
        with self.open_run({"config": config, "data": self.data}) as run:
            if not run.finished:
                run_training(run, config, self.data, device=self.device, progress=not self.quiet)
            self.show(run.result(), lambda: steps_table(run.result()))


@dataclass(frozen=True, kw_only=True)
class Evaluate(cli.Command):
    """Run a trained network for 1, 2, ... time steps on the test recordings and print its accuracy."""

    run: Path  # folder of a finished `train`
    time_steps: int | None = None  # run at most so many steps; by default all frames
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto

    def __call__(self) -> None:
        """Prints the accuracies; writes nothing."""
        from core_utils.training import resolve_device
        from snn_tet.evaluation import accuracy_vs_steps

        device = resolve_device(self.device)
        config, data = read_run(self.run)
        split = recordings(config, data)
        model = load_weights(self.run / WEIGHTS).to(device)
        result = accuracy_vs_steps(model, test_loader(split), self.time_steps)
        self.show(result, lambda: steps_table(result))


def run_training(run: Run, config: TrainConfig, data: Path | None, *, device: str, progress: bool) -> None:
    """Trains, evaluates, and leaves weights, picture and result in the run's folder."""
    import safetensors.torch

    from core_utils.training import Arrays, Loader, resolve_device, seed_everything
    from snn_tet import Loaders, accuracy_vs_steps, tiny_vgg, train
    from snn_tet.plots import accuracy_vs_steps_figure

    resolve_device(device)
    split = recordings(config, data)
    seed_everything(config.seed)
    model = tiny_vgg()
    loaders = Loaders(Loader(Arrays(split.x_train, split.y_train), config.batch_size, seed=config.seed))
    train(model, loaders, config, run=run, device=device, progress=progress)
    result = accuracy_vs_steps(model, test_loader(split))
    title = f"Accuracy over time steps ({config.loss.upper()}, seed {config.seed})"
    picture = accuracy_vs_steps_figure({config.loss.upper(): result["prefix"]}, title)
    run.write(WEIGHTS, safetensors.torch.save({name: each.cpu() for name, each in model.state_dict().items()}))
    run.write("figures/accuracy_vs_steps.svg", picture)
    run.finish({**result, "selected_on": "last epoch"})


def recordings(config: TrainConfig, data: Path | None) -> Split:
    """The run's training and test recordings."""
    from snn_tet.miniature import posed_miniature

    return posed_miniature(config.seed, train_per_class=config.train_per_class, time_steps=config.time_steps, data=data)


def test_loader(split: Split) -> Any:
    """The test recordings in order."""
    from core_utils.training import Arrays, Loader

    return Loader(Arrays(split.x_test, split.y_test), 250, shuffle=False)


def read_run(folder: Path) -> tuple[TrainConfig, Path | None]:
    """What a finished `train` was asked to do.

    Raises:
        UserError: the folder is no such run, or it is not finished.
    """
    import json

    from core_utils.settings import from_tree
    from snn_tet.training import TrainConfig

    try:
        asked = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        raise UserError(f"--run {folder} is no folder of `snn-tet train`") from None
    if not (folder / "result.json").is_file():
        raise UserError(f"--run {folder} is not finished", f"snn-tet train --out {folder} --resume")
    if not isinstance(asked, dict) or asked.keys() != {"config", "data"}:
        raise UserError(f"--run {folder} is no folder of `snn-tet train`")
    config = from_tree(TrainConfig, asked["config"], f"{folder / 'config.json'}")
    return config, Path(asked["data"]) if asked["data"] else None


def load_weights(file: Path) -> Any:
    """The network of the miniature with the weights of a file.

    Raises:
        UserError: the file is missing, damaged, or of another network; names the first keys that do not fit.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    from snn_tet import tiny_vgg

    model = tiny_vgg()
    try:
        weights = safetensors.torch.load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    expected = model.state_dict()
    wrong = [name for name in sorted({*weights, *expected}) if _shape(weights, name) != _shape(expected, name)]
    if wrong:
        raise UserError(f"{file} belongs to another network: {', '.join(wrong[:5])}")
    model.load_state_dict(weights)
    return model


def _shape(weights: dict[str, Any], name: str) -> Any:
    return weights[name].shape if name in weights else None


def steps_table(result: dict[str, Any]) -> Any:
    """Accuracy over time steps for people."""
    from rich.table import Table

    table = Table("time steps", "accuracy", "accuracy of this step alone")
    for step, (prefix, single) in enumerate(zip(result["prefix"], result["single"], strict=True), start=1):
        table.add_row(str(step), f"{100 * prefix:.1f} %", f"{100 * single:.1f} %")
    return table


def main() -> int:
    """Runs the program `snn-tet`."""
    shared = cli.shared(claims="snn_tet.claims:CLAIMS", benchmarks="snn_tet")
    return cli.main("snn-tet", {"train": Train, "evaluate": Evaluate, **shared})
