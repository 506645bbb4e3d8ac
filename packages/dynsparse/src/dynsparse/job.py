"""A training as one configuration: network, data, sparsity and length; and what it left in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from torch import nn

from core_utils.errors import UserError
from core_utils.images import DataSets, cifar, imagenet
from core_utils.runs import Run, read_finished
from core_utils.settings import from_tree
from core_utils.training import Arrays, Loader, Stateful, read_weights, resolve_device, seed_everything
from dynsparse.loading import load_weights
from dynsparse.miniature import CLASSES, SIZE, miniature_images
from dynsparse.models import MODELS, build
from dynsparse.training import TrainConfig, Training, train

WEIGHTS = "model.safetensors"

Model = Literal[
    "sd_tiny", "sd_mobilenet_v1", "sd_mobilenet_v2", "sd_resnet10", "sd_resnet18", "sd_resnet34", "sd_resnet50"
]
Variant = Literal["static", "masked", "dy", "condconv", "odconv", "sd"]
DataName = Literal["miniature", "cifar10", "cifar100", "imagenet"]
Preset = Literal["cifar10", "imagenet-mobilenet-v1", "imagenet-resnet18"]


@dataclass(frozen=True)
class JobConfig(TrainConfig):
    """What `dynsparse train` is asked to do; the defaults are the miniature's.

    Attributes:
        model: a network of `dynsparse.models`.
        variant: what stands where it has a convolution.
        dataset: by name; all but the miniature need a folder.
        width: factor on the channels of a MobileNet, or channels of sd_tiny; None is the network's own.
        num_kernels: K.
        mask_sharing: masks "independent" in each kernel, or one "shared", which is what runs fast.
        reduction: r of the routers.
        dropout: probability before the classifier.
        validation: part of the training data that is held out, to see every epoch's accuracy.
        image_size: height and width of ImageNet's crops, pixels.
        workers: loading processes.
    """

    model: Model = "sd_tiny"
    variant: Variant = "sd"
    dataset: DataName = "miniature"
    width: float | None = None
    num_kernels: int = 4
    mask_sharing: Literal["independent", "shared"] = "independent"
    reduction: int = 16
    dropout: float = 0.0
    validation: float = 0.0
    image_size: int = 224
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.validation < 1:
            raise UserError(f"validation must lie in [0, 1), got {self.validation}")
        if self.validation and self.dataset == "miniature":
            raise UserError("validation must be 0: the miniature holds nothing out")
        if self.workers < 0:
            raise UserError(f"workers must not be negative, got {self.workers}")
        if self.image_size < 32:
            raise UserError(f"image_size must be at least 32, got {self.image_size}")
        if self.width is not None and (not self.width > 0 or self.model.startswith("sd_resnet")):
            raise UserError(f"width must be positive, and {self.model} must have one, got {self.width}")

    def network(self, num_classes: int, channels: int, size: int) -> dict[str, Any]:
        """The configuration that `models.build` takes."""
        config: dict[str, Any] = {"model": self.model, "variant": self.variant, "num_classes": num_classes}
        config |= {"in_channels": channels}
        if self.model != "sd_tiny":
            config |= {"dropout": self.dropout, "small_images": size <= 64}
        if self.width is not None:
            config["width"] = int(self.width) if self.model == "sd_tiny" else self.width
        if self.variant != "static":
            config |= {
                "num_kernels": self.num_kernels,
                "mask_sharing": self.mask_sharing,
                "reduction": self.reduction,
            }
        return config


def preset_file(name: Preset) -> Path:
    """The TOML file of a configuration for a GPU."""
    return Path(str(resources.files("dynsparse").joinpath("presets", f"{name}.toml")))


def load_data(config: JobConfig, folder: Path | None) -> DataSets:
    """The data of a configuration.

    Args:
        config: names the data set.
        folder: where it lies; the miniature is embedded, or made of a full MNIST-like set of IDX files.

    Raises:
        UserError: a data set without its folder, or a folder that cannot be read.
    """
    if config.dataset == "miniature":
        split = miniature_images(folder)
        train_part, test = Arrays(split.x_train, split.y_train), Arrays(split.x_test, split.y_test)
        return DataSets(train_part, None, test, CLASSES, channels=1, size=SIZE, augment=_unchanged, split={})
    if folder is None:
        raise UserError(f"dataset {config.dataset} needs its folder", "add --data DIR")
    shared: dict[str, Any] = {"validation": config.validation, "seed": config.seed}
    if config.dataset == "imagenet":
        return imagenet(folder, size=config.image_size, **shared)
    data = cifar(folder, **shared)
    if data.num_classes != (10 if config.dataset == "cifar10" else 100):
        raise UserError(f"{folder} has {data.num_classes} classes, dataset is {config.dataset}")
    return data


def make_model(config: JobConfig, data: DataSets) -> nn.Module:
    """The network of a configuration; its initial weights come from the seed."""
    seed_everything(config.seed)
    return build(config.network(data.num_classes, data.channels, data.size))


def fit_job(
    config: JobConfig,
    data: DataSets,
    *,
    run: Run,
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
    strict: bool = False,
) -> tuple[nn.Module, Training]:
    """Trains the network of a configuration; goes on where the run stopped.

    Args:
        config: everything but where the data lies.
        data: what `load_data` gave.
        run: where state and log are kept.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.
        strict: refuse a sparsity that a layer cannot reach, instead of warning.
    """
    resolve_device(device)
    model = make_model(config, data)
    loader = Loader(data.train, config.batch_size, seed=config.seed, transform=data.augment, workers=config.workers)
    validation = None if data.validation is None else evaluation_loader(config, data.validation)
    more: dict[str, Any] = {"run": run, "state": state, "device": device, "progress": progress, "strict": strict}
    return model, train(model, loader, config, validation=validation, **more)


def evaluation_loader(config: JobConfig, part: Any) -> Loader:
    """Batches in order."""
    return Loader(part, 250, shuffle=False, workers=config.workers)


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run of `dynsparse train` left: what was asked, its data, and the network with its weights, on the CPU."""

    config: JobConfig
    data: DataSets
    model: nn.Module


def read_trained(run: Path, folder: Path | None = None) -> Trained:
    """The network of a finished training and its data.

    Args:
        run: the run's folder.
        folder: where the data lie now; by default where they lay then.

    Raises:
        UserError: the folder is no such run, is not finished, its weights are damaged or of another network, or the
            data cannot be read.
    """
    asked = read_finished(run, "dynsparse train", lambda asked: asked.keys() == {"config", "data"})
    config = from_tree(JobConfig, asked["config"], str(run / "config.json"))
    data = load_data(config, folder or (Path(asked["data"]) if asked["data"] else None))
    model = make_model(config, data)
    load_weights(model, read_weights(run / WEIGHTS))
    return Trained(config, data, model.eval())


def named_model(name: str, variant: str, **settings: Any) -> nn.Module:
    """A network of the zoo, in evaluation mode.

    Raises:
        UserError: no such network or variant, or a setting that it has not.
    """
    if name not in MODELS:
        raise UserError(f"--model {name} is none of {', '.join(MODELS)}")
    return build({"model": name, "variant": variant, **settings}).eval()


def _unchanged(item: Any, _: object) -> Any:
    return item
