"""Train a network to a sparsity, test it, and look at its kernels and routers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core_utils import cli
from core_utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Train(cli.RunCommand, cli.Configured):
    """Train a network to exactly the sparsity asked for; leave weights, log, report and pictures in the run's folder."""

    preset: Literal["cifar10", "imagenet-mobilenet-v1", "imagenet-resnet18"] | None = None  # a configuration for a GPU
    data: Path | None = None  # folder of the data set; the miniature is embedded
    dataset: str | None = None  # miniature (default), cifar10, cifar100, imagenet
    model: str | None = None  # sd_tiny (default), sd_mobilenet_v1, sd_mobilenet_v2, sd_resnet10, 18, 34, 50
    variant: str | None = None  # static, masked, dy, condconv, odconv, sd (default)
    target_sparsity: float | None = None  # fraction of zeros, 0.75 unless configured
    mask_sharing: Literal["independent", "shared"] | None = None  # masks of each kernel, or one that runs fast
    epochs: int | None = None  # passes over the training data; 4 unless configured
    seed: int | None = None  # decides data, initial weights and order; 0 unless configured
    strict: bool = False  # refuse a sparsity that a layer cannot reach, instead of warning
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/train")  # the run's folder

    def __call__(self) -> None:
        """Trains, or goes on, or shows what a finished run holds."""
        from dynsparse.job import JobConfig, preset_file

        if self.preset is not None and self.config is not None:
            raise UserError("--preset and --config are two configurations", "name one, and change it by --set")
        names = ("dataset", "model", "variant", "target_sparsity", "mask_sharing", "epochs", "seed")
        file = None if self.preset is None else preset_file(self.preset)
        config = self.settings(JobConfig, file=file, **{name: getattr(self, name) for name in names})
        with self.open_run({"config": config, "data": self.data}) as run:
            if not run.finished:
                _train(run, config, self)
            self.show(run.result())


@dataclass(frozen=True, kw_only=True)
class OnTrained(cli.Command):
    """Options of what reads a finished training."""

    run: Path  # folder of a finished `train`
    data: Path | None = None  # where the data set lies now, if it was moved

    def trained(self) -> Any:
        """The training."""
        from dynsparse.job import read_trained

        return read_trained(self.run, self.data)


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnTrained):
    """Accuracy of a trained network on the test data, dense or with its zeros left out."""

    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    compiled: bool = False  # by the sparse runtime, on a CPU

    def __call__(self) -> None:
        """Prints accuracy and loss; writes nothing."""
        from core_utils.training import resolve_device
        from dynsparse import compile_sparse, evaluate
        from dynsparse.job import evaluation_loader

        trained = self.trained()
        model = compile_sparse(trained.model) if self.compiled else trained.model.to(resolve_device(self.device))
        self.show(evaluate(model, evaluation_loader(trained.config, trained.data.test)))


@dataclass(frozen=True, kw_only=True)
class Diagnose(OnTrained):
    """Look at every dynamic layer: does its router choose, do its kernels differ, what do its masks keep?"""

    samples: int = 1000  # of the test data, the first ones

    def __call__(self) -> None:
        """Prints a row for each layer; writes nothing."""
        from dataclasses import asdict

        from torch.utils.data import Subset

        from dynsparse import diagnose
        from dynsparse.job import evaluation_loader

        if self.samples < 1:
            raise UserError(f"--samples must be at least 1, got {self.samples}")
        trained = self.trained()
        part = Subset(trained.data.test, range(min(self.samples, len(trained.data.test))))
        rows = [asdict(row) for row in diagnose(trained.model, evaluation_loader(trained.config, part))]
        self.show(rows, lambda: _diagnosis_table(rows))


def _train(run: Any, config: Any, command: Train) -> None:
    """Trains, tests once, and leaves weights, split, sparsity, costs, picture and result in the folder."""
    from core_utils.training import save_weights
    from dynsparse import count, evaluate
    from dynsparse.job import WEIGHTS, evaluation_loader, fit_job, load_data
    from dynsparse.plots import training_figure

    data = load_data(config, command.data)
    options: dict[str, Any] = {"device": command.device, "progress": not command.quiet, "strict": command.strict}
    model, training = fit_job(config, data, run=run, **options)
    test = evaluate(model, evaluation_loader(config, data.test))
    report, target = training.sparsity, None if training.sparsity is None else config.target_sparsity
    costs = count(model.cpu(), (data.channels, data.size, data.size))
    title = f"{config.model}, {config.variant}, seed {config.seed}"
    run.write(WEIGHTS, save_weights(model))
    run.write("split.json", data.split)
    run.write("costs.md", costs.to_markdown() + "\n")
    if report is not None:
        run.write("sparsity.md", report.to_markdown() + "\n")
    run.write("figures/training.svg", training_figure(training.history.records, target, title))
    run.finish(
        {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "sparsity": None if report is None else report.sparsity,
            "nonzero": costs.nonzero,
            "parameters": costs.total,
            "multiply_adds": costs.madds_union,
            "selected_on": "last epoch",
        }
    )


def _diagnosis_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("layer", "entropy (nats)", "largest share", "kernels' cosine", "density", "union", "router")
    for row in rows:
        figures = (f"{row[name]:.3f}" for name in ("entropy", "max_prob", "kernel_cosine", "density", "union"))
        table.add_row(row["layer"], *figures, "does not choose" if row["uniform"] else "")
    return table
