"""The second way to a graph: torch.fx follows the Python code, and two batches tell which sizes are the batch's."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- its name everywhere
from torch.utils import _pytree as pytree

from core_utils.errors import one_line
from mqbench_lite.capture import HINT, Captured, captured, is_users, own_module, source_of
from mqbench_lite.errors import TraceError
from mqbench_lite.functions import lower
from mqbench_lite.lowering import BATCH, Call, Held, Lowering


def trace(model: nn.Module, args: tuple[Any, ...], leaves: Sequence[str] = ()) -> Captured:
    """Records a model in evaluation by its Python code.

    Args:
        model: in evaluation mode; it is read, not copied.
        args: example arguments, the batch on the first axis.
        leaves: patterns of modules that are not looked into.

    Raises:
        TraceError: its code does not allow it, or a pattern matches no module.
    """
    tracer = _Tracer(model, leaves)
    try:
        graph = tracer.trace(model)
    except Exception as reason:
        raise TraceError(f"{_last_line(reason)}: {one_line(reason)}", HINT) from reason
    run = _Run(model, args)
    for node in graph.nodes:
        if node.op == "output":
            results = torch.fx.map_arg(node.args[0], lambda each: run.values[each])
            break
        try:
            run.step(node)
        except TraceError:
            raise
        except Exception as reason:
            where = f"{node.name} {source_of(node)}".strip()
            raise TraceError(f"{where}: {one_line(reason)}", HINT) from reason
    flat, outputs = pytree.tree_flatten(results)
    return captured(run.lowering, model, flat, run.shapes, pytree.tree_structure((args, {})), outputs)


class _Tracer(torch.fx.Tracer):
    """Looks into every module but those that the user named and those whose code branches on shapes."""

    def __init__(self, model: nn.Module, leaves: Sequence[str]) -> None:
        super().__init__()
        self.record_stack_traces = True
        paths = [path for path, _ in model.named_modules() if path]
        self.leaves = {path for path in paths for leaf in leaves if fnmatch.fnmatchcase(path, leaf)}
        for leaf in leaves:
            if not fnmatch.filter(paths, leaf):
                raise TraceError(f"leaf {leaf}", "no module has this name; `model.named_modules()` lists them")

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or type(m) in _NORMS  # other people's do more than normalise


class _Run:
    """Runs recorded code on two batches of different size, and lowers every call."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self.model, self.lowering = model, Lowering(model)
        self.values: dict[torch.fx.Node, Any] = {}
        self.real: tuple[dict[torch.fx.Node, Any], dict[torch.fx.Node, Any]] = ({}, {})
        self.shapes: dict[str, tuple[int, ...]] = {}
        longer = pytree.tree_map(_one_sample_more, args)
        self.arguments = (iter(args), iter(longer))

    def step(self, node: torch.fx.Node) -> None:
        """One recorded step."""
        if node.op == "placeholder":
            self._take_argument(node)
            return
        if node.op == "get_attr":
            value = _attribute(self.model, str(node.target))
            for real in self.real:
                real[node] = value
            self.values[node] = Held(str(node.target), value) if isinstance(value, Tensor) else value
            return
        for real in self.real:
            args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), real.__getitem__)
            with torch.no_grad():
                real[node] = self._target(node)(*args, **kwargs)
        one, other = (real[node] for real in self.real)
        if isinstance(one, int | float | str | bool | torch.Size | torch.device | torch.dtype) and one == other:
            self.values[node] = one
        else:
            self.values[node] = lower(self.lowering, self._call(node, one, other))
        self._write_back(node)

    def _take_argument(self, node: torch.fx.Node) -> None:
        for real, arguments in zip(self.real, self.arguments, strict=True):
            missing = node.args[0] if node.args else None
            real[node] = next(arguments, missing)
        one, other = (real[node] for real in self.real)
        self.values[node] = one
        if isinstance(one, Tensor):
            shape = _shape(one, other)
            self.values[node] = self.lowering.input(node.name, shape)
            self.shapes[self.values[node].node] = shape

    def _target(self, node: torch.fx.Node) -> Any:
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))
        if node.op == "call_method":
            return _Method(str(node.target))
        return node.target

    def _call(self, node: torch.fx.Node, one: Any, other: Any) -> Call:
        args, kwargs = torch.fx.map_arg((tuple(node.args), dict(node.kwargs)), self.values.__getitem__)
        kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        shape = _shape(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else None
        owner, source, target = own_module(node), source_of(node), self._target(node)
        if type(target) in _NORMS and not kwargs and target.running_mean is not None:
            path = str(node.target)
            held = {name: _held(path, name, getattr(target, name)) for name in _NORM}
            numbers = (held["running_mean"], held["running_var"], held["weight"], held["bias"])
            given = (*args, *numbers, False, 0.0, target.eps)
            return Call("batch_norm", F.batch_norm, given, {}, path, "batch_norm", shape, source)
        if isinstance(target, nn.Module):
            path, _, own = str(node.target).rpartition(".")
            return Call("<module>", target, args, kwargs, path, own, shape, source)
        name = target.name if isinstance(target, _Method) else getattr(target, "__name__", str(target))
        name = name if name.startswith("__") else name.strip("_")
        if name in _SIZES:  # a number of the batch
            shape = None
        return Call(name, target, args, kwargs, owner, name, shape, source, isinstance(one, int | float))

    def _write_back(self, node: torch.fx.Node) -> None:
        """What is read from a tensor after a write to it is the written."""
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        first = node.args[0] if node.args else None
        writes = (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True
        writes = writes or name in ("iadd", "isub", "imul", "itruediv", "setitem")
        if not writes or not isinstance(first, torch.fx.Node) or not isinstance(self.real[0][first], Tensor):
            return
        if name == "setitem":
            raise TraceError(
                f"{node.name} {source_of(node)}".strip(), "write the assignment as torch.where or torch.cat"
            )
        storage = self.real[0][first].untyped_storage().data_ptr()
        later = set(_after(node))
        for other, value in self.real[0].items():
            if other in (node, first) or not isinstance(value, Tensor) or value is self.real[0][first]:
                continue
            if value.untyped_storage().data_ptr() == storage and not later.isdisjoint(other.users):
                raise TraceError(f"{node.name} {source_of(node)}".strip(), "it writes to a tensor that has views")
        for other, value in self.real[0].items():
            if value is self.real[0][first]:
                self.values[other] = self.values[node]


class _Method:
    """A tensor's method as a function."""

    def __init__(self, name: str) -> None:
        self.name = self.__name__ = name

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.name)(*args, **kwargs)


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORM = ("running_mean", "running_var", "weight", "bias")
_SIZES = frozenset(["size", "getattr", "dim", "numel", "len"])


def _after(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    node = node.next
    while node.op != "root":
        yield node
        node = node.next


def _one_sample_more(leaf: Any) -> Any:
    return torch.cat([leaf, leaf[:1]]) if isinstance(leaf, Tensor) and leaf.dim() else leaf


def _held(path: str, name: str, tensor: Tensor | None) -> Held | None:
    return None if tensor is None else Held(f"{path}.{name}", tensor)


def _attribute(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _shape(one: Tensor, other: Tensor) -> tuple[int, ...]:
    """Sizes that differ between the two batches are the batch's."""
    return tuple(a if a == b else BATCH for a, b in zip(one.shape, other.shape, strict=True))


def _last_line(reason: BaseException) -> str:
    """The innermost line of code outside torch and this package."""
    frame, place = reason.__traceback__, "its first line"
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if is_users(file):
            place = f"{file}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place
