"""The weights of a network as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from core_utils.errors import UserError


def save_weights(model: nn.Module) -> bytes:
    """The content of a weights file: every tensor of the state dict, by its name."""
    return safetensors.torch.save({name: value.cpu().contiguous() for name, value in model.state_dict().items()})


def load_weights(model: nn.Module, file: Path) -> None:
    """Puts the weights of a file into a network.

    Raises:
        UserError: the file is missing, damaged, or of another network; names the first keys that do not fit.
    """
    try:
        weights = safetensors.torch.load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    put_weights(model, weights, f"{file}")


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Puts named tensors into a network; it changes only if all of them fit.

    Raises:
        UserError: they are those of another network; names the source and the first 5 keys that are missing,
            superfluous or of another shape.
    """
    expected = model.state_dict()
    wrong = [name for name in sorted({*weights, *expected}) if not _fits(weights.get(name), expected.get(name))]
    if wrong:
        raise UserError(f"{source} belongs to another network: {', '.join(wrong[:5])}")
    model.load_state_dict(weights)


def _fits(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape
