"""A training as one configuration, and what it left in its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from core_utils.errors import UserError
from core_utils.images import Items
from core_utils.runs import Run, read_finished
from core_utils.settings import from_tree
from core_utils.training import Loader, load_weights, resolve_device, save_weights, seed_everything
from snasnet.cells import Cell
from snasnet.datasets import DataSets, load_data
from snasnet.networks import SNASNet
from snasnet.training import TrainConfig, accuracy, train

WEIGHTS = "model.safetensors"
PRESETS = ("cifar10", "cifar100", "tinyimagenet")


@dataclass(frozen=True)
class NetworkConfig:
    """The network around a cell, as of `SNASNet`; the defaults fit the embedded images.

    Attributes:
        width: C of the first cell.
        time_steps: T.
        p2: side of the pooled squares before the classifier, pixels.
        hidden: neurons of the classifier.
        group: outputs that vote for each class; by default 10 up to 10 classes and 5 above.
        head: "paper" or "gap".
        stem_stride: of the first convolution.
    """

    width: int = 16
    time_steps: int = 5
    p2: int = 2
    hidden: int = 128
    group: int | None = None
    head: str = "paper"
    stem_stride: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `SNASNet`."""
        names = ("width", "p2", "hidden", "group", "head", "stem_stride")
        return {"T": self.time_steps, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class JobConfig(TrainConfig, NetworkConfig):
    """What `snasnet train` is asked to do; the defaults are for the embedded images.

    Attributes:
        cell: as text.
        dataset: by name, as of `load_data`.
        image_size: of images and event frames, pixels.
        sensor: width and height of the event camera, pixels.
        augment: crop and flip training images, where the data set has this.
        workers: loading processes.
    """

    cell: str = "0302 0030 3003 0000"
    dataset: str = "digits"
    image_size: int | None = None
    sensor: tuple[int, int] = (128, 128)
    augment: bool = True
    workers: int = 0
    epochs: int = 20
    learning_rate: float = 1e-2
    optimizer: str = "adamw"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise UserError(f"workers must not be negative, got {self.workers}")
        if not Cell(self.cell).is_valid():
            raise UserError(f"cell {self.cell} has no direct edge from input to output", "set row 0, column 3")

    def load(self, folder: Path | None) -> DataSets:
        """The data, which lie in the folder or are embedded."""
        names = ("seed", "time_steps", "image_size", "sensor")
        return load_data(self.dataset, folder, **{name: getattr(self, name) for name in names})


def preset_file(name: str) -> Path:
    """The TOML file of one of the paper's configurations, for a GPU.

    Raises:
        UserError: another name.
    """
    if name not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return Path(str(resources.files("snasnet").joinpath("presets", f"{name}.toml")))


def make_network(config: JobConfig, data: DataSets) -> SNASNet:
    """The network of a configuration; its initial weights come from the seed."""
    seed_everything(config.seed)
    return SNASNet(Cell(config.cell), data.spec, **config.options)


def train_job(config: JobConfig, folder: Path | None, *, run: Run, device: str, progress: bool) -> dict[str, Any]:
    """Trains, tests once at the end, and leaves weights and result in the run."""
    resolve_device(device)
    data = config.load(folder)
    model = make_network(config, data)
    transform = data.augment if config.augment else None
    train_loader = Loader(data.train, config.batch_size, config.seed, transform=transform, workers=config.workers)
    loaders = (train_loader, evaluation_loader(data.validation, config.workers))
    history = train(model, loaders, config, run=run, device=device, progress=progress)
    run.write(WEIGHTS, save_weights(model))
    return {
        "test_accuracy": accuracy(model, evaluation_loader(data.test, config.workers)),
        "validation_accuracy": history.last["accuracy"],
        "cell": config.cell,
        "selected_on": "last epoch",
    }


def evaluation_loader(part: Items, workers: int = 0, samples: int | None = None) -> Loader:
    """Batches of a part in order, or of its first samples."""
    count = len(part) if samples is None else min(samples, len(part))
    return Loader(Subset(part, range(count)), min(250, count), shuffle=False, workers=workers)  # type: ignore[arg-type]


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
    asked = read_finished(run, "snasnet train", lambda asked: asked.keys() == {"train", "data"})
    config = from_tree(JobConfig, asked["train"], str(run / "config.json"))
    data = config.load(folder or (Path(asked["data"]) if asked["data"] else None))
    model = make_network(config, data)
    load_weights(model, run / WEIGHTS)
    return Trained(config, data, model)


def asked_of(config: JobConfig, folder: Path | None) -> dict[str, Any]:
    """What a run of `snasnet train` is opened with."""
    return {"train": asdict(config), "data": None if folder is None else str(folder)}
