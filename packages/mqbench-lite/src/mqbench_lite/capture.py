"""A model's forward pass as a graph, by torch.export or, where that fails, by torch.fx."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mqbench_lite.errors import TraceError
from mqbench_lite.functions import lower
from mqbench_lite.graph import LAYERS, Graph
from mqbench_lite.lowering import BATCH, Call, Held, Lowering, Made
from mqbench_lite.operators import run, run_layer, run_norm

HINT = "give it a module of its own and name that in `leaves`: leaves run in float as they are"

AGREES = 1e-4
"""Greatest deviation of the captured graph from the model, as a share of the greatest output."""


@dataclass(frozen=True)
class Captured:
    """A model as a graph, with its numbers.

    Attributes:
        graph: what it computes in evaluation; dropout is left out.
        tensors: parameters and buffers of layers and normalisations (`NAME.weight`, `NAME.bias`, `NAME.mean`,
            `NAME.var`, where NAME is a node's without `#2`) and constants by their nodes' names; parameters are those of
            a copy of the model.
        shapes: of the inputs by name; -1 for the batch.
        owners: for each node the qualified name of the module that called it.
        sizes: shape of each node's tensor; -1 where it depends on the batch.
        model: the copy, in evaluation mode.
        inputs: structure of the positional and keyword arguments.
        outputs: structure of the result; the graph's outputs are its tensors, in order.
    """

    graph: Graph
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    owners: Mapping[str, str]
    sizes: Mapping[str, tuple[int, ...]]
    model: nn.Module
    inputs: pytree.TreeSpec
    outputs: pytree.TreeSpec


def capture(model: nn.Module, example_inputs: Sequence[Any], *, leaves: Sequence[str] = ()) -> Captured:
    """Records what a model computes in evaluation, with a free number of samples.

    The model is copied and stays as it is.

    Args:
        model: any model without control flow that depends on values.
        example_inputs: its positional arguments; tensors have the batch as their first axis.
        leaves: qualified names, or patterns such as `head.*`, of modules that are not looked into: they stay in float.

    Raises:
        TraceError: neither torch.export nor torch.fx can follow the model; the message names the place.
    """
    from mqbench_lite.tracing import trace

    model = copy.deepcopy(model).eval()
    args = tuple(example_inputs)
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(args)):
        raise TraceError("example_inputs", "give a tuple of the model's arguments, with a tensor among them")
    with _without_fast_paths():
        if leaves:
            found = trace(model, args, leaves)
        else:
            try:
                program = _exported(model, args)
            except Exception as reason:
                try:
                    found = trace(model, args)
                except TraceError as error:
                    raise TraceError(*_place(reason, error)) from reason
            else:
                found = _lowered(program, model)
        _check(found, args)
    return found


def evaluate(found: Captured, args: tuple[Any, ...]) -> list[Any]:
    """The outputs of a captured graph in float, in order."""
    given = iter(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
    values: dict[str, Any] = {}
    for node in found.graph:
        inputs, home = [values[name] for name in node.inputs], node.name.partition("#")[0]
        numbers = {key: found.tensors.get(f"{home}.{key}") for key in ("weight", "bias", "mean", "var")}
        if node.op == "input":
            values[node.name] = next(given)
        elif node.op == "constant":
            values[node.name] = found.tensors[node.name]
        elif node.op in LAYERS:
            values[node.name] = run_layer(node, inputs[0], found.tensors[f"{home}.weight"], numbers["bias"])
        elif node.op in ("batch_norm", "layer_norm"):
            values[node.name] = run_norm(node, inputs[0], **numbers)
        else:
            values[node.name] = run(node, inputs)
    return [values[name] for name in found.graph.outputs]


def _check(found: Captured, args: tuple[Any, ...]) -> None:
    """Runs the graph beside the model: what was not understood must not pass unseen.

    Raises:
        TraceError: they differ.
    """
    args = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args)
    ours = evaluate(found, args)
    theirs = [leaf for leaf in pytree.tree_leaves(found.model(*args)) if isinstance(leaf, Tensor)]
    for name, a, b in zip(found.graph.outputs, ours, theirs, strict=True):
        tolerance = AGREES * float(b.abs().max()) if b.numel() and b.is_floating_point() else 0.0
        if a.shape != b.shape or not torch.allclose(a, b, 0, tolerance, equal_nan=True):
            raise TraceError(name, "the captured graph gives other values than the model: are its results random?")


def _exported(model: nn.Module, args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """The model's program in torch's operations, with a free number of samples where the model allows it."""
    auto = torch.export.Dim.AUTO
    args = pytree.tree_map(_two_samples, args)

    def free(leaf: Any) -> Any:
        return {0: auto} if isinstance(leaf, Tensor) and leaf.dim() else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        by_name = dict(inspect.signature(model.forward).bind(*args).arguments)
        program = torch.export.export(model, args, dynamic_shapes=pytree.tree_map(free, by_name), strict=False)
        return program.run_decompositions({}) if _writes_to_views(program.graph) else program


def _two_samples(leaf: Any) -> Any:
    """One sample would be taken for a fixed number of samples."""
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == 1 else leaf


_VIEWS = frozenset(
    [
        *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "slice", "select", "narrow"),
        *("chunk", "split", "split_with_sizes", "unbind", "squeeze", "unsqueeze", "expand", "alias", "detach"),
        *("getitem", "contiguous", "dropout"),
    ]
)


def _writes_to_views(graph: torch.fx.Graph) -> bool:
    """Whether something is written to a tensor of which a view, or whose base, exists beside it."""
    base: dict[torch.fx.Node, torch.fx.Node] = {}
    sizes: dict[torch.fx.Node, int] = {}
    for node in graph.nodes:
        name = _short_name(node.target)
        first = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        inherits = first is not None and (name.rstrip("_") in _VIEWS or name.endswith("_"))
        base[node] = base.get(first, first) if inherits and first is not None else node
        if name.rstrip("_") in _VIEWS and first is not None:
            sizes[base[node]] = sizes.get(base[node], 1) + 1
        elif name.endswith("_") and node.op == "call_function" and sizes.get(base[node], 1) > 1:
            return True
    return False


def _lowered(program: torch.export.ExportedProgram, model: nn.Module) -> Captured:
    """The program's calls as a graph."""
    lowering = Lowering(model)
    signature = program.graph_signature
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    user = set(signature.user_inputs)
    values: dict[torch.fx.Node, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in paths:
                values[node] = Held(paths[node.name], held[paths[node.name]])
            elif node.name in constants:
                values[node] = Held(constants[node.name], program.constants[constants[node.name]])
            elif node.name in user and isinstance(node.meta.get("val"), Tensor):
                values[node] = lowering.input(node.name, _shape(node))
                shapes[values[node].node] = _shape(node)
            else:
                values[node] = node.meta.get("val")
        elif node.op == "call_function":
            if _short_name(node.target) not in _CHECKS:
                values[node] = lower(lowering, _call(node, values))
        elif node.op == "output":
            results = torch.fx.map_arg(node.args[0], lambda each: values[each])
        else:
            raise TraceError(node.name, HINT)
    return captured(
        lowering, model, pytree.tree_leaves(results), shapes, program.call_spec.in_spec, program.call_spec.out_spec
    )


_CHECKS = frozenset(["_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range_for_size"])
"""Functions that give nothing."""


def captured(
    lowering: Lowering,
    model: nn.Module,
    results: Sequence[Any],
    shapes: Mapping[str, tuple[int, ...]],
    inputs: pytree.TreeSpec,
    outputs: pytree.TreeSpec,
) -> Captured:
    """What was recorded, once all calls are lowered."""
    if not all(isinstance(each, Made | Held) for each in results):
        raise TraceError("the output", "return tensors, in a tuple, a list or a dict")
    graph = lowering.graph(results)
    homes = {node.name.partition("#")[0] for node in graph}
    constants = {node.name for node in graph if node.op == "constant"}
    tensors = {
        name: tensor
        for name, tensor in lowering.tensors.items()
        if name in constants or name.rpartition(".")[0] in homes
    }
    sizes = {node.name: lowering.sizes[node.name] for node in graph}
    owners = {node.name: lowering.owners[node.name] for node in graph}
    return Captured(graph, tensors, shapes, owners, sizes, model, inputs, outputs)


def _call(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Call:
    args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda each: values[each])
    name = _short_name(node.target)
    value = node.meta.get("val")
    shape = _shape(node) if isinstance(value, Tensor) else None
    plain = name if name.startswith("__") else name.rstrip("_")
    number = isinstance(value, int | float | torch.SymInt | torch.SymFloat | torch.SymBool)
    owner, source = own_module(node), source_of(node)
    return Call(plain, _functional(node.target), tuple(args), kwargs, owner, plain, shape, source, number)


def _functional(target: Any) -> Any:
    """The operator that does not write to its argument."""
    name = _short_name(target)
    if isinstance(target, torch._ops.OpOverload) and name.endswith("_") and not name.endswith("__"):
        packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None)
        if packet is not None and target._overloadname in packet.overloads():
            return getattr(packet, target._overloadname)
    return target


def _short_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return getattr(target, "__name__", str(target))


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else BATCH for size in node.meta["val"].shape)


def own_module(node: torch.fx.Node) -> str:
    """Qualified name of the innermost module that called a function; empty for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    owner = stack[-1][0].partition("@")[0] if stack else ""
    return "" if owner.startswith("_empty") else owner


def source_of(node: torch.fx.Node) -> str:
    """FILE:LINE of the user's code, or empty: the last frame of the node's stack that is not torch's."""
    frames = [
        line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()[:6] == 'File "'
    ]
    own = [line for line in frames if is_users(line.split('"')[1])] or frames
    if not own:
        return ""
    file, _, rest = own[-1].removeprefix('File "').partition('", line ')
    return f"{file}:{rest.partition(',')[0]}"


def is_users(file: str) -> bool:
    """Whether a file of code is neither torch's, nor this package's machinery, nor that of run-time type checks."""
    machinery = ("/torch/", "/jaxtyping/", "/beartype/", "/mqbench_lite/capture.py", "/mqbench_lite/tracing.py")
    return not file.startswith("<") and not any(part in file for part in machinery)


def _place(reason: Exception, fallback: TraceError) -> tuple[str, str]:
    """Where torch.export gave up, in one line, and what to do."""
    frame, place = reason.__traceback__, ""
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if is_users(file):
            place = f"{file}:{frame.tb_lineno}"
        frame = frame.tb_next
    line = next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
    where = fallback.args[0].removeprefix("the model cannot be captured at ")
    return f"{place or where}: {type(reason).__name__}: {line[:200]}", f"{HINT}; torch.fx gave up at {where}"


@contextlib.contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Attention as it is written, without gradients and without a trace in the random state."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
