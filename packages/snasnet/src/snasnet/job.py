"""A training as one configuration, and what it left in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.settings import from_tree
from core_utils.training import Arrays, Loader, seed_everything
from snasnet.cells import Cell
from snasnet.datasets import DataSets, load_data
from snasnet.networks import SNASNet
from snasnet.training import TrainConfig, accuracy, train

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class NetworkConfig:
    """The network around a cell, as of `SNASNet`; the defaults fit the embedded images.

    Attributes:
        width: C of the first cell.
        time_steps: T.
        p2: side of the pooled squares before the classifier, pixels.
        hidden: neurons of the classifier.
        head: "paper" or "gap".
    """

    width: int = 16
    time_steps: int = 5
    p2: int = 2
    hidden: int = 128
    head: str = "paper"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `SNASNet`."""
        return {"width": self.width, "T": self.time_steps, "p2": self.p2, "hidden": self.hidden, "head": self.head}


@dataclass(frozen=True)
class JobConfig(TrainConfig, NetworkConfig):
    """What `snasnet train` is asked to do.

    Attributes:
        cell: as text.
        dataset: by name.
    """

    cell: str = "0302 0030 3003 0000"
    dataset: str = "digits"
    epochs: int = 20
    learning_rate: float = 1e-2
    optimizer: str = "adamw"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Cell(self.cell).is_valid():
            raise UserError(f"cell {self.cell} has no direct edge from input to output", "set row 0, column 3")


def make_network(config: JobConfig, data: DataSets) -> SNASNet:
    """The network of a configuration; its initial weights come from the seed."""
    seed_everything(config.seed)
    return SNASNet(Cell(config.cell), data.spec, **config.options)


def train_job(config: JobConfig, folder: Path | None, *, run: Run, device: str, progress: bool) -> dict[str, Any]:
    """Trains, tests once at the end, and leaves weights and result in the run."""
    data = load_data(config.dataset, folder, seed=config.seed)
    model = make_network(config, data)
    loaders = (Loader(Arrays(*data.train), config.batch_size, seed=config.seed), evaluation_loader(data.validation))
    history = train(model, loaders, config, run=run, device=device, progress=progress)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    run.write(WEIGHTS, safetensors.torch.save(weights))
    return {
        "test_accuracy": accuracy(model, evaluation_loader(data.test)),
        "validation_accuracy": history.last["accuracy"],
        "cell": config.cell,
        "selected_on": "last epoch",
    }


def evaluation_loader(part: tuple[Any, Any]) -> Loader:
    """Batches in order."""
    return Loader(Arrays(*part), min(250, len(part[1])), shuffle=False)


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run of `snasnet train` left: what was asked, its data, and the network with its weights."""

    config: JobConfig
    data: DataSets
    model: SNASNet


def read_trained(run: Path, folder: Path | None = None) -> Trained:
    """The network of a finished training.

    Args:
        run: its folder.
        folder: where the data lie now; by default where they lay then.

    Raises:
        UserError: the folder is no finished training, or its weights are damaged or of another network.
    """
    try:
        asked = json.loads((run / "config.json").read_bytes())
        known = isinstance(asked, dict) and asked.keys() == {"train", "data"}
    except (OSError, ValueError):
        known = False
    if not known:
        raise UserError(f"--run {run} is no folder of `snasnet train`")
    if not (run / "result.json").is_file():
        raise UserError(f"--run {run} is not finished", f"snasnet train --out {run} --resume")
    config = from_tree(JobConfig, asked["train"], str(run / "config.json"))
    data = load_data(config.dataset, folder or (Path(asked["data"]) if asked["data"] else None), seed=config.seed)
    model = make_network(config, data)
    _load(model, run / WEIGHTS)
    return Trained(config, data, model)


def asked_of(config: JobConfig, folder: Path | None) -> dict[str, Any]:
    """What a run of `snasnet train` is opened with."""
    return {"train": asdict(config), "data": None if folder is None else str(folder)}


def _load(model: nn.Module, file: Path) -> None:
    try:
        weights: dict[str, Any] = safetensors.torch.load(file.read_bytes())
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from None
