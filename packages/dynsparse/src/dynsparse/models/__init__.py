"""The networks of the paper, each as a static one, under masks, and in every kind of dynamic convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dynsparse.errors import check_choice
from dynsparse.models.mobilenets import sd_mobilenet_v1, sd_mobilenet_v2
from dynsparse.models.resnets import sd_resnet10, sd_resnet18, sd_resnet34, sd_resnet50
from dynsparse.models.tiny import sd_tiny
from dynsparse.models.variants import VARIANTS

__all__ = [
    "MODELS",
    "VARIANTS",
    "build",
    "sd_mobilenet_v1",
    "sd_mobilenet_v2",
    "sd_resnet10",
    "sd_resnet18",
    "sd_resnet34",
    "sd_resnet50",
    "sd_tiny",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    factory.__name__: factory
    for factory in (sd_mobilenet_v1, sd_mobilenet_v2, sd_resnet10, sd_resnet18, sd_resnet34, sd_resnet50, sd_tiny)
}
"""Factories by name."""


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network that has this `config`: its factory's name as "model", and what that was called with.

    Raises:
        ConfigError: no such model, or a setting is out of range.
    """
    arguments = dict(config)
    return MODELS[check_choice("model", arguments.pop("model"), MODELS)](**arguments)
