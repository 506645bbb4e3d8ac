"""The weights of a network as a safetensors file, and of other people's networks in PyTorch's format."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from core_utils.errors import UserError, one_line


def save_weights(model: nn.Module) -> bytes:
    """The content of a weights file: every tensor of the state dict, by its name."""
    return safetensors.torch.save({name: value.cpu().contiguous() for name, value in model.state_dict().items()})


def load_weights(model: nn.Module, file: Path) -> None:
    """Puts the weights of a file into a network.

    Raises:
        UserError: the file is missing, damaged, or of another network; names the first keys that do not fit.
    """
    put_weights(model, read_weights(file), f"{file}")


def read_weights(file: Path, *, error: type[UserError] = UserError) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Args:
        file: `.safetensors`, or PyTorch's own format, of which nothing but tensors and plain containers is read; in it
            the state dictionary may lie under `state_dict` or `model`, and every key may begin with `module.`.
        error: what to raise.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load(file.read_bytes())
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as cause:
        raise error(f"{file} cannot be read: {cause.strerror or cause}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as cause:
        hint = "it is truncated, damaged, or holds more than tensors"
        raise error(f"{file} cannot be read: {one_line(cause)}", hint) from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise error(f"{file} holds no state dictionary", "save model.state_dict()")
    prefix = "module." if all(str(key).startswith("module.") for key in found) else ""
    return {str(key).removeprefix(prefix): value for key, value in found.items()}


def put_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, *, error: type[UserError] = UserError
) -> None:
    """Puts named tensors into a network; it changes only if all of them fit.

    Args:
        model: changed in place.
        weights: by the names of its state dict.
        source: of the weights, for the message.
        error: what to raise.

    Raises:
        UserError: they are those of another network; names the source and the first 5 keys that are missing,
            superfluous or of another shape.
    """
    expected = model.state_dict()
    wrong = [name for name in sorted({*weights, *expected}) if not _fits(weights.get(name), expected.get(name))]
    if wrong:
        raise error(f"{source} belongs to another network: {', '.join(wrong[:5])}")
    model.load_state_dict(weights)


def _fits(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape
