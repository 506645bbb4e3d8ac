"""Any `state_dict` as named arrays plus JSON facts, and back without loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch


@runtime_checkable
class Stateful(Protocol):
    """Whatever can save and restore itself: a sparsity controller, an EMA, a scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes over what `state_dict` gave."""
        ...


def encode(value: Any, tensors: dict[str, np.ndarray], path: str) -> Any:
    """JSON for `value`; its tensors and arrays are put into `tensors` under paths.

    Args:
        value: nested dictionaries, lists and tuples of tensors, arrays and plain values.
        tensors: filled by this call.
        path: prefix of the names in `tensors`.

    Raises:
        TypeError: a value of another type.
    """
    match value:
        case torch.Tensor():
            flat = value.detach().cpu().contiguous()
            half = flat.dtype == torch.bfloat16  # NumPy has no bfloat16
            tensors[path] = (flat.view(torch.int16) if half else flat).numpy().copy()
            return {"tensor": path, "dtype": str(value.dtype).removeprefix("torch.")}
        case np.ndarray():
            tensors[path] = value.copy()
            return {"array": path}
        case Mapping():
            return {"dict": [[key, encode(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
        case list() | tuple():
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [encode(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]}
        case float() if not math.isfinite(value):
            return {"float": repr(value)}
        case np.generic():
            return encode(value.item(), tensors, path)
        case bool() | int() | float() | str() | None:
            return value
    raise TypeError(f"{path} holds a {type(value).__name__}, which a state cannot keep")


def decode(facts: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The value that `encode` was given; tensors are on the CPU."""
    if not isinstance(facts, dict):
        return facts
    if "tensor" in facts:
        tensor = torch.from_numpy(np.array(tensors[facts["tensor"]]))
        return tensor.view(torch.bfloat16) if facts["dtype"] == "bfloat16" else tensor
    if "array" in facts:
        return np.array(tensors[facts["array"]])
    if "float" in facts:
        return float(facts["float"])
    if "dict" in facts:
        return {key: decode(item, tensors) for key, item in facts["dict"]}
    if "list" in facts:
        return [decode(item, tensors) for item in facts["list"]]
    return tuple(decode(item, tensors) for item in facts["tuple"])
