"""The tensors of a model that belong to a task, as three flat vectors.

What is frozen never travels. Of the rest, parameters that are trained take the server's optimiser step; floating-point
buffers (running means and variances) are only ever averaged, since an optimiser could make a variance negative; counters
take the largest value; booleans (what was pruned) stay as the server has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedcl.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """One tensor's name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """How many values."""
        return math.prod(self.shape)


@dataclass
class Theta:
    """A task's tensors.

    Attributes:
        trained: parameters, [P]; the head's lie last.
        averaged: floating-point buffers, [Q].
        counted: integer buffers, int64 [R].
    """

    trained: Tensor
    averaged: Tensor
    counted: Tensor

    def clone(self) -> Theta:
        """A copy."""
        return Theta(*(value.clone() for value in self))

    def to(self, device: torch.device | str) -> Theta:
        """The tensors on a device."""
        return Theta(*(value.to(device) for value in self))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.trained, self.averaged, self.counted))


@dataclass(frozen=True)
class Layout:
    """Where a model's tensors lie in the flat vectors.

    Attributes:
        trained: parameters with a gradient, those of the head last.
        averaged: floating-point buffers that belong to the task.
        counted: integer ones.
        head: how many values of `trained` are the head's.
    """

    trained: tuple[Entry, ...]
    averaged: tuple[Entry, ...]
    counted: tuple[Entry, ...]
    head: int

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of a model: every parameter that requires a gradient, and the buffers outside its backbone.

        Raises:
            ConfigError: nothing to train, no head, or parameters of different dtypes.
        """
        parameters = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        if not parameters:
            raise ConfigError("the model has no parameter that requires a gradient")
        dtypes = {value.dtype for _, value in parameters}
        if len(dtypes) > 1:
            raise ConfigError(f"the trained parameters must share one dtype, got {sorted(map(str, dtypes))}")
        head = head_of(model)
        owned = [(name, each) for name, each in parameters if name.startswith(f"{head}.")]
        shared = [(name, each) for name, each in parameters if not name.startswith(f"{head}.")]
        frozen = tuple(f"{name}." for name in getattr(model, "frozen", ()))
        buffers = [(name, each) for name, each in model.named_buffers() if not name.startswith(frozen)]
        return cls(
            trained=_entries(shared + owned),
            averaged=_entries([(name, each) for name, each in buffers if each.is_floating_point()]),
            counted=_entries([(name, each) for name, each in buffers if each.dtype == torch.int64]),
            head=sum(value.numel() for _, value in owned),
        )

    @property
    def size(self) -> int:
        """P: values of all trained parameters."""
        return sum(entry.size for entry in self.trained)

    @property
    def shared(self) -> int:
        """Values of the trained parameters outside the head."""
        return self.size - self.head

    @property
    def bytes(self) -> int:
        """What one transfer of these tensors holds."""
        return sum(e.size * e.dtype.itemsize for e in (*self.trained, *self.averaged, *self.counted))

    @property
    def body(self) -> tuple[tuple[Entry, ...], ...]:
        """All but the head: models with equal bodies can share them."""
        heads = 0
        entries = list(self.trained)
        while heads < self.head:
            heads += entries.pop().size
        return tuple(entries), self.averaged, self.counted

    def read(self, model: nn.Module) -> Theta:
        """A copy of the model's tensors."""
        tensors = _tensors(model)
        return self.flatten({name: tensors[name].detach() for name in self.names})

    def write(self, model: nn.Module, theta: Theta) -> None:
        """Puts tensors into the model, in place."""
        tensors = _tensors(model)
        with torch.no_grad():
            for name, value in self.unflatten(theta).items():
                tensors[name].copy_(value)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors."""
        return tuple(entry.name for entry in (*self.trained, *self.averaged, *self.counted))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Theta:
        """The flat vectors of named tensors."""

        def vector(entries: tuple[Entry, ...], default: torch.dtype) -> Tensor:
            if not entries:
                return torch.empty(0, dtype=default)
            return torch.cat([tensors[entry.name].reshape(-1) for entry in entries])

        return Theta(
            vector(self.trained, torch.float32),
            vector(self.averaged, torch.float32),
            vector(self.counted, torch.int64),
        )

    def unflatten(self, theta: Theta) -> dict[str, Tensor]:
        """Named views of the flat vectors; leading dimensions stay."""
        return {
            **views(theta.trained, self.trained),
            **views(theta.averaged, self.averaged),
            **views(theta.counted, self.counted),
        }


def views(vector: Tensor, entries: tuple[Entry, ...]) -> dict[str, Tensor]:
    """Named views of one flat vector [..., P]; leading dimensions stay."""
    if not entries:
        return {}
    pieces = vector.split([entry.size for entry in entries], dim=-1)
    return {e.name: piece.view((*vector.shape[:-1], *e.shape)) for e, piece in zip(entries, pieces, strict=True)}


def head_of(model: nn.Module) -> str:
    """Name of the module that tells a task's classes apart: the attribute `head`, else the last linear layer.

    Raises:
        ConfigError: there is none.
    """
    named: Any = getattr(model, "head", None)
    if isinstance(named, str):
        return named
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the model has no linear layer that could be its head", "give it an attribute `head`")
    return linear[-1]


def _entries(tensors: list[tuple[str, Tensor]]) -> tuple[Entry, ...]:
    return tuple(Entry(name, tuple(value.shape), value.dtype) for name, value in tensors)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
