"""The network of the miniature: three layers under test behind a static stem (spec section 7)."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynsparse.models.variants import Classifier, Convolutions, static_conv


def sd_tiny(
    variant: str = "sd",
    *,
    width: int = 8,
    num_classes: int = 10,
    in_channels: int = 1,
    min_hidden: int = 8,
    **settings: Any,
) -> nn.Module:
    """Stem 3x3, then three 3x3 layers of the variant, the first with stride 2; each with batch norm and ReLU.

    Args:
        variant: a key of `VARIANTS`.
        width: channels throughout.
        num_classes: of the classifier.
        in_channels: of the images.
        min_hidden: least width of the routers' hidden layer.
        **settings: of `SDConv2d`, for the layers under test.

    Raises:
        ConfigError: no such variant, or a setting is out of range.
    """
    sizes = {"width": width, "num_classes": num_classes, "in_channels": in_channels, "min_hidden": min_hidden}
    conv = Convolutions(variant, True, {"min_hidden": min_hidden, **settings})
    layers = [static_conv(in_channels, width, 3), *(conv(width, width, 3, stride) for stride in (2, 1, 1))]
    features = nn.Sequential(*(nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU(inplace=True)) for layer in layers))
    return Classifier(features, width, num_classes, 0.0, {"model": "sd_tiny", "variant": variant, **sizes, **settings})
