"""From a network's static convolutions to dynamic ones.

`convert` takes torch's own convolutions only: a subclass may compute something else.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import nn

from dynsparse.errors import ConversionError, check_choice
from dynsparse.layers import SDConv1d, SDConv2d, SDConv3d, SDConvNd

DYNAMIC: dict[type[nn.Module], type[SDConvNd]] = {nn.Conv1d: SDConv1d, nn.Conv2d: SDConv2d, nn.Conv3d: SDConv3d}
SKIPS = ("stem", "depthwise", "head")


def convert(
    model: nn.Module,
    *,
    select: str | Callable[[str, nn.Module], bool] = "auto",
    skip: Collection[str] = SKIPS,
    inplace: bool = False,
    noise: float | int = 0.1,
    **settings: Any,
) -> nn.Module:
    """A model whose convolutions are sparse dynamic ones that start from its kernels.

    Args:
        model: any network with torch's convolutions; its weights, device and dtype are kept.
        select: "auto" for all, a regular expression searched for in a layer's name, or a function of name and layer.
        skip: of these leave out the "stem" (the first convolution), "depthwise" ones, and the "head" (the last one, if
            no linear layer follows).
        inplace: change the model itself instead of a copy.
        noise: see `SDConvNd.from_conv`.
        **settings: of every layer, as of `SDConv2d`.

    Returns:
        The converted model.

    Raises:
        ConversionError: no convolution is left to convert; the message lists those that there are.
        ConfigError: a setting is out of range, or an unknown word in `skip`.
    """
    for word in skip:
        check_choice("skip", word, SKIPS)
    found = convolutions(model)
    skipped = {name for name, reasons in _reasons(model).items() if reasons & set(skip)}
    chosen = {name for name, layer in found.items() if _selects(select, name, layer)} - skipped
    if not chosen:
        names = ", ".join(f"{name} (skipped)" if name in skipped else name for name in found) or "none"
        raise ConversionError(f"there is no convolution to convert; the model has: {names}", "see select and skip")
    if not inplace:
        model = copy.deepcopy(model)
    made: dict[int, SDConvNd] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if name in chosen or id(layer) in made:
            made[id(layer)] = made.get(id(layer)) or DYNAMIC[type(layer)].from_conv(layer, noise=noise, **settings)
            model = _replaced(model, name, made[id(layer)])
    return model


def dynamic_layers(model: nn.Module) -> list[tuple[str, SDConvNd]]:
    """Names and layers of all dynamic convolutions, in order; names as without DataParallel and compile.

    Raises:
        ConversionError: there is none.
    """
    layers = [
        (re.sub(r"(^|\.)(_orig_mod|_forward_module)(?=\.|$)", "", name).lstrip("."), module)
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, SDConvNd)
    ]
    if not layers:
        raise ConversionError("the model has no dynamic convolution", "convert it, or take one from dynsparse.models")
    return layers


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within DistributedDataParallel, DataParallel, torch.compile and Fabric."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or isinstance(
            inner := getattr(model, "_forward_module", None), nn.Module
        ):
            model = inner
        else:
            return model


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """Torch's convolutions by name, in order of definition."""
    return {name: layer for name, layer in model.named_modules() if type(layer) in DYNAMIC}


def is_depthwise(layer: nn.Module) -> bool:
    """Whether every channel has filters of its own."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | SDConvNd) and layer.groups == layer.in_channels > 1


def _reasons(model: nn.Module) -> dict[str, set[str]]:
    """For each convolution the words of `SKIPS` that fit it."""
    kinds: dict[str, set[str]] = {}
    weighted = list(_weighted(model))
    for place, (name, layer) in enumerate(weighted):
        fits = {"stem": place == 0, "depthwise": is_depthwise(layer), "head": place == len(weighted) - 1}
        kinds[name] = {word for word, fit in fits.items() if fit}
    return kinds


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and linear layers in order of definition."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield name, layer


def _selects(select: str | Callable[[str, nn.Module], bool], name: str, layer: nn.Module) -> bool:
    if callable(select):
        return select(name, layer)
    return select == "auto" or re.search(select, name) is not None


def _replaced(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """The model with another layer of that name; the layer itself if it is the model."""
    if not name:
        return layer
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
    return model
