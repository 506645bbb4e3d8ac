"""Networks by name: the two small ones that claims are measured on, timm's, torchvision's, and the user's own."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from core_utils.user_code import call_named
from mqbench_lite.errors import EngineMissingError, MQBenchError

GROUP = "mqbench_lite.networks"


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """The sum of both ways, after its ReLU."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


class ResidualNet(nn.Module):
    """A stem, three blocks of 16, 32 and 64 channels, and a linear layer, for images of 28x28 in one channel."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n classes"]:
        """Class scores."""
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Channels widened by a 1x1 convolution, filtered one by one, narrowed again; with a shortcut where shapes agree."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = _with_relu6(nn.Conv2d(channels, hidden, 1, bias=False))
        self.filter = _with_relu6(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False))
        self.narrow = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))
        self.adds = stride == 1 and channels == width

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """The narrow result."""
        inner = self.narrow(self.filter(self.expand(x)))
        return x + inner if self.adds else inner


class DepthwiseNet(nn.Module):
    """A stem, inverted residuals of 16, 24, 24 and 48 channels and a head of 128, for images of 28x28 in one channel."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = _with_relu6(nn.Conv2d(1, 16, 3, 2, 1, bias=False))
        self.blocks = nn.Sequential(
            InvertedResidual(16, 16, 1),
            InvertedResidual(16, 24, 2),
            InvertedResidual(24, 24, 1),
            InvertedResidual(24, 48, 2),
        )
        self.head = _with_relu6(nn.Conv2d(48, 128, 1, bias=False))
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n classes"]:
        """Class scores."""
        return self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def _with_relu6(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())


BUILT_IN: dict[str, Callable[..., nn.Module]] = {"residual": ResidualNet, "depthwise": DepthwiseNet}


def get(name: str, **options: Any) -> nn.Module:
    """A network with weights of random start, unless its options say otherwise.

    Args:
        name: `residual` or `depthwise`; a name that another package registers; `timm:NAME`; `torchvision:NAME`; or
            `FILE.py:FUNCTION`, which runs that file.
        **options: of the network's function.

    Raises:
        MQBenchError: there is none of that name, or what the name leads to makes no network.
        EngineMissingError: timm or torchvision is not installed.
    """
    origin, colon, function = name.rpartition(":")
    if name in BUILT_IN:
        return BUILT_IN[name](**options)
    if origin in ("timm", "torchvision"):
        return _from_collection(origin, function, options)
    if colon and origin.endswith(".py"):
        return _checked(name, call_named(name, options, error=MQBenchError))
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                factory = point.load()
            except Exception as error:
                raise MQBenchError(f"network {name} ({point.value}) does not load: {error}") from error
            made = callable(factory) and not isinstance(factory, nn.Module)
            return _checked(name, factory(**options) if made else factory)
    nearest = difflib.get_close_matches(name, names(), 1, 0.0)[0]
    raise MQBenchError(
        f"there is no network {name!r}",
        f"did you mean {nearest!r}? timm:NAME, torchvision:NAME, FILE.py:FUNCTION work too",
    )


def names() -> tuple[str, ...]:
    """Names of this package's networks, then of those that other packages register."""
    others = {point.name for point in entry_points(group=GROUP)} - set(BUILT_IN)
    return (*BUILT_IN, *sorted(others))


def _from_collection(collection: str, name: str, options: dict[str, Any]) -> nn.Module:
    try:
        module = importlib.import_module("timm" if collection == "timm" else "torchvision.models")
    except ImportError as error:
        raise EngineMissingError(collection, collection) from error
    known = module.list_models()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, 1, 0.0)
        raise MQBenchError(f"{collection} has no network {name!r}", f"did you mean {nearest[0]!r}?")
    make = module.create_model if collection == "timm" else module.get_model
    return make(name, **options)  # type: ignore[no-any-return]


def _checked(name: str, network: Any) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise MQBenchError(f"{name} gives a {type(network).__name__}", "it must give a torch.nn.Module")
    return network
