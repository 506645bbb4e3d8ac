"""Writes down one eager forward pass: which modules ran, which functions they called, which tensors went where."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_iter, tree_map
from torch.utils.hooks import RemovableHandle

from qdrop.passes import OPAQUE, Function, ModuleCall, Slot, Trace, Value
from qdrop.sites import function_name

Forward = Callable[[nn.Module, Any], Any]


def run(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Any:
    """What the model returns for the inputs: a tensor or a list is its one argument, a tuple or a dict its arguments."""
    if forward is not None:
        return forward(model, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def trace(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Trace:
    """Runs the model once and writes down what happened; the model, its hooks and the random state stay as they were.

    Args:
        model: any eager model.
        inputs: what it is given, see `run`.
        forward: runs the model instead, `forward(model, inputs)`.
    """
    recorder = _Recorder(model, inputs)
    with undisturbed(model):
        handles: list[RemovableHandle] = []
        try:
            for path, module in model.named_modules():
                handles += recorder.watch(path, module)
            with recorder:
                result = run(model, inputs, forward)
        finally:
            for handle in handles:
                handle.remove()
        return recorder.finish(result)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """No gradients, no fused attention, and the random state restored at the end."""
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices=sorted(device.index for device in devices)), torch.no_grad():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


@dataclass
class _Frame:
    """A module call that is under way."""

    index: int
    counts: Counter[str] = field(default_factory=Counter)


class _Recorder(TorchFunctionMode):
    """Sees every function and module call; a tensor is told by its id and version, and kept so that ids stay unique."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.functions: list[Function] = []
        self.calls: list[ModuleCall] = []
        self.stack: list[_Frame] = []
        self.seen: dict[tuple[int, int], int] = {}
        self.kept: list[Tensor] = []
        self.called: Counter[str] = Counter()
        self.parameters: dict[str, int] = {}
        for name, tensor in model.named_parameters(remove_duplicate=False):
            known = self.seen.get(_key(tensor))
            self.parameters[name] = self.add(tensor, "parameter") if known is None else known
        for module in model.modules():
            for tensor in tree_iter(({**vars(module), "_modules": None}, dict(module._buffers))):
                if isinstance(tensor, Tensor) and _key(tensor) not in self.seen:
                    self.add(tensor, "constant")
        given = [leaf for leaf in tree_iter(inputs) if isinstance(leaf, Tensor)]
        self.inputs = tuple(dict.fromkeys(self.add(tensor, "input") for tensor in given))

    def add(self, tensor: Tensor, origin: str, producer: int | None = None) -> int:
        """A new value."""
        self.kept.append(tensor)
        shape, floating = tuple(tensor.shape), tensor.is_floating_point()
        self.values.append(Value(shape, floating, origin, producer, tensor.element_size()))  # type: ignore[arg-type]
        self.seen[_key(tensor)] = len(self.values) - 1
        return len(self.values) - 1

    def look_up(self, tensor: Tensor) -> int:
        """The tensor's value; one that no function was seen to make may come from all that its module has seen.

        Where that is nothing, it came with the inputs, in a structure that is no pytree.
        """
        value = self.seen.get(_key(tensor))
        if value is not None:
            return value
        older = [
            self.seen[id(tensor), version] for version in range(tensor._version) if (id(tensor), version) in self.seen
        ]
        call = self.calls[self.stack[-1].index] if self.stack else None
        made = [value for function in self.functions[call.first if call else 0 :] for value in function.made]
        sources = tuple(dict.fromkeys((*older[-1:], *(call.inputs if call else self.inputs), *made)))
        return self.derive(tensor, sources) if sources else self.add(tensor, "input")

    def derive(self, tensor: Tensor, sources: tuple[int, ...]) -> int:
        """The value of a tensor that was made, or written to through a view, out of sight."""
        index, call = len(self.functions), self.stack[-1].index if self.stack else None
        value = self.add(tensor, "function", index)
        self.functions.append(Function(index, OPAQUE, _opaque, call, 0, sources, len(sources), (value,), (value,)))
        return value

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(function)
        call, ordinal = (self.stack[-1].index, self.stack[-1].counts[name]) if self.stack else (None, 0)
        for frame in self.stack:
            frame.counts[name] += 1
        positional, _ = tree_flatten(args)
        leaves = [leaf for leaf in (*positional, *tree_iter(kwargs)) if isinstance(leaf, Tensor)]
        inputs = tuple(self.look_up(tensor) for tensor in leaves)
        versions = [tensor._version for tensor in leaves]
        result = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
        written = [tensor for tensor, version in zip(leaves, versions, strict=True) if tensor._version != version]
        if outputs or written:
            index, origin = len(self.functions), "function" if inputs else "constant"
            found = tuple(self.made(tensor, origin, index) for tensor in (*outputs, *written))
            slots = iter(range(len(leaves)))
            args, kwargs = tree_map(
                lambda leaf: Slot(next(slots)) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
            )
            count = sum(isinstance(leaf, Tensor) for leaf in positional)
            unique, returned = tuple(dict.fromkeys(found)), found[: len(outputs)]
            self.functions.append(
                Function(index, name, function, call, ordinal, inputs, count, unique, returned, args, kwargs)
            )
        return result

    def made(self, tensor: Tensor, origin: str, producer: int) -> int:
        """The value of a function's output, which may be one of its inputs."""
        value = self.seen.get(_key(tensor))
        return self.add(tensor, origin, producer) if value is None else value

    def watch(self, path: str, module: nn.Module) -> list[RemovableHandle]:
        """Hooks that record the calls of a module."""

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():
                if not self.stack:
                    given = (leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor))
                    unknown = {_key(leaf): leaf for leaf in given if _key(leaf) not in self.seen}
                    self.inputs = (*self.inputs, *(self.add(leaf, "input") for leaf in unknown.values()))
                inputs = self.tensors((args, kwargs))
                parent = self.stack[-1].index if self.stack else None
                call = self.called[path]
                self.called[path] += 1
                first = len(self.functions)
                self.calls.append(ModuleCall(len(self.calls), path, call, parent, inputs, (), first, first))
                self.stack.append(_Frame(len(self.calls) - 1))

        def leave(_: nn.Module, __: Any, result: Any) -> None:
            with torch._C.DisableTorchFunction():
                outputs = self.tensors(result)
                index = self.stack.pop().index
                last, bare = len(self.functions), isinstance(result, Tensor)
                self.calls[index] = replace(self.calls[index], outputs=outputs, last=last, bare=bare)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]

    def tensors(self, tree: Any) -> tuple[int, ...]:
        return tuple(self.look_up(leaf) for leaf in tree_iter(tree) if isinstance(leaf, Tensor))

    def finish(self, result: Any) -> Trace:
        """The trace of a pass that returned `result`."""
        outputs = self.tensors(result)
        return Trace(
            values=tuple(self.values),
            functions=tuple(self.functions),
            calls=tuple(self.calls),
            inputs=self.inputs,
            outputs=outputs,
            parameters=self.parameters,
            tensors=tuple(self.kept),
            result=result,
        )


def _key(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


def _opaque(*_: Any) -> Any:
    raise NotImplementedError("what made this tensor was not seen")
