"""The job: train spiking networks with and without augmentation, see the gap shrink, pre-train without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_utils import cli
from core_utils.errors import UserError
from core_utils.runs import Run
from snn_nda.cli_recordings import Info, Prepare, Preview, Simulate

if TYPE_CHECKING:
    from snn_nda.job import JobConfig, PretrainJob


@dataclass(frozen=True, kw_only=True)
class Train(cli.RunCommand, cli.Configured):
    """Train a network; write weights, log, gap report and a picture into the run's folder."""

    preset: Literal["cifar10-dvs", "n-caltech101", "n-cars"] | None = None  # a configuration of the paper
    data: Path | None = None  # folder of the data set; the miniature is embedded
    dataset: str | None = None  # miniature (default), cifar10-dvs, n-caltech101, n-cars, n-mnist, dvs-gesture, other
    network: str | None = None  # tiny_vgg (default), vgg11, vgg13, vgg16, resnet19
    policy: str | None = None  # none, nda (default), code, M1N2 and the like, FILE.toml, or photometric
    time_steps: int | None = None  # 5 unless configured
    size: int | None = None  # height and width of the frames, pixels; 24 unless configured
    epochs: int | None = None  # passes over the training data; 40 unless configured
    seed: int | None = None  # decides data, initial weights, order and augmentation; 0 unless configured
    seeds: int | None = None  # train the first so many seeds, each in a folder of its own under --out
    start: Path | None = None  # folder of a `pretrain` whose encoder the network starts with
    workers: int = 1  # processes that make a frame cache
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/train")  # the run's folder

    def __call__(self) -> None:
        """Trains, or goes on, or shows what a finished run holds."""
        from snn_nda.job import JobConfig, preset_file

        if self.preset is not None and self.config is not None:
            raise UserError("--preset and --config are two configurations", "name one, and change it by --set")
        if self.seeds is not None and (self.seed is not None or self.seeds < 1):
            raise UserError(f"--seeds {self.seeds} must be at least 1 and stand without --seed")
        file = preset_file(self.preset) if self.preset is not None else self.config
        names = ("dataset", "network", "policy", "time_steps", "size", "epochs", "seed")
        config = self.settings(JobConfig, file=file, **{name: getattr(self, name) for name in names})
        if self.seeds is None:
            result = self._run(config, self.out)
            self.show(result, lambda: _training_table(result))
            return
        results = {
            f"seed-{seed}": self._run(dataclasses.replace(config, seed=seed), self.out / f"seed-{seed}")
            for seed in range(self.seeds)
        }
        self.show(results, lambda: _seeds_table(results))

    def _run(self, config: JobConfig, out: Path) -> Mapping[str, Any]:
        asked = {"config": config, "data": self.data, "start": self.start}
        with Run.open(out, asked, resume=self.resume, overwrite=self.overwrite) as run:
            if not run.finished:
                _train(run, config, self)
            return run.result()


@dataclass(frozen=True, kw_only=True)
class Gap(cli.Command):
    """Compare finished trainings by policy: accuracy, gap and steadiness with intervals over seeds, and a picture."""

    runs: tuple[Path, ...]  # folders of `train`, or folders that hold one a seed
    baseline: str = "none"  # policy that the others are compared with
    out: Path = Path("runs/gap")  # folder of gap.svg and gap.json

    def __call__(self) -> None:
        """Writes the picture and the figures, and prints a table."""
        from core_utils.files import write_atomically
        from core_utils.jsonable import dumps
        from snn_nda.gap import compare_arms, gap_summary
        from snn_nda.plots import gap_figure
        from snn_nda.trained import by_arm

        arms = by_arm(self.runs)
        rows = compare_arms(
            {arm: {seed: gap_summary(report) for seed, report in seeds.items()} for arm, seeds in arms.items()},
            self.baseline,
        )
        shown = {arm: list(seeds.values()) for arm, seeds in arms.items()}
        write_atomically(self.out / "gap.svg", gap_figure(shown, "Accuracy on seen and unseen data"))
        write_atomically(self.out / "gap.json", dumps(rows, indent=2) + "\n")
        self.show(rows, lambda: _gap_table(rows, self.baseline))


@dataclass(frozen=True, kw_only=True)
class Pretrain(cli.RunCommand, cli.Configured):
    """Pre-train an encoder without labels (SimSiam); `probe` measures it, `train --start` goes on with it."""

    data: Path | None = None  # folder of the data set; the miniature is embedded
    dataset: str | None = None  # as of `train`
    network: str | None = None  # whose encoder; as of `train`
    policy: str | None = None  # makes the two views; nda unless configured
    time_steps: int | None = None  # 5 unless configured
    size: int | None = None  # height and width of the frames, pixels; 24 unless configured
    epochs: int | None = None  # passes over the recordings; 100 unless configured
    seed: int | None = None  # decides data, initial weights, order and views; 0 unless configured
    workers: int = 1  # processes that make a frame cache
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/pretrain")  # the run's folder

    def __call__(self) -> None:
        """Pre-trains, or goes on, or shows what a finished run holds."""
        from snn_nda.job import PretrainJob

        names = ("dataset", "network", "policy", "time_steps", "size", "epochs", "seed")
        config = self.settings(PretrainJob, **{name: getattr(self, name) for name in names})
        with self.open_run({"config": config, "data": self.data}) as run:
            if not run.finished:
                _pretrain(run, config, self)
            self.show(run.result())


@dataclass(frozen=True, kw_only=True)
class Probe(cli.Command):
    """Fit a linear classifier on the frozen features of a pre-trained encoder and, for comparison, of a new one."""

    run: Path  # folder of a finished `pretrain`
    data: Path | None = None  # folder of the data set; the miniature is embedded
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto

    def __call__(self) -> None:
        """Prints the accuracies; writes nothing."""
        from core_utils.training import resolve_device
        from snn_nda.job import evaluation_loader, load_data, make_network
        from snn_nda.probe import calibrate, linear_probe
        from snn_nda.trained import encoder_starter, read_pretraining

        device = resolve_device(self.device)
        config = read_pretraining(self.run)
        start = encoder_starter(self.run, config)
        data = load_data(config, self.data, progress=not self.quiet)
        model = make_network(config, data).to(device)
        loaders = [evaluation_loader(config, part) for part in (data.train, data.test)]
        calibrate(model.blocks, loaders[0])  # type: ignore[arg-type]
        result = {"new": linear_probe(model.blocks, *loaders)}  # type: ignore[arg-type]
        start(model)
        result["pretrained"] = linear_probe(model.blocks, *loaders)  # type: ignore[arg-type]
        self.show(result, lambda: _probe_table(result))


def _pretrain(run: Run, config: PretrainJob, command: Pretrain) -> None:
    """Pre-trains, and leaves the encoder, a picture of the monitor and the result in the folder."""
    from core_utils.training import save_weights
    from snn_nda.job import load_data, pretrain_job
    from snn_nda.plots import collapse_figure
    from snn_nda.trained import ENCODER

    data = load_data(config, command.data, workers=command.workers, progress=not command.quiet)
    encoder, history = pretrain_job(config, data, run=run, device=command.device, progress=not command.quiet)
    run.write(ENCODER, save_weights(encoder))
    run.write("figures/spread.svg", collapse_figure(history.records, config.dim, "Do the projections collapse?"))
    run.finish({name: history.last[name] for name in ("epoch", "loss", "spread", "healthy_spread")})


def _train(run: Run, config: JobConfig, command: Train) -> None:
    """Trains, evaluates on the test data once, and leaves weights, split, report, picture and result in the folder."""
    from core_utils.training import save_weights
    from snn_nda.gap import gap_report, gap_summary
    from snn_nda.job import evaluation_loader, fit_job, load_data, unseen
    from snn_nda.plots import gap_figure
    from snn_nda.trained import WEIGHTS, encoder_starter
    from snn_nda.training import evaluate

    data = load_data(config, command.data, workers=command.workers, progress=not command.quiet)
    start = None if command.start is None else encoder_starter(command.start, config)
    model, history = fit_job(config, data, run=run, device=command.device, progress=not command.quiet, start=start)
    report = gap_report(history, unseen=unseen(data))
    test = evaluate(model, evaluation_loader(config, data.test))
    title = f"Seen and unseen data ({config.network}, {config.policy}, seed {config.seed})"
    run.write(WEIGHTS, save_weights(model))
    run.write("split.json", data.split)
    run.write("gap.json", report)
    run.write("figures/gap.svg", gap_figure({config.policy: [report]}, title))
    run.finish({"test": test, "measured_on": unseen(data), **gap_summary(report), "selected_on": "last epoch"})


def _training_table(result: Mapping[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    part = result["measured_on"]
    table = Table("", "training data", f"{part} data", "gap")
    table.add_row("accuracy", *(_percent(result[name]) for name in ("train_accuracy", "test_accuracy", "gap")))
    table.add_row("loss (nats)", *(f"{result[name]:.3f}" for name in ("train_loss", "test_loss", "loss_gap")))
    text = f"test accuracy after the last epoch {_percent(result['test']['accuracy'])}"
    bonus = f"; taking the best of its epochs would add {100 * result['selection_bonus']:.1f} points on {part} data"
    return Group(table, text + bonus)


def _seeds_table(results: Mapping[str, Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("run", "training accuracy", "test accuracy", "gap")
    for name, result in results.items():
        figures = result["train_accuracy"], result["test"]["accuracy"], result["gap"]
        table.add_row(name, *map(_percent, figures))
    return table


def _gap_table(rows: list[dict[str, Any]], baseline: str) -> Any:
    from rich.table import Table

    over = f"over {baseline} [95 %]"
    table = Table("policy", "seeds", "seen", "unseen", over, "gap", f"less than {baseline} [95 %]", "instability", over)
    for row in rows:
        gains = [_interval(row.get(f"{name}_gain")) for name in ("test_accuracy", "gap", "instability")]
        means = [_percent(row[name]) for name in ("train_accuracy", "test_accuracy", "gap", "instability")]
        table.add_row(
            row["arm"], str(len(row["seeds"])), means[0], means[1], gains[0], means[2], gains[1], means[3], gains[2]
        )
    return table


def _probe_table(result: Mapping[str, Mapping[str, float]]) -> Any:
    from rich.table import Table

    table = Table("encoder", "training accuracy", "test accuracy")
    for name, each in result.items():
        table.add_row(name, _percent(each["train_accuracy"]), _percent(each["test_accuracy"]))
    return table


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.1f} %"


def _interval(verdict: Any) -> str:
    return "" if verdict is None else f"{100 * verdict.mean:+.1f} [{100 * verdict.low:+.1f}, {100 * verdict.high:+.1f}]"


def main() -> int:
    """Runs the program `snn-nda`."""
    jobs = {
        "prepare": Prepare,
        "preview": Preview,
        "train": Train,
        "gap": Gap,
        "pretrain": Pretrain,
        "probe": Probe,
        "simulate": Simulate,
        "info": Info,
    }
    return cli.main("snn-nda", {**jobs, **cli.shared(claims="snn_nda.claims:CLAIMS", benchmarks="snn_nda")})
