"""MobileNetV1 and V2 with every convolution but the stem dynamic.

References: Howard et al., arXiv:1704.04861, table 1; Sandler et al., CVPR 2018, arXiv:1801.04381, table 2; spec 2.7.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dynsparse.models.variants import Classifier, Convolutions, static_conv

V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of each depthwise separable block."""

V2_BLOCKS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
)  # fmt: skip
"""Expansion, channels, repetitions and first stride of the inverted residual blocks."""


def sd_mobilenet_v1(
    variant: str = "sd",
    *,
    width: float | int = 1.0,
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float | int = 0.0,
    mask_depthwise: bool = False,
    small_images: bool = False,
    **settings: Any,
) -> nn.Module:
    """MobileNetV1.

    Args:
        variant: a key of `VARIANTS`.
        width: factor on all channels.
        num_classes: of the classifier.
        in_channels: of the images.
        dropout: probability before the classifier.
        mask_depthwise: give depthwise layers masks, too.
        small_images: a stem without stride, for images of some 32 pixels.
        **settings: of `SDConv2d`, for all dynamic layers.

    Raises:
        ConfigError: no such variant, or a setting is out of range.
    """
    config = {**locals(), **settings, "model": "sd_mobilenet_v1"}
    config.pop("settings")
    conv = Convolutions(variant, mask_depthwise, settings)
    channels = make_divisible(32 * width)
    layers = [_stem(in_channels, channels, 1 if small_images else 2, nn.ReLU)]
    for out, stride in V1_BLOCKS:
        out = make_divisible(out * width)
        layers += [
            _activated(conv(channels, channels, 3, stride, channels), channels, nn.ReLU),
            _activated(conv(channels, out, 1), out, nn.ReLU),
        ]
        channels = out
    return Classifier(nn.Sequential(*layers), channels, num_classes, dropout, config)


def sd_mobilenet_v2(
    variant: str = "sd",
    *,
    width: float | int = 1.0,
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float | int = 0.0,
    mask_depthwise: bool = False,
    small_images: bool = False,
    **settings: Any,
) -> nn.Module:
    """MobileNetV2; arguments as for `sd_mobilenet_v1`.

    Raises:
        ConfigError: no such variant, or a setting is out of range.
    """
    config = {**locals(), **settings, "model": "sd_mobilenet_v2"}
    config.pop("settings")
    conv = Convolutions(variant, mask_depthwise, settings)
    channels = make_divisible(32 * width)
    layers: list[nn.Module] = [_stem(in_channels, channels, 1 if small_images else 2, nn.ReLU6)]
    for expansion, out, repetitions, first_stride in V2_BLOCKS:
        out = make_divisible(out * width)
        for at in range(repetitions):
            layers.append(InvertedResidual(conv, channels, out, first_stride if at == 0 else 1, expansion))
            channels = out
    last = make_divisible(1280 * max(1.0, width))
    layers.append(_activated(conv(channels, last, 1), last, nn.ReLU6))
    return Classifier(nn.Sequential(*layers), last, num_classes, dropout, config)


class InvertedResidual(nn.Module):
    """Expansion 1x1, depthwise 3x3, linear projection 1x1; the input is added where the shape stays."""

    def __init__(self, conv: Convolutions, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [_activated(conv(in_channels, hidden, 1), hidden, nn.ReLU6)] if expansion > 1 else []
        self.residual = stride == 1 and in_channels == out_channels
        self.body = nn.Sequential(
            *expand,
            _activated(conv(hidden, hidden, 3, stride, hidden), hidden, nn.ReLU6),
            conv(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_i, H, W] to [B, C_o, H/stride, W/stride]."""
        return x + self.body(x) if self.residual else self.body(x)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of the divisor that is at least 0.9 of the number."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def _stem(in_channels: int, out_channels: int, stride: int, activation: type[nn.Module]) -> nn.Module:
    return _activated(static_conv(in_channels, out_channels, 3, stride), out_channels, activation)


def _activated(conv: nn.Module, channels: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), activation(inplace=True))
