"""The paper's networks, and its released weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core_utils.errors import UserError
from snasnet.networks import SNASNet
from snasnet.specs import DatasetSpec

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {"spec": DatasetSpec(3, 32, 10), "cell": "0303 0030 2002 0200", "width": 256, "p2": 4, "group": 10},
    "cifar100": {"spec": DatasetSpec(3, 32, 100), "cell": "0302 0030 3003 0000", "width": 128, "p2": 2, "group": 5},
    "tinyimagenet": {  # no cell was released; CIFAR-100's has the parameters of the specification
        "spec": DatasetSpec(3, 64, 200),
        "cell": "0302 0030 3003 0000",
        "width": 128,
        "p2": 2,
        "hidden": 4096,
        "group": 5,
        "stem_stride": 2,
    },
}
"""Arguments of `SNASNet` by data set: spec section 2.3, read in the released code."""


def preset(name: str) -> dict[str, Any]:
    """Arguments of `SNASNet` for one of the paper's data sets: "cifar10", "cifar100" or "tinyimagenet".

    Raises:
        UserError: another name.
    """
    if name not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return {"hidden": 1024, "T": 5, **PRESETS[name]}


def load_released(path: str | Path, name: str, names: Mapping[str, str] | None = None) -> SNASNet:
    """The network of a released weights file.

    The file is read as weights alone, without running anything in it. Names are never guessed: many tensors share
    their shape.

    Args:
        path: of the `.pth.tar` or `.pt`.
        name: of the preset that it was trained with.
        names: what the file calls each of our tensors, by our name; None if it uses ours.

    Raises:
        UserError: a file that cannot be read, tensors that do not fit; says which p2 would.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file fails in many ways
        raise UserError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:200]}") from None
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else {}
    tensors = {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights")
    arguments = preset(name)
    model = SNASNet(**arguments)
    _check_pool(path, tensors, model, arguments)
    expected = model.state_dict()
    state = {name: tensors.get((names or {}).get(name, name)) for name in expected}
    for name, value in state.items():
        if value is None or value.shape != expected[name].shape:
            found = "none" if value is None else f"shape {list(value.shape)}"
            raise UserError(
                f"{path} has {found} for {name}, shape {list(expected[name].shape)}",
                f"give `names` for its keys: {', '.join(list(tensors)[:3])}, ...",
            )
    model.load_state_dict(state)
    return model


def _check_pool(path: str | Path, tensors: dict[str, Tensor], model: SNASNet, arguments: dict[str, Any]) -> None:
    """Says which p2 fits the widest Linear, whose inputs it decides."""
    linear = [value for value in tensors.values() if value.ndim == 2]
    if model.hidden is None or not linear:
        return
    if max(linear, key=lambda value: value.numel()).shape == model.hidden.weight.shape:
        return
    features = max(linear, key=lambda value: value.numel()).shape[1]
    spec, stride = arguments["spec"], arguments.get("stem_stride", 1)
    side = math.isqrt(features // (2 * arguments["width"]))
    half = spec.shape[0] // (2 * stride)
    hint = f"p2={half // side} fits" if side and half % side == 0 else None
    raise UserError(
        f"{path} has a Linear of {features} inputs, p2={arguments['p2']} makes {model.hidden.in_features}", hint
    )
