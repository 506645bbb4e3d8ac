"""The paper's networks, and its released weights."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core_utils.errors import UserError
from core_utils.settings import settings
from core_utils.training import read_weights
from snasnet.job import JobConfig, preset_file
from snasnet.networks import SNASNet
from snasnet.specs import DatasetSpec

SPECS = {
    "cifar10": DatasetSpec(3, 32, 10),
    "cifar100": DatasetSpec(3, 32, 100),
    "tinyimagenet": DatasetSpec(3, 64, 200),
}


def preset(name: str) -> dict[str, Any]:
    """Arguments of `SNASNet` for one of the paper's data sets: "cifar10", "cifar100" or "tinyimagenet".

    Raises:
        UserError: another name.
    """
    config = settings(JobConfig, file=preset_file(name))
    return {"spec": SPECS[name], "cell": config.cell, **config.options}


def load_released(path: str | Path, name: str, names: Mapping[str, str] | None = None) -> SNASNet:
    """The network of one of the paper's released weights files.

    What is known of these files: they hold a bare state dict, one tensor a weight, of the network that the preset
    describes. What their tensors are called is not known to us, and none was at hand. So keys that are ours are taken by
    name; otherwise tensors are matched by shape, and those of one shape in the order of both networks: ours has, in a
    cell, edges by target and then by source. Whether the file has the same order shows only in the accuracy: a warning
    says so. `names` ends the guess. The file is read as weights alone, without running anything in it.

    Args:
        path: of the `.pth.tar` or `.pt`.
        name: of the preset that it was trained with.
        names: what the file calls each of our tensors, by our name.

    Raises:
        UserError: a file that cannot be read, tensors that do not fit; says which p2 would.

    Warns:
        UserWarning: tensors were matched by shape and order.
    """
    theirs = _weights(path)
    arguments = preset(name)
    model = SNASNet(**arguments)
    ours = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    _check_pool(path, theirs, model, arguments)
    found: Mapping[str, Tensor | None]
    if names is not None:
        found = {key: theirs.get(names.get(key, key)) for key in ours}
    elif theirs.keys() == ours.keys():
        found = {key: theirs[key] for key in ours}
    else:
        found = _by_shape(path, theirs, ours)
    for key, value in found.items():
        if value is None or value.shape != ours[key].shape:
            raise UserError(
                f"{path} has {'none' if value is None else f'shape {list(value.shape)}'} for {key}, "
                f"shape {list(ours[key].shape)}",
                f"its keys: {', '.join(list(theirs)[:3])}, ...",
            )
    model.load_state_dict(found, strict=False)
    return model


def _weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without counters and without the prefix that data parallelism adds."""
    tensors = read_weights(Path(path)).items()
    return {name: value for name, value in tensors if not name.endswith("num_batches_tracked")}


def _by_shape(path: str | Path, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matches tensors of each shape in their order."""
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for value in theirs.values():
        groups[value.shape].append(value)
    wanted: dict[torch.Size, list[str]] = defaultdict(list)
    for key, value in ours.items():
        wanted[value.shape].append(key)
    for shape in [*wanted, *(shape for shape in groups if shape not in wanted)]:
        if len(groups[shape]) != len(wanted[shape]):
            raise UserError(
                f"{path} has {len(groups[shape])} tensors of shape {list(shape)}, the network {len(wanted[shape])}",
                f"its keys: {', '.join(list(theirs)[:3])}, ...",
            )
    warnings.warn(f"{path}: tensors were matched by shape and order; test the accuracy", stacklevel=3)
    return {key: value for shape, keys in wanted.items() for key, value in zip(keys, groups[shape], strict=True)}


def _check_pool(path: str | Path, theirs: Mapping[str, Tensor], model: SNASNet, arguments: dict[str, Any]) -> None:
    """Says which p2 fits the widest Linear, whose inputs it decides."""
    linear = [value for value in theirs.values() if value.ndim == 2]
    if model.hidden is None or not linear:
        return
    features = max(linear, key=lambda value: value.numel()).shape[1]
    if features == model.hidden.in_features:
        return
    side = math.isqrt(features // (2 * arguments["width"]))
    half = arguments["spec"].shape[0] // (2 * arguments["stem_stride"])
    hint = f"p2={half // side} fits" if side and half % side == 0 else None
    raise UserError(
        f"{path} has a Linear of {features} inputs, p2={arguments['p2']} makes {model.hidden.in_features}", hint
    )
