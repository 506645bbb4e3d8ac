"""A quantised model as an ONNX file: QuantizeLinear and DequantizeLinear around float operators (QDQ), which engines fuse."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from core_utils.files import write_atomically
from qdrop.errors import ExportError
from qdrop.operators import dequantize, quantize_dequantize
from qdrop.student import ActivationQuantizer, QuantizedModel, QuantizedWeight

OPSETS = range(18, 24)
"""Operator sets that can be written; 21 is the first with 4-bit types."""
FOUR_BITS = 21

DEVIATING = 1e-3
"""Share of the activations that may have another code than in torch: where two engines round a tie apart."""


@dataclass(frozen=True)
class Agreement:
    """How far ONNX Runtime is from the torch model on the example inputs.

    Args:
        deviating: share of all activations whose codes differ.
        steps: largest difference between two codes; one tie in an early layer may move later codes by several.
        activations: how many codes were compared.
        output: largest difference of an output element.
    """

    deviating: float
    steps: int
    activations: int
    output: float


def export_onnx(
    qm: QuantizedModel, path: Path | str, example_inputs: Any, opset: int = 21, verify: bool = True
) -> Agreement | None:
    """Writes the quantised model as ONNX.

    Weights are stored as integers with their step sizes and zero points per channel: in 4-bit types up to 4 bits, else in
    8-bit types. Activations are clipped to their grid and quantised in 8-bit types. The first axis of inputs is dynamic
    where the model allows it.

    Args:
        qm: what `quantize` gave.
        path: file to write.
        example_inputs: inputs as the model takes them: tensor, tuple, or dictionary.
        opset: operator set, 18 to 23; below 21, weights of 4 bits and less are stored in 8-bit types.
        verify: run the file in ONNX Runtime on the example and compare; the file is not written if they disagree.

    Returns:
        The comparison, or None without `verify`.

    Raises:
        ExportError: the extra `onnx` is missing, the operator set is not known, the model cannot be exported, or the
            file gives other outputs.
    """
    onnx = _required("onnx", "onnxscript", *(["onnxruntime"] if verify else []))[0]
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} cannot be written", f"choose {OPSETS.start} to {OPSETS.stop - 1}")
    args, kwargs = _arguments(example_inputs)
    proto = _exported(qm, args, kwargs, opset)
    _pack_narrow_weights(onnx, proto)
    _forget_origins(proto)
    onnx.checker.check_model(proto)
    agreement = _compared(qm, proto, args, kwargs) if verify else None
    if agreement is not None and agreement.deviating > DEVIATING:
        raise ExportError(
            f"ONNX Runtime gives {agreement.deviating:.2%} of the activations another code than torch, by up to "
            f"{agreement.steps} steps; its outputs are off by up to {agreement.output:.3g}"
        )
    write_atomically(Path(path), proto.SerializeToString())
    return agreement


def _required(*names: str) -> list[Any]:
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed", 'pip install "qdrop[onnx]"') from None


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _exported(qm: QuantizedModel, args: tuple[Any, ...], kwargs: dict[str, Any], opset: int) -> Any:
    """The model's ONNX proto, with `Cast` nodes where weights are still to be packed."""
    twin = deepcopy(qm).cpu()
    for quantizer in twin.activations.values():
        quantizer.forward = _as_operator(quantizer)  # type: ignore[method-assign]
    for path, weight in twin.weights.items():
        layer = twin.model.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", _Dequantized(weight), unsafe=True)
        _add_bias_apart(layer)

    def dynamic(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] > 1 else None

    shapes = pytree.tree_map(dynamic, {"args": args, "kwargs": kwargs})
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's exporter warns of its own internals
            program = torch.onnx.export(
                _Callable(twin),
                kwargs={"args": args, "kwargs": kwargs},
                dynamic_shapes=shapes,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                custom_translation_table=_translations(opset),
            )
    except Exception as error:
        cause = error.__cause__ or error
        line = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise ExportError(f"torch cannot export the model to ONNX: {line}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return program.model_proto


def _add_bias_apart(layer: nn.Module) -> None:
    """Adds the layer's bias by a node of its own.

    ONNX Runtime rounds a bias within a quantised convolution to multiples of s_x s_w; at few bits that is a good part of
    a step, and the outputs would no longer be the torch model's.
    """
    if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) or layer.bias is None:
        return
    bias, layer.bias = layer.bias, None

    def add(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        apart = module.get_buffer("bias_apart")
        return output + (apart if isinstance(module, nn.Linear) else apart.view(-1, *[1] * (module.weight.dim() - 2)))

    layer.register_buffer("bias_apart", bias.detach())
    layer.register_forward_hook(add, prepend=True)


class _Callable(nn.Module):
    """The model with one signature for all kinds of inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.model(*args, **kwargs)


class _Dequantized(nn.Module):
    """A layer's weight, computed from its codes whenever it is read.

    Matrices have an axis of length 1 in the file: ONNX Runtime would replace DequantizeLinear and MatMul on a matrix by
    MatMulNBits, which by default rounds the activations to 8 bits of its own choice.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.bits, self.axis, self.matrix = weight.bits, weight.axis, weight.codes.dim() == 2
        for name in ("codes", "scale", "zero_point"):
            self.register_buffer(name, getattr(weight, name).clone())
        self.zero_point = self.zero_point.to(self.codes.dtype)
        self.codes = self.codes.unsqueeze(0) if self.matrix else self.codes

    def forward(self, _: Tensor) -> Tensor:
        if self.matrix:
            return dequantize(self.codes, self.scale, self.zero_point, self.axis + 1, self.bits).squeeze(0)
        return dequantize(self.codes, self.scale, self.zero_point, self.axis, self.bits)


def _as_operator(quantizer: ActivationQuantizer) -> Callable[[Tensor], Tensor]:
    """The quantiser as one node, all of whose numbers are constants."""
    zero_point = quantizer.zero_point.to(torch.int8 if quantizer.qmin < 0 else torch.uint8)
    low, high = ((code - quantizer.zero_point) * quantizer.scale for code in (quantizer.qmin, quantizer.qmax))
    constants = quantizer.scale, zero_point, low, high, quantizer.qmin, quantizer.qmax
    return lambda x: quantize_dequantize(x, *constants)


def _translations(opset: int) -> dict[Any, Any]:
    """How the two operators are written in ONNX."""
    onnx, onnxscript = _required("onnx", "onnxscript")
    op = getattr(onnxscript, f"opset{opset}")
    narrow = {False: onnx.TensorProto.UINT4, True: onnx.TensorProto.INT4} if opset >= FOUR_BITS else {}

    def write_activation(x: Any, scale: Any, zero_point: Any, low: Any, high: Any, qmin: int, qmax: int) -> Any:
        if qmax - qmin < 255:  # the type is wider than the grid
            x = op.Clip(x, low, high)
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)

    def write_weight(codes: Any, scale: Any, zero_point: Any, axis: int, bits: int) -> Any:
        if bits <= 4 and narrow:
            signed = "INT8" in str(codes.dtype) and "UINT8" not in str(codes.dtype)
            codes, zero_point = (op.Cast(each, to=narrow[signed]) for each in (codes, zero_point))
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    return {
        torch.ops.qdrop.quantize_dequantize.default: write_activation,
        torch.ops.qdrop.dequantize.default: write_weight,
    }


def _pack_narrow_weights(onnx: Any, proto: Any) -> None:
    """Stores what is cast to a 4-bit type in that type, two codes a byte, instead of the cast."""
    graph = proto.graph
    initializers = {each.name: each for each in graph.initializer}
    kept = []
    for node in graph.node:
        wanted = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        if wanted not in (onnx.TensorProto.UINT4, onnx.TensorProto.INT4) or node.input[0] not in initializers:
            kept.append(node)
            continue
        codes = onnx.numpy_helper.to_array(initializers[node.input[0]])
        packed = onnx.helper.make_tensor(node.output[0], wanted, codes.shape, codes.flatten().tolist())
        graph.initializer.append(packed)
    used = {name for node in kept for name in node.input} | {each.name for each in graph.output}
    initial = [each for each in graph.initializer if each.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(initial)


def _forget_origins(proto: Any) -> None:
    """Drops the exporter's notes, which are larger than the weights and hold stack traces with local paths."""
    graph = proto.graph
    for each in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del each.metadata_props[:]
        each.doc_string = ""


def _compared(qm: QuantizedModel, proto: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Agreement:
    """Runs both on the example and compares the codes of every activation, and the outputs."""
    onnx, runtime = _required("onnx", "onnxruntime")
    watched = type(proto)()
    watched.CopyFrom(proto)
    quantize = [node for node in watched.graph.node if node.op_type == "QuantizeLinear"]
    for node in quantize:
        watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    session = runtime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    feeds = {each.name: value.cpu().numpy() for each, value in zip(session.get_inputs(), tensors, strict=True)}
    expected, codes = _in_torch(qm, args, kwargs)
    found = session.run(None, feeds)
    pairs = zip(found[len(expected) :], codes, strict=True)
    steps = np.concatenate([np.abs(theirs.astype(np.int32) - ours).ravel() for theirs, ours in pairs] or [np.zeros(0)])
    outputs = [np.abs(theirs - ours).max(initial=0.0) for theirs, ours in zip(found, expected, strict=False)]
    deviating = float((steps > 0).mean()) if steps.size else 0.0
    return Agreement(deviating, int(steps.max(initial=0)), int(steps.size), float(max(outputs)))


def _in_torch(
    qm: QuantizedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs, and the codes of activations in the order in which they are made."""
    codes: list[np.ndarray] = []

    def note(quantizer: Any, _: Any, output: Tensor) -> None:
        codes.append((torch.round(output / quantizer.scale).int() + quantizer.zero_point).cpu().numpy())

    handles = [quantizer.register_forward_hook(note) for quantizer in qm.activations.values()]
    try:
        with torch.no_grad():
            leaves = pytree.tree_leaves(qm(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    return [leaf.cpu().numpy() for leaf in leaves if isinstance(leaf, Tensor)], codes
