"""Networks with their weights, and how they see images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from core_utils.training import read_weights
from core_utils.training.lite0 import lite0
from mqbench_lite import miniature, networks
from mqbench_lite.data import FASHION_MNIST, IMAGENET, Preprocessing
from mqbench_lite.errors import MQBenchError

LITE0 = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


@dataclass(frozen=True, eq=False)
class FloatNetwork:
    """A network before quantisation.

    Attributes:
        model: in evaluation mode.
        preprocessing: of its images.
    """

    model: nn.Module
    preprocessing: Preprocessing


def float_network(
    name: str, weights: Path | None = None, *, data: Path | None = None, cache: Path | None = None
) -> FloatNetwork:
    """A network with weights.

    Args:
        name: of `networks.get`, or `lite0`: EfficientNet-Lite0 with its ImageNet weights, from the extra `lite0`. The
            package's small nets are trained when they are first asked for, unless weights are given.
        weights: a state dictionary, `.safetensors` or PyTorch's own format, of which only tensors are read.
        data: folder of a full Fashion-MNIST for that training.
        cache: where its result is kept; the user's cache folder by default.

    Raises:
        MQBenchError: there is no such network, or the weights do not fit; names the first that does not.
    """
    if name == "lite0":
        return FloatNetwork(lite0(install="mqbench-lite[lite0]", error=MQBenchError), LITE0)
    small = name in networks.BUILT_IN
    if small and weights is None:
        return FloatNetwork(miniature.float_net(name, cache or miniature.user_cache(), data=data), FASHION_MNIST)
    model = networks.get(name)
    if weights is not None:
        load_weights(model, weights)
    return FloatNetwork(model.eval(), FASHION_MNIST if small else IMAGENET)


def load_weights(model: nn.Module, file: Path) -> None:
    """Loads a state dictionary whose names and shapes must be the model's.

    Raises:
        MQBenchError: the file cannot be read or belongs to another network.
    """
    given, wanted = read_weights(file, error=MQBenchError), model.state_dict()
    for name in [*wanted, *given]:
        if name not in given or name not in wanted:
            where = "the file" if name not in given else "the network"
            raise MQBenchError(f"{file} belongs to another network: {where} has no {name!r}")
        if given[name].shape != wanted[name].shape:
            shapes = f"{list(given[name].shape)} there, {list(wanted[name].shape)} in the network"
            raise MQBenchError(f"{file} belongs to another network: {name!r} is {shapes}")
    model.load_state_dict(given)
