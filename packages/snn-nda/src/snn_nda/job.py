"""A whole training as one configuration: network, data, policy and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from torch import nn

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.training import History, Loader, Stateful, resolve_device, seed_everything
from snn_nda import networks
from snn_nda.augment import Augmentation, Geometric, Mixed, Photometric
from snn_nda.datasets import DataSets, event_data, miniature_data
from snn_nda.frame_cache import FrameOptions
from snn_nda.labels import checked_label_map
from snn_nda.miniature import SIZE
from snn_nda.nda import NDA
from snn_nda.policies import policy
from snn_nda.simsiam import PretrainConfig, SimSiam, pretrain
from snn_nda.training import TrainConfig, train

Network = Literal["tiny_vgg", "vgg11", "vgg13", "vgg16", "resnet19"]
DataName = Literal["miniature", "cifar10-dvs", "n-caltech101", "n-cars", "n-mnist", "dvs-gesture", "other"]
Preset = Literal["cifar10-dvs", "n-caltech101", "n-cars"]
PHOTOMETRIC = "photometric"
"""A policy that is none: brightness and noise, for comparison."""


@dataclass(frozen=True)
class DataConfig:
    """What a network is trained on; the defaults are the miniature's.

    Attributes:
        network: by name.
        dataset: by name; all but the miniature need a folder. "other" is any folder of class folders of recordings.
        policy: "none", "nda" (also "paper"), "code", "M1N2" and the like, a TOML file, or "photometric".
        train_per_class: training recordings of each class of the miniature.
        test_per_class: test recordings of each class of the miniature.
        validation: part of the training data that is held out and watched instead of the test data.
        time_steps: T.
        size: height and width of the frames, pixels; the miniature's is 24.
        by: time steps of equal "number" of events, or of equal "time".
        method: how frames are made smaller: "nearest" as in the paper, which loses most events, "sum" or "area".
        sensor: width and height of the sensor of an "other" data set, pixels.
        label_safe_flip: mirrored recordings of an "other" data set keep their labels.
        seed: decides which recordings are held out, and what the miniature holds.
        workers: loading processes.
        sort: accept recordings whose times decrease, by sorting their events.
        cache: folder of the frame caches; by default `.frames` among the recordings.
    """

    network: Network = "tiny_vgg"
    dataset: DataName = "miniature"
    policy: str = "nda"
    train_per_class: int = 20
    test_per_class: int = 100
    validation: float = 0.0
    time_steps: int = 5
    size: int = 24
    by: Literal["time", "number"] = "number"
    method: Literal["nearest", "area", "sum"] = "sum"
    sensor: tuple[int, int] | None = None
    label_safe_flip: bool | None = None
    seed: int = 0
    workers: int = 0
    sort: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("train_per_class", "test_per_class", "time_steps", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.validation < 1:
            raise UserError(f"validation must lie in [0, 1), got {self.validation}")
        if self.workers < 0:
            raise UserError(f"workers must not be negative, got {self.workers}")
        if self.dataset == "miniature" and self.validation:
            raise UserError("validation must be 0: the miniature holds nothing out")
        if self.dataset == "miniature" and self.size != SIZE:
            raise UserError(f"size must be {SIZE} with the miniature, got {self.size}")
        if self.dataset == "other" and self.sensor is None:
            raise UserError("sensor must be given with dataset other", "as sensor=[width, height]")
        if self.dataset != "other" and (self.sensor is not None or self.label_safe_flip is not None):
            raise UserError(f"sensor and label_safe_flip of {self.dataset} are known", "give them with dataset other")
        if self.policy != PHOTOMETRIC:
            try:
                policy(self.policy, self.dataset)
            except UserError as error:
                raise UserError(f"policy {self.policy!r} cannot be used: {error.message}", error.hint) from None

    @property
    def frames(self) -> FrameOptions:
        """How recordings become frames."""
        return FrameOptions(time_steps=self.time_steps, size=self.size, by=self.by, method=self.method)


@dataclass(frozen=True)
class JobConfig(DataConfig, TrainConfig):
    """What `snn-nda train` is asked to do: data and training.

    Attributes:
        mix: "cutmix" or "mixup" after the policy; labels become shares.
    """

    mix: Literal["none", "cutmix", "mixup"] = "none"

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        DataConfig.__post_init__(self)
        if self.watch_last == 0:
            raise UserError("watch_last must be at least 1: without a measured epoch there is no gap to report")


@dataclass(frozen=True)
class PretrainJob(DataConfig, PretrainConfig):
    """What `snn-nda pretrain` is asked to do: data, whose labels are not looked at, and pre-training."""

    def __post_init__(self) -> None:
        PretrainConfig.__post_init__(self)
        DataConfig.__post_init__(self)
        if self.policy == "none":
            raise UserError("policy must not be none: two equal views teach nothing")


def preset_file(name: Preset) -> Path:
    """The TOML file of one of the paper's configurations, for a GPU."""
    return Path(str(resources.files("snn_nda").joinpath("presets", f"{name}.toml")))


def load_data(config: DataConfig, folder: Path | None, *, workers: int = 1, progress: bool = False) -> DataSets:
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
        counts = {"train_per_class": config.train_per_class, "test_per_class": config.test_per_class}
        return miniature_data(config.seed, **counts, time_steps=config.time_steps, data=folder)
    if folder is None:
        raise UserError(f"dataset {config.dataset} needs its folder", "add --data DIR")
    more: dict[str, Any] = {"seed": config.seed, "sort": config.sort, "cache": config.cache, "workers": workers}
    known = None if config.dataset == "other" else config.dataset
    facts: dict[str, Any] = (
        {"sensor_size": config.sensor, "label_safe_flip": config.label_safe_flip} if known is None else {}
    )
    return event_data(known, folder, config.frames, validation=config.validation, progress=progress, **more, **facts)


def make_network(config: DataConfig, data: DataSets) -> nn.Module:
    """The network of a configuration, for the classes and size of its data."""
    seed_everything(config.seed)
    make: Callable[..., nn.Module] = getattr(networks, config.network)
    sized = {"size": data.size} if config.network == "tiny_vgg" else {}
    return make(2, data.num_classes, **sized)


def make_augment(config: DataConfig, data: DataSets) -> Augmentation | None:
    """What a configuration does to its training data.

    Raises:
        FlipError: the policy mirrors recordings whose labels do not allow it.
    """
    first: Augmentation | None = None
    if config.policy == PHOTOMETRIC:
        first = Photometric()
    elif config.policy != "none":
        nda = NDA(config.policy, data=config.dataset)
        # Without labels, as in pre-training, a mirrored recording is as good as another.
        safe = isinstance(config, PretrainConfig)
        first = Geometric(nda, {} if safe else checked_label_map(nda.policy, data))
    mix = config.mix if isinstance(config, JobConfig) else "none"
    return first if mix == "none" else Mixed(mix, data.num_classes, first)


def fit_job(
    config: JobConfig,
    data: DataSets,
    *,
    run: Run,
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
    start: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, History]:
    """Trains the network of a configuration; goes on where the run stopped.

    Args:
        config: everything but where the data lies.
        data: what `load_data` gave. After each epoch its training part, and its validation part or else its test part,
            are measured; nothing is selected by that.
        run: where state and log are kept.
        state: further objects to save and restore by name.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        progress: show progress on stderr.
        start: changes the new network in place, as fine-tuning does.
    """
    resolve_device(device)
    model = make_network(config, data)
    if start is not None:
        start(model)
    loader = Loader(data.train, config.batch_size, seed=config.seed, workers=config.workers)
    history = train(
        model,
        loader,
        config,
        augment=make_augment(config, data),
        watch={"train": evaluation_loader(config, data.train), unseen(data): evaluation_loader(config, held_out(data))},
        run=run,
        state=state,
        device=device,
        progress=progress,
    )
    return model, history


def pretrain_job(
    config: PretrainJob,
    data: DataSets,
    *,
    run: Run,
    state: Mapping[str, Stateful] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Pre-trains the encoder of a configuration on its training data; goes on where the run stopped."""
    resolve_device(device)
    encoder = make_network(config, data).blocks
    model = SimSiam(encoder, config.dim, config.pred_dim, size=data.size)  # type: ignore[arg-type]
    augment = make_augment(config, data)
    loader = Loader(data.train, config.batch_size, seed=config.seed, workers=config.workers)
    more: dict[str, Any] = {"run": run, "state": state, "device": device, "progress": progress}
    return model.encoder, pretrain(model, loader, config, augment=augment, **more)  # type: ignore[arg-type]


def unseen(data: DataSets) -> Literal["validation", "test"]:
    """Which part is measured after every epoch beside the training part."""
    return "test" if data.validation is None else "validation"


def held_out(data: DataSets) -> Any:
    """That part."""
    return data.test if data.validation is None else data.validation


def evaluation_loader(config: DataConfig, dataset: Any) -> Loader:
    """Batches in order; the miniature's are so small that a layer's activity stays near the processor."""
    batch = config.batch_size if isinstance(config, TrainConfig | PretrainConfig) else 50
    return Loader(dataset, 50 if config.dataset == "miniature" else batch, shuffle=False, workers=config.workers)
