"""ResNets with every convolution of their blocks dynamic; the stem is static. Names are torchvision's.

References: He et al., CVPR 2016, arXiv:1512.03385, table 1; spec section 2.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dynsparse.models.variants import Convolutions, static_conv


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        config: with which `models.build` makes the same network.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        model: str,
        variant: str = "sd",
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float | int = 0.0,
        small_images: bool = False,
        **settings: Any,
    ) -> None:
        """Its factories pass on.

        Args:
            block: basic or bottleneck.
            depths: blocks of the four stages.
            model: name of the factory.
            variant: a key of `VARIANTS`.
            num_classes: of the classifier.
            in_channels: of the images.
            dropout: probability before the classifier.
            small_images: a 3x3 stem without stride or pooling, for images of some 32 pixels.
            **settings: of `SDConv2d`, for all dynamic layers.

        Raises:
            ConfigError: no such variant, or a setting is out of range.
        """
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "dropout": dropout}
        self.config = {"model": model, "variant": variant, **sizes, "small_images": small_images, **settings}
        conv = Convolutions(variant, True, settings)
        self.conv1 = static_conv(in_channels, 64, 3 if small_images else 7, 1 if small_images else 2)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for at in range(depth):
                blocks.append(block(conv, channels, 64 << stage, 2 if stage and at == 0 else 1))
                channels = (64 << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.dropout(x.mean((2, 3))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, of which the first may have a stride."""

    expansion = 1

    def __init__(self, conv: Convolutions, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(conv, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_i, H, W] to [B, C_o, H/stride, W/stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width."""

    expansion = 4

    def __init__(self, conv: Convolutions, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1 = conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, out, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(conv, in_channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_i, H, W] to [B, C_o, H/stride, W/stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + self.downsample(x))


def sd_resnet10(variant: str = "sd", **settings: Any) -> nn.Module:
    """ResNet-10; settings and errors as of `ResNet`."""
    return ResNet(BasicBlock, (1, 1, 1, 1), model="sd_resnet10", variant=variant, **settings)


def sd_resnet18(variant: str = "sd", **settings: Any) -> nn.Module:
    """ResNet-18; settings and errors as of `ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), model="sd_resnet18", variant=variant, **settings)


def sd_resnet34(variant: str = "sd", **settings: Any) -> nn.Module:
    """ResNet-34; settings and errors as of `ResNet`."""
    return ResNet(BasicBlock, (3, 4, 6, 3), model="sd_resnet34", variant=variant, **settings)


def sd_resnet50(variant: str = "sd", **settings: Any) -> nn.Module:
    """ResNet-50; settings and errors as of `ResNet`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), model="sd_resnet50", variant=variant, **settings)


def _shortcut(conv: Convolutions, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The input itself, or its projection where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
