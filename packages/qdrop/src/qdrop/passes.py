"""What one forward pass did: its tensors, the functions that made them, and the modules around those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_map

OPAQUE = "<opaque>"
"""Name of what made a tensor that no torch function was seen to make: scripted code, a custom autograd function."""


@dataclass(frozen=True)
class Value:
    """One tensor between two writes to it.

    Args:
        origin: `function`: made during the pass; `input`: given to the model; `parameter`: a parameter of the model;
            `constant`: a buffer, or another tensor that was there before the pass.
        producer: index of the function that made it, or None.
    """

    shape: tuple[int, ...]
    floating: bool
    origin: Literal["function", "input", "parameter", "constant"]
    producer: int | None = None
    itemsize: int = 4


@dataclass(frozen=True)
class Slot:
    """Stands in recorded arguments for the tensor at this position."""

    index: int


@dataclass(frozen=True)
class Replay:
    """A function that was called with one tensor, ready to be called with another."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, x: Tensor) -> Any:
        """Calls the function as it was recorded, with `x` in the tensor's place."""
        args, kwargs = tree_map(lambda leaf: x if isinstance(leaf, Slot) else leaf, (self.args, dict(self.kwargs)))
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Function:
    """One call of a torch function.

    Args:
        call: index of the innermost module call around it; None outside the model.
        ordinal: which call of a function of this name within that module call, submodules included.
        inputs: values among the arguments, positional ones first, in pytree order.
        positional: how many of them are positional.
        outputs: values it returned or wrote to.
        returned: values it returned, in pytree order.
        args: arguments, with a `Slot` for each tensor.
    """

    index: int
    name: str
    function: Callable[..., Any]
    call: int | None
    ordinal: int
    inputs: tuple[int, ...]
    positional: int
    outputs: tuple[int, ...]
    returned: tuple[int, ...] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made(self) -> tuple[int, ...]:
        """Outputs that are not also inputs: dropout in eval mode makes nothing."""
        return tuple(value for value in self.outputs if value not in self.inputs)

    def replay(self) -> Replay:
        """This call as a function of its only tensor."""
        return Replay(self.function, self.args, self.kwargs)


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module.

    Args:
        call: which call of this module in the pass, from 0.
        parent: index of the module call around it, or None.
        inputs: values among args, then kwargs, in pytree order.
        outputs: values among what it returned, in pytree order.
        bare: it returned a tensor, not a structure that holds some.
        first: index of the first function that ran within it; `last` is one past the last one.
    """

    index: int
    path: str
    call: int
    parent: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    first: int
    last: int
    bare: bool = False

    @cached_property
    def span(self) -> range:
        """The functions (by index) that ran within this call."""
        return range(self.first, self.last)


@dataclass(frozen=True)
class Trace:
    """What one forward pass did; values, functions and module calls are told by their index.

    Args:
        parameters: the value of each parameter, by name.
        tensors: the tensor of each value, as the pass left it.
        result: what the model returned.
    """

    values: tuple[Value, ...]
    functions: tuple[Function, ...]
    calls: tuple[ModuleCall, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    parameters: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    result: Any

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each value, the functions that read it and made something of it."""
        found: list[list[int]] = [[] for _ in self.values]
        for function in self.functions:
            if function.made:
                for value in dict.fromkeys(function.inputs):
                    found[value].append(function.index)
        return tuple(map(tuple, found))

    @cached_property
    def calls_of(self) -> dict[str, tuple[ModuleCall, ...]]:
        """The calls of each module that ran, by its path."""
        found: dict[str, tuple[ModuleCall, ...]] = {}
        for call in self.calls:
            found[call.path] = (*found.get(call.path, ()), call)
        return found

    @cached_property
    def learnt(self) -> tuple[bool, ...]:
        """For each value, whether it depends on the model's parameters."""
        learnt = [value.origin == "parameter" for value in self.values]
        for function in self.functions:
            reads = any(learnt[value] for value in function.inputs)
            for value in function.made:
                learnt[value] = reads
        return tuple(learnt)

    @cached_property
    def active(self) -> tuple[bool, ...]:
        """For each value, whether it depends on the model's inputs."""
        active = [value.origin == "input" for value in self.values]
        for function in self.functions:
            reads = any(active[value] for value in function.inputs)
            for value in function.made:
                active[value] = reads
        return tuple(active)

    def around(self, call: int | None) -> Iterator[ModuleCall]:
        """The module call of that index and those around it, from the innermost."""
        while call is not None:
            yield self.calls[call]
            call = self.calls[call].parent
