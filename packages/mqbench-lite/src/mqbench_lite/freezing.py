"""A prepared model's numbers as codes and grids."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mqbench_lite.bn_folding import BatchNorm, QuantLayer, quantises
from mqbench_lite.errors import ExportError, NotCalibratedError
from mqbench_lite.graph import Layer, QParams, QuantizedGraph

if TYPE_CHECKING:
    from mqbench_lite.model import QuantModel

_log = logging.getLogger(__name__)

BIAS_LIMIT = 2**30
"""Greatest bias in steps: a sum that starts there has half of int32 left."""
ON_GRID = 1e-3
"""How far, in steps, a quantised weight may lie from a code, as rounding errors do."""


@torch.no_grad()
def frozen(qm: QuantModel) -> QuantizedGraph:
    """The numbers of a calibrated model; see `QuantModel.freeze`."""
    for name, quantizer in qm.quantizers():
        if not quantises(quantizer):
            raise NotCalibratedError(f"{name} has no range", "calibrate first")
    grids = {name: _grid_of(name, quantizer) for name, quantizer in qm.act_quantizers.items()}
    layers = {}
    for name, layer in qm.layers.items():
        source = qm.sources[qm.graph[name].inputs[0]]
        layers[name] = _layer(name, layer, None if source is None else grids[source])
    constants = {name: array_of(qm.constant(name)) for name in qm.constants}
    for node in qm.graph:
        if node.op in ("batch_norm", "layer_norm"):
            constants.update(_numbers_of(node.name, qm.modules_of[node.name]))
    return QuantizedGraph(
        graph=qm.graph,
        grids=grids,
        layers=layers,
        constants=constants,
        shapes=dict(qm.shapes),
        storage=qm.profile.storage,
        profile=qm.profile.name,
    )


def _layer(name: str, layer: QuantLayer, given: QParams | None) -> Layer:
    """A layer's numbers, its bias in steps where the grid of its input is known and the profile rounds biases."""
    weight, bias = layer.folded()
    quantizer = layer.weight_quantizer
    if quantizer is None:
        return Layer(weight=array_of(weight), bias=None if bias is None else array_of(bias))
    step = None if given is None or not layer.rounds_bias else _like(given.scale, weight)
    if bias is not None and step is not None:
        _raise_steps(name, layer, weight, bias, step)
    codes, scale, zero_point = _codes_of(name, quantizer, weight, layer.axis)
    if bias is None:
        kept = None
    elif step is None:
        kept = array_of(bias)
    else:
        steps = torch.round(bias / (step * layer.channelwise(_like(scale, weight))))
        kept = array_of(steps.to(torch.int64).to(torch.int32))
    return Layer(
        weight=codes.astype(np.int8 if quantizer.qmin < 0 else np.uint8),
        grid=QParams(scale=scale, zero_point=zero_point, qmin=quantizer.qmin, qmax=quantizer.qmax, axis=layer.axis),
        bias=kept,
    )


def _codes_of(name: str, quantizer: Any, weight: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight's codes with the grid that they lie on: codes first, since the grid may follow from the weight."""
    if not getattr(quantizer, "exportable", True):
        raise ExportError(f"{name}: the weights' values lie on no uniform grid", "use another algorithm to export")
    if hasattr(quantizer, "codes"):
        codes = quantizer.codes(weight)
        return array_of(codes), *_numbers(quantizer)
    values = quantizer(weight)
    scale, zero_point = (
        each.reshape([-1 if at == axis else 1 for at in range(weight.dim())]) if each.dim() else each
        for each in (quantizer.scale, quantizer.zero_point)
    )
    codes = torch.round(values / scale) + zero_point
    if float(((codes - zero_point) - values / scale).abs().max()) > ON_GRID:
        raise ExportError(f"{name}: the weights' values lie on no uniform grid", "use another algorithm to export")
    return array_of(codes), *_numbers(quantizer)


def _raise_steps(name: str, layer: QuantLayer, weight: Tensor, bias: Tensor, input_step: Tensor) -> None:
    """Enlarges step sizes of a weight so that no bias is more than `BIAS_LIMIT` steps."""
    quantizer = layer.weight_quantizer
    for _ in range(2):
        quantizer(weight)  # the grid may follow from the weight
        needed = bias.abs() / (input_step * BIAS_LIMIT)
        scale = quantizer.scale.detach().clone()
        short = needed > layer.channelwise(scale)
        if not bool(short.any()):
            return
        channels = short.nonzero().flatten().tolist()
        _log.warning("%s: the step sizes of channels %s grow, so that their biases fit in int32", name, channels)
        per_step = needed.reshape(-1, scale.numel()).amax(0) if scale.dim() else needed.amax()
        larger = torch.maximum(scale, 2 * per_step.reshape(scale.shape))
        if quantizer_sets := getattr(quantizer, "set_grid", None):
            quantizer_sets(larger, quantizer.zero_point.detach().clone())
        else:
            quantizer.scale.data.copy_(larger)
    raise ExportError(f"{name}: the bias of channels {channels} does not fit in int32 steps", "is the channel dead?")


def _grid_of(name: str, quantizer: Any) -> QParams:
    if not getattr(quantizer, "exportable", True):
        raise ExportError(f"{name}: the values lie on no uniform grid", "use another algorithm to export")
    scale, zero_point = _numbers(quantizer)
    shape = () if scale.size == 1 else scale.shape
    return QParams(
        scale=scale.reshape(shape), zero_point=zero_point.reshape(shape), qmin=quantizer.qmin, qmax=quantizer.qmax
    )


def _numbers(quantizer: Any) -> tuple[np.ndarray, np.ndarray]:
    scale = np.asarray(array_of(quantizer.scale), np.float32)
    return scale, np.broadcast_to(np.asarray(array_of(quantizer.zero_point), np.int32), scale.shape).copy()


def _numbers_of(name: str, norm: nn.Module) -> dict[str, np.ndarray]:
    """What a normalisation that stays in float needs."""
    given: dict[str, Any] = {"weight": norm.weight, "bias": norm.bias}
    if isinstance(norm, BatchNorm):
        given |= {"mean": norm.running_mean, "var": norm.running_var}
        like: Any = norm.running_mean
    else:
        like = torch.zeros(tuple(norm.normalized_shape))  # type: ignore[arg-type]
    neutral = {"weight": torch.ones_like(like), "bias": torch.zeros_like(like)}
    return {f"{name}.{key}": array_of(neutral[key] if value is None else value) for key, value in given.items()}


def _like(values: np.ndarray, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.array(values)).to(tensor.device)


def array_of(tensor: Tensor) -> np.ndarray:
    """A copy in NumPy."""
    return tensor.detach().cpu().contiguous().numpy().copy()
