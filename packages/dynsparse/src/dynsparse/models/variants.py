"""What stands where a network has a convolution.

- static: one kernel, as ever;
- masked: one kernel under a learnable threshold, no router;
- dy: K dense kernels, softmax attention (dynamic convolution);
- condconv: K dense kernels, sigmoid routing;
- odconv: K dense kernels, attention over kernels, positions, channels and filters;
- sd: K kernels under learnable thresholds, softmax attention (SD-Conv).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dynsparse.errors import check_choice
from dynsparse.initialisation import he_normal
from dynsparse.layers import SDConv2d

VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "masked": {"num_kernels": 1, "router": "softmax"},
    "dy": {"router": "softmax", "mask": "none"},
    "condconv": {"router": "sigmoid", "mask": "none"},
    "odconv": {"router": "odconv", "mask": "none"},
    "sd": {"router": "softmax", "mask": "threshold"},
}
"""Settings that make a variant what it is."""


@dataclass(frozen=True)
class Convolutions:
    """Makes the convolutions of a network, without bias and padded by k // 2.

    Attributes:
        variant: a key of `VARIANTS`.
        mask_depthwise: whether depthwise layers have masks, too.
        settings: of `SDConv2d`; those that make the variant win, and a static network has none.

    Raises:
        ConfigError: no such variant.
    """

    variant: str
    mask_depthwise: bool
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)

    def __call__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
    ) -> nn.Module:
        """One layer."""
        if self.variant == "static":
            return static_conv(in_channels, out_channels, kernel_size, stride, groups)
        settings = {**self.settings, **VARIANTS[self.variant]}
        if groups > 1 and not self.mask_depthwise:
            settings["mask"] = "none"
        padding = kernel_size // 2
        return SDConv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False, **settings)


def static_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A plain convolution with start values as a dynamic one's kernels have them."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    he_normal(conv.weight, out_channels, groups)
    return conv


class Classifier(nn.Module):
    """A network that ends in a pooled linear classifier.

    Attributes:
        config: with which `models.build` makes the same network.
    """

    def __init__(
        self, features: nn.Module, channels: int, num_classes: int, dropout: float, config: dict[str, Any]
    ) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        return self.fc(self.dropout(self.features(x).mean((2, 3))))
