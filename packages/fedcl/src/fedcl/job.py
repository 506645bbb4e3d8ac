"""A federation as one configuration: what `fedcl run` and a deployed Flower app are asked to do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from core_utils.settings import from_tree
from fedcl.client import LocalTraining
from fedcl.datasets import DATASETS, load_data
from fedcl.errors import ConfigError
from fedcl.federation import FederatedRun
from fedcl.partitions import IID, Dirichlet
from fedcl.privacy import Privacy
from fedcl.protocol import Protocol, Straggler
from fedcl.robust import Aggregator
from fedcl.scenario import Scenario
from fedcl.server_opt import OPTIMIZERS, ServerOptimizer


@dataclass(frozen=True)
class ScenarioTable:
    """Who learns what from which images.

    Attributes:
        dataset: garments, digits, cifar100, miniimagenet, decathlon or folder.
        data: its folder.
        made: folder of `fedcl scenario make` instead of all the rest.
        image_size: height and width that images are scaled to, pixels.
        tasks: how many; data that define tasks have their own.
        classes_per_task: by default all classes are used.
        clients: how many.
        order: of tasks: "random" for each client, or "same".
        alpha: of the Dirichlet skew of labels; without it parts are alike.
        min_size: fewest images of a client and task under skew.
        per_client: most images of a client and task.
        allow_uneven: tasks may differ in their number of classes.
    """

    dataset: str = "garments"
    data: Path | None = None
    made: Path | None = None
    image_size: int | None = None
    tasks: int = 5
    classes_per_task: int | None = None
    clients: int = 4
    order: Literal["random", "same"] = "random"
    alpha: float | None = None
    min_size: int = 1
    per_client: int | None = None
    allow_uneven: bool = False

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ConfigError(f"dataset must be one of {', '.join(DATASETS)}, got {self.dataset!r}")


@dataclass(frozen=True)
class ModelTable:
    """The students and their backbone.

    Attributes:
        backbone: "mlp" (trained on digits for images of 14 x 14 pixels, random otherwise), "wrn26", "torchvision:NAME"
            or "timm:NAME".
        weights: of the backbone, safetensors or a state dict of torch (read without unpickling code); without them a
            network of torchvision or timm has random weights, since nothing is downloaded.
        max_skip: proxies of a layer.
        gate_main: initial score of a block's gate.
        gate_proxy: initial score of a proxy's gate.
        classifier: "linear" or "zeros".
        width: of the perceptron.
        blocks: of the perceptron.
    """

    backbone: str = "mlp"
    weights: Path | None = None
    max_skip: int = 3
    gate_main: float = 0.5
    gate_proxy: float = -0.5
    classifier: Literal["linear", "zeros"] = "zeros"
    width: int = 64
    blocks: int = 4


@dataclass(frozen=True)
class ServerTable:
    """The server's optimiser and how it merges.

    Attributes:
        optimizer: fedavg, fedavgm, fedadagrad, fedadam or fedyogi.
        lr: server learning rate; by default 1 for averaging and 0.03 for the others.
        momentum: of fedavgm.
        betas: of the adaptive ones; by default theirs.
        tau: of the adaptive ones.
        preset: "paper" or "flwr".
        scope: "task", "shared" or "all".
        weights: "examples" or "uniform".
        aggregator: mean, median, trimmed, krum or multikrum.
        trim: of "trimmed".
        byzantine: of the krums.
        fallback: of a group too small for its rule: error, skip or mean.
        clip_norm: of differential privacy.
        noise_multiplier: of differential privacy.
        max_update_norm: longest update of a client.
        norm_policy: clip or reject.
        quorum: fewest replies of a round.
        max_failed_rounds: without quorum in a row.
    """

    optimizer: Literal["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = "fedyogi"
    lr: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] | None = None
    tau: float = 1e-3
    preset: Literal["paper", "flwr"] = "paper"
    scope: Literal["task", "shared", "all"] = "task"
    weights: Literal["examples", "uniform"] = "examples"
    aggregator: Literal["mean", "median", "trimmed", "krum", "multikrum"] = "mean"
    trim: float = 0.2
    byzantine: int = 1
    fallback: Literal["error", "skip", "mean"] = "error"
    clip_norm: float | None = None
    noise_multiplier: float = 0.0
    max_update_norm: float | None = None
    norm_policy: Literal["clip", "reject"] = "clip"
    quorum: int = 1
    max_failed_rounds: int = 3

    def __post_init__(self) -> None:
        self.make()
        Aggregator(self.aggregator, self.trim, self.byzantine, self.fallback)
        if self.clip_norm is None and self.noise_multiplier:
            raise ConfigError("noise_multiplier needs clip_norm")

    def make(self) -> ServerOptimizer:
        """The optimiser."""
        if self.optimizer == "fedavg":
            return OPTIMIZERS["fedavg"](1.0 if self.lr is None else self.lr)
        if self.optimizer == "fedavgm":
            return OPTIMIZERS["fedavgm"](1.0 if self.lr is None else self.lr, self.momentum)  # type: ignore[call-arg]
        given: dict[str, Any] = {} if self.betas is None else {"betas": self.betas}
        lr = 0.03 if self.lr is None else self.lr
        return OPTIMIZERS[self.optimizer](lr, tau=self.tau, preset=self.preset, **given)  # type: ignore[call-arg]


@dataclass(frozen=True)
class RunTable:
    """The loop.

    Attributes:
        rounds: of each phase.
        engine: "local", "stacked" or "flwr".
        fraction: of the available clients that are sampled.
        dropout: probability that a client is not available in a round.
        straggler_fraction: of the sampled clients that are late.
        straggler_mode: "drop" or "partial".
        diagnose: when local and merged accuracy are compared: phase, round or never.
        seed: decides everything random.
        device: cpu, cuda, cuda:1, mps or auto.
    """

    rounds: int = 5
    engine: Literal["local", "stacked", "flwr"] = "local"
    fraction: float = 1.0
    dropout: float = 0.0
    straggler_fraction: float = 0.0
    straggler_mode: Literal["drop", "partial"] = "drop"
    diagnose: Literal["phase", "round", "never"] = "phase"
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class JobConfig:
    """Everything, as tables of one TOML file.

    Attributes:
        scenario: data, tasks, clients.
        model: students.
        server: optimiser and merging.
        client: local training.
        run: the loop.
    """

    scenario: ScenarioTable = field(default_factory=ScenarioTable)
    model: ModelTable = field(default_factory=ModelTable)
    server: ServerTable = field(default_factory=ServerTable)
    client: LocalTraining = field(default_factory=LocalTraining)
    run: RunTable = field(default_factory=RunTable)

    def protocol(self) -> Protocol:
        """The server's settings."""
        server, run = self.server, self.run
        late = Straggler(run.straggler_fraction, run.straggler_mode) if run.straggler_fraction else None
        private = None if server.clip_norm is None else Privacy(server.clip_norm, server.noise_multiplier)
        return Protocol(
            scope=server.scope,
            rounds=run.rounds,
            fraction=run.fraction,
            dropout=run.dropout,
            straggler=late,
            weights=server.weights,
            aggregator=Aggregator(server.aggregator, server.trim, server.byzantine, server.fallback),
            privacy=private,
            max_update_norm=server.max_update_norm,
            norm_policy=server.norm_policy,
            quorum=server.quorum,
            max_failed_rounds=server.max_failed_rounds,
            diagnose=run.diagnose,
            seed=run.seed,
        )

    def asked(self) -> dict[str, Any]:
        """What a run's folder is opened with."""
        return asdict(self)


def read_config(tree: dict[str, Any], source: str) -> JobConfig:
    """The configuration that a run's `config.json` or a TOML file holds."""
    tables = {name: {k: v for k, v in table.items() if v is not None} for name, table in tree.items()}
    return from_tree(JobConfig, tables, source)


def make_scenario(table: ScenarioTable, seed: int) -> Scenario:
    """The scenario of a configuration, made or loaded."""
    if table.made is not None:
        return Scenario.load(table.made)
    data = load_data(table.dataset, table.data, image_size=table.image_size)
    return Scenario.from_arrays(
        data.x,
        data.y,
        x_test=data.x_test,
        y_test=data.y_test,
        tasks=data.tasks or table.tasks,
        classes_per_task=None if data.tasks else table.classes_per_task,
        clients=table.clients,
        order=table.order,
        partition=IID() if table.alpha is None else Dirichlet(table.alpha, table.min_size),
        per_client=table.per_client,
        allow_uneven=table.allow_uneven,
        normal=data.normal,
        seed=seed,
    )


def make_model(table: ModelTable, input_shape: tuple[int, ...], seed: int) -> Callable[[int], nn.Module]:
    """The function that makes students of a configuration's backbone.

    Raises:
        ConfigError: an unknown backbone, or weights of another network.
    """
    from fedcl.models.nettailor import tailor

    backbone = _backbone(table, input_shape, seed)

    def make(classes: int) -> nn.Module:
        return tailor(
            copy.deepcopy(backbone),
            num_classes=classes,
            max_skip=table.max_skip,
            input_shape=input_shape,
            gate_init=(table.gate_main, table.gate_proxy),
            classifier=table.classifier,
        )

    return make


def make_run(config: JobConfig, scenario: Scenario | None = None) -> FederatedRun:
    """The federation of a configuration."""
    from core_utils.training import resolve_device

    scenario = scenario or make_scenario(config.scenario, config.run.seed)
    return FederatedRun(
        scenario,
        make_model(config.model, scenario.input_shape, config.run.seed),
        config.server.make(),
        engine=config.run.engine,
        training=config.client,
        protocol=config.protocol(),
        device=str(resolve_device(config.run.device)),
    )


def _backbone(table: ModelTable, input_shape: tuple[int, ...], seed: int) -> nn.Module:
    from fedcl.miniature import SIDE, miniature_backbone
    from fedcl.models.backbones import mlp_backbone, wrn26

    library, _, name = table.backbone.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if table.backbone == "mlp":
            if input_shape[-2:] == (SIDE, SIDE) and table.weights is None:
                return miniature_backbone(seed, width=table.width, blocks=table.blocks)
            network: nn.Module = mlp_backbone(math.prod(input_shape), table.width, table.blocks)
        elif table.backbone == "wrn26":
            network = wrn26()
        elif library == "torchvision" and name:
            network = _torchvision(name)
        elif library == "timm" and name:
            network = _timm(name)
        else:
            raise ConfigError(f"backbone must be mlp, wrn26, torchvision:NAME or timm:NAME, got {table.backbone!r}")
    if table.weights is not None:
        _load(network, table.weights)
    return network


def _torchvision(name: str) -> nn.Module:
    try:
        import torchvision
    except ImportError:
        raise ConfigError(f"backbone torchvision:{name} needs torchvision", "install fedcl[torchvision]") from None
    try:
        made: nn.Module = torchvision.models.get_model(name, weights=None)
    except ValueError as error:
        raise ConfigError(f"backbone torchvision:{name}: {error}") from None
    return made


def _timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"backbone timm:{name} needs timm", "install fedcl[timm]") from None
    try:
        made: nn.Module = timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        raise ConfigError(f"backbone timm:{name}: {error}") from None
    return made


def _load(network: nn.Module, file: Path) -> None:
    """Puts weights into a backbone; a head that the student does not use may be missing or of other shape."""
    from core_utils.training import read_weights

    weights, own = read_weights(file, error=ConfigError), network.state_dict()
    heads = ("fc.", "head.", "classifier.")
    wrong = [n for n in own if not n.startswith(heads) and (n not in weights or weights[n].shape != own[n].shape)]
    if wrong:
        raise ConfigError(f"{file} holds another network's weights: {', '.join(wrong[:5])}")
    network.load_state_dict({n: v for n, v in weights.items() if n in own and own[n].shape == v.shape}, strict=False)
