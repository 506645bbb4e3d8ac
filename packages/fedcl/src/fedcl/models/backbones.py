"""Pretrained networks as a stem and a row of blocks, which is all that NetTailor asks of them.

A residual block gives its sum without the activation that usually follows: the student activates after its merge.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fedcl.errors import ConfigError

Proxy = Literal["basic", "bottleneck", "vector"]


class Backbone(nn.Module):
    """A stem and blocks, run one after the other.

    Args:
        stem: from image to x_0.
        blocks: G_1 to G_L.
        proxy: kind of the student's proxies: "basic" or "bottleneck" for feature maps, "vector" for features [B, D].
        tail: trained with each task, between x_L and the pooling; none by default.
    """

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], proxy: Proxy = "basic", tail: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.proxy, self.tail = stem, nn.ModuleList(blocks), proxy, tail


class ResidualSum(nn.Module):
    """A torchvision or timm residual block without its last activation.

    Args:
        block: has conv1, bn1, conv2, bn2, perhaps conv3, bn3 and downsample.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.bottleneck = hasattr(block, "conv3")
        for name in ("conv1", "bn1", "conv2", "bn2", *(("conv3", "bn3") if self.bottleneck else ())):
            setattr(self, name, getattr(block, name))
        self.downsample = block.downsample if block.downsample is not None else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D U V"]:
        """The branch plus the shortcut."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(functional.relu(y)))
        return y + self.downsample(x)


class WideBlock(nn.Module):
    """A block of the Decathlon's WRN-26, which activates inside: ReLU(two convolutions + shortcut).

    Where it strides, the shortcut is averaged over 2 x 2 pixels; where it widens, zeros fill the new channels.

    Args:
        inputs: channels in.
        outputs: channels out: `inputs` or twice as many.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.widens = stride, outputs > inputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D U V"]:
        """The activated sum."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = functional.avg_pool2d(x, 2) if self.stride == 2 else x
        if self.widens:
            shortcut = torch.cat([shortcut, torch.zeros_like(shortcut)], 1)
        return functional.relu(y + shortcut)


class ScaledResidual(nn.Module):
    """0.7 (x + ReLU(W x + b)), a block for features [B, D].

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """The scaled sum."""
        return 0.7 * (x + functional.relu(self.linear(x)))


def resnet_backbone(network: Any) -> Backbone:
    """The backbone of a torchvision or timm ResNet of basic or bottleneck blocks, sharing its weights.

    Raises:
        ConfigError: the network is built otherwise; names what is missing.
    """
    for name in ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        if not hasattr(network, name):
            raise ConfigError(f"{type(network).__name__} has no {name}, so it is no ResNet", "name its blocks instead")
    stem = nn.Sequential(network.conv1, network.bn1, nn.ReLU(), network.maxpool)
    blocks = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in layer:
            unknown = [name for name in ("se", "aa", "drop_block", "drop_path") if _does(getattr(block, name, None))]
            if unknown or not hasattr(block, "conv2"):
                raise ConfigError(
                    f"block {type(block).__name__} has {unknown or 'no conv2'}; only plain ones are known"
                )
            blocks.append(ResidualSum(block))
    return Backbone(stem, blocks, "bottleneck" if blocks[0].bottleneck else "basic")


def wrn26(width: int = 32) -> Backbone:
    """The Visual Decathlon's WRN-26: twelve blocks of 64, 128 and 256 channels for images of 64 x 64 pixels.

    Args:
        width: channels of the stem.

    Reference: Rebuffi et al., CVPR 2018.
    """
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    widths = [width, *(width * 2 ** (1 + stage) for stage in range(3) for _ in range(4))]
    pairs = itertools.pairwise(widths)
    blocks = [WideBlock(a, b, 2 if index % 4 == 0 else 1) for index, (a, b) in enumerate(pairs)]
    return Backbone(stem, blocks, "basic", tail=nn.BatchNorm2d(widths[-1]))


def mlp_backbone(inputs: int, width: int = 64, blocks: int = 4) -> Backbone:
    """A perceptron: one layer with ReLU and a row of scaled residual blocks, for images of `inputs` pixels in all."""
    stem = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
    return Backbone(stem, [ScaledResidual(width) for _ in range(blocks)], "vector")


def named_backbone(network: nn.Module, blocks: Sequence[str]) -> Backbone:
    """A backbone from a network whose children before the first named block are its stem.

    Args:
        network: runs its top-level children in their order.
        blocks: names of modules, in the order in which they run.

    Raises:
        ConfigError: a name that the network lacks.
    """
    modules = dict(network.named_modules())
    missing = [name for name in blocks if name not in modules]
    if missing or not blocks:
        raise ConfigError(f"blocks names {missing[0] if missing else 'nothing'!r}, which the network lacks")
    first = blocks[0].partition(".")[0]
    before = []
    for name, child in network.named_children():
        if name == first:
            break
        before.append(child)
    return Backbone(nn.Sequential(*before), [modules[name] for name in blocks], "basic")


def _does(module: Any) -> bool:
    """Whether an optional part of a block does anything."""
    return module is not None and not isinstance(module, nn.Identity)
