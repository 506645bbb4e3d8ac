"""A whole training as one configuration: network, data, loss and length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.training import Arrays, Loader, Stateful, resolve_device, seed_everything
from snn_tet import networks
from snn_tet.datasets import DataSets, cifar, cifar10_dvs, imagenet
from snn_tet.miniature import SIZE, posed_miniature
from snn_tet.training import Loaders, Stage, TrainConfig, time_inheritance, train

if TYPE_CHECKING:
    from collections.abc import Mapping

Network = Literal["tiny_vgg", "vggsnn", "vggsnn_woap", "resnet19", "sew_resnet34", "spiking_resnet34"]
DataName = Literal["miniature", "cifar10", "cifar100", "cifar10-dvs", "imagenet"]
Preset = Literal["cifar10", "cifar100", "cifar10-dvs", "imagenet"]
STILL: tuple[DataName, ...] = ("cifar10", "cifar100", "imagenet")
"""Data sets of still images, shown at every step."""


@dataclass(frozen=True)
class JobConfig(TrainConfig):
    """What `snn-tet train` is asked to do; the defaults are the miniature's.

    Attributes:
        network: by name.
        dataset: by name; all but the miniature need a folder.
        train_per_class: training recordings of each class of the miniature.
        validation: part of the training data that is held out, to see every epoch's accuracy.
        stages: time inheritance training, each stage as "T:epochs" or "T:epochs:learning rate".
        workers: loading processes.
    """

    network: Network = "tiny_vgg"
    dataset: DataName = "miniature"
    train_per_class: int = 20
    validation: float = 0.0
    stages: tuple[str, ...] = ()
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_per_class < 1:
            raise UserError(f"train_per_class must be at least 1, got {self.train_per_class}")
        if not 0 <= self.validation < 1:
            raise UserError(f"validation must lie in [0, 1), got {self.validation}")
        if self.validation and self.dataset == "miniature":
            raise UserError("validation must be 0: the miniature holds nothing out")
        if self.workers < 0:
            raise UserError(f"workers must not be negative, got {self.workers}")
        parsed = self.parsed_stages()
        if parsed and parsed[-1].time_steps != self.time_steps:
            raise UserError(f"stages must end at time_steps {self.time_steps}, got {self.stages[-1]!r}")

    @property
    def complete(self) -> JobConfig:
        """The configuration with the encoding that its data set has."""
        return replace(self, encoding="direct" if self.dataset in STILL else "frames")

    def parsed_stages(self) -> list[Stage]:
        """The stages as the training takes them; later ones of no rate of their own get a quarter of the first's."""
        return [_stage(text, self.learning_rate / (1 if index == 0 else 4)) for index, text in enumerate(self.stages)]


def preset_file(name: Preset) -> Path:
    """The TOML file of one of the paper's configurations, for a GPU."""
    return Path(str(resources.files("snn_tet").joinpath("presets", f"{name}.toml")))


def load_data(config: JobConfig, folder: Path | None, *, workers: int = 1, progress: bool = False) -> DataSets:
    """The data of a configuration.

    Args:
        config: names the data set.
        folder: where it lies; the miniature is embedded, or made of a full MNIST-like set of IDX files.
        workers: processes that make a frame cache.
        progress: show the making of a frame cache on stderr.

    Raises:
        UserError: a data set without its folder, or a folder that cannot be read.
    """
    if config.dataset == "miniature":
        return _miniature(config, folder)
    if folder is None:
        raise UserError(f"dataset {config.dataset} needs its folder", "add --data DIR")
    shared: dict[str, Any] = {"validation": config.validation, "seed": config.seed}
    if config.dataset == "cifar10-dvs":
        return cifar10_dvs(folder, time_steps=config.time_steps, workers=workers, progress=progress, **shared)
    if config.dataset == "imagenet":
        return imagenet(folder, **shared)
    data = cifar(folder, **shared)
    if data.num_classes != (10 if config.dataset == "cifar10" else 100):
        raise UserError(f"{folder} has {data.num_classes} classes, dataset is {config.dataset}")
    return data


def make_network(config: JobConfig, data: DataSets) -> nn.Module:
    """The network of a configuration, for the channels, classes and size of its data."""
    seed_everything(config.seed)
    make: Callable[..., nn.Module] = getattr(networks, config.network)
    sized = {"size": data.size} if config.network in ("tiny_vgg", "vggsnn", "vggsnn_woap") else {}
    return make(data.channels, data.num_classes, **sized)


def fit_job(
    config: JobConfig,
    data: DataSets,
    folder: Path | None,
    *,
    run: Run,
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> nn.Module:
    """Trains the network of a configuration; goes on where the run stopped.

    Args:
        config: everything but where the data lies.
        data: what `load_data` gave.
        folder: of the data, from which earlier stages of time inheritance training get theirs.
        run: where state and log are kept.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.
    """
    resolve_device(device)
    model = make_network(config, data)
    more: dict[str, Any] = {"run": run, "state": state, "device": device, "progress": progress}

    def loaders(time_steps: int) -> Loaders:
        same = time_steps == config.time_steps or config.encoding == "direct"
        return make_loaders(
            config, data if same else load_data(replace(config, time_steps=time_steps, stages=()), folder)
        )

    stages = config.parsed_stages()
    if stages:
        time_inheritance(model, stages, loaders, config, **more)
    else:
        train(model, loaders(config.time_steps), config, **more)
    return model


def make_loaders(config: JobConfig, data: DataSets) -> Loaders:
    """Batches for training, and of the part that was held out."""
    train_loader = Loader(
        data.train, config.batch_size, seed=config.seed, transform=data.augment, workers=config.workers
    )
    validation = None if data.validation is None else evaluation_loader(config, data.validation)
    return Loaders(train_loader, validation)


def evaluation_loader(config: JobConfig, dataset: Any) -> Loader:
    """Batches in order."""
    return Loader(
        dataset, 250 if config.dataset == "miniature" else config.batch_size, shuffle=False, workers=config.workers
    )


def _miniature(config: JobConfig, folder: Path | None) -> DataSets:
    split = posed_miniature(
        config.seed, train_per_class=config.train_per_class, time_steps=config.time_steps, data=folder
    )
    train, test = Arrays(split.x_train, split.y_train), Arrays(split.x_test, split.y_test)
    return DataSets(train, None, test, num_classes=10, channels=2, size=SIZE, augment=_unchanged, split={})


def _unchanged(item: Any, _: object) -> Any:
    return item


def _stage(text: str, learning_rate: float) -> Stage:
    parts = text.split(":")
    try:
        time_steps, epochs = int(parts[0]), int(parts[1])
        rate = float(parts[2]) if len(parts) > 2 else learning_rate
        if len(parts) > 3:
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(f"stages must be like 2:25 or 2:25:1e-3 (steps:epochs:rate), got {text!r}") from None
    return Stage(time_steps, epochs, rate)
