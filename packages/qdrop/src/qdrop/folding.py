"""A copy of the user's model that is ready to be quantised: float32, eval mode, batch norm folded, attention explicit."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_iter, tree_map

from qdrop.attention import ExplicitAttention
from qdrop.errors import PlanError
from qdrop.passes import ModuleCall, Trace
from qdrop.tracing import Forward, run, trace, undisturbed

TOLERANCE = 1e-4
"""Largest change of an output by folding, relative to the output's largest value; rounding alone gives about 1e-6."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
_FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d", "FrozenBatchNorm")
_QUANTISED = ("torch.ao.", "torch.nn.quantized", "torch.quantization", "torchao.", "qdrop.student")


def prepare(model: nn.Module, inputs: Any, forward: Forward | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """Copies the model for quantisation; the model itself is not touched.

    Args:
        model: any eager model, in any mode and floating-point type.
        inputs: example inputs, see `tracing.run`.
        forward: runs the model instead, `forward(model, inputs)`.

    Returns:
        The copy, whose outputs are those of the model in float32 and eval mode, and what the user should know.

    Raises:
        PlanError: the model is quantised already, has complex parameters, cannot be copied or run, or does not give
            the same outputs after folding.
    """
    _check(model)
    try:
        prepared = copy.deepcopy(model)
    except Exception as error:
        hint = "remove weight norm, and whatever else keeps computed tensors as attributes, first"
        raise PlanError(f"{type(model).__name__} cannot be copied: {error}", hint=hint) from error
    prepared.eval().float()
    _bake(prepared)
    inputs = in_float32(inputs)
    notes = _untrained(prepared)
    try:
        before = trace(prepared, inputs, forward)
    except Exception as error:
        raise PlanError(f"{type(model).__name__} does not run on the example inputs: {error}") from error
    if _standardised(prepared, before):
        before = trace(prepared, inputs, forward)
    _fold(prepared, before)
    prepared = _explicit(prepared, before).eval()
    with undisturbed(prepared):
        after = run(prepared, inputs, forward)
    _check_equal(before.result, after)
    return prepared, notes


def in_float32(inputs: Any) -> Any:
    """The inputs with every floating-point tensor in float32."""
    return tree_map(
        lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module scales and shifts each channel by running statistics."""
    frozen = type(module).__name__ in _FROZEN
    return (frozen or isinstance(module, nn.modules.batchnorm._BatchNorm)) and module.running_var is not None


def _check(model: nn.Module) -> None:
    for path, module in model.named_modules():
        home = type(module).__module__
        if home.startswith(_QUANTISED):
            raise PlanError(f"{path or 'the model'} is quantised already ({type(module).__name__})")
        if isinstance(module, torch.jit.ScriptModule):
            raise PlanError(f"{path or 'the model'} is compiled by TorchScript; give the eager model")
    for path, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise PlanError(f"parameter {path} has no shape yet; run the model once")
        if parameter.is_complex():
            raise PlanError(f"parameter {path} is complex; only real weights can be quantised")
        if parameter.is_quantized:
            raise PlanError(f"parameter {path} is quantised already")


def _bake(model: nn.Module) -> None:
    """Makes weights that are computed from others, as `torch.nn.utils.parametrizations` do, plain ones.

    By hand: `remove_parametrizations` takes the weight from the class, which the copy shares with the user's model.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name) for name, _ in module.parametrizations.items()}  # type: ignore[operator, union-attr]
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.detach().clone()))


def _untrained(model: nn.Module) -> tuple[str, ...]:
    found = [
        path
        for path, module in model.named_modules()
        if is_batch_norm(module) and bool((module.running_mean == 0).all() and (module.running_var == 1).all())
    ]
    if not found:
        return ()
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (f"{found[0]}{more}: batch norm that has seen no data (mean 0, variance 1); was the checkpoint loaded?",)


def _standardised(model: nn.Module, traced: Trace) -> bool:
    """Replaces layers that compute their weight from a parameter in every pass by plain ones; whether there were any."""
    found = False
    for path, (call, *_) in traced.calls_of.items():
        layer: Any = model.get_submodule(path)
        plain = next((kind for kind in FOLDABLE if isinstance(layer, kind)), None)
        maker = traced.values[call.outputs[0]].producer if len(call.outputs) == 1 else None
        if plain is None or type(layer) is plain or maker is None or maker not in call.span:
            continue
        given = traced.functions[maker].inputs
        if len(given) < 2 or given[0] not in call.inputs or traced.active[given[1]]:
            continue
        weight = traced.values[given[1]]
        if weight.origin == "function" and weight.shape == tuple(layer.weight.shape):
            value = traced.tensors[given[1]].clone()
            layer.weight = nn.Parameter(value, requires_grad=layer.weight.requires_grad)
            layer.__class__ = plain
            found = True
    return found


def _fold(model: nn.Module, traced: Trace) -> None:
    """Moves every batch norm that can be moved into the layer before it."""
    users = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    for path, norm in list(model.named_modules()):
        layer = _layer_before(model, traced, path) if is_batch_norm(norm) else None
        if layer is None or users[id(layer.weight)] > 1 or (layer.bias is not None and users[id(layer.bias)] > 1):
            continue
        _absorb(layer, norm)
        _replace(model, path, _rest(norm))


def _layer_before(model: nn.Module, traced: Trace, path: str) -> Any:
    """The convolution or linear layer whose output the batch norm alone reads, or None."""
    calls = traced.calls_of.get(path, ())
    if len(calls) != 1 or not calls[0].inputs or not _is_pure(traced, calls[0]):
        return None
    value = calls[0].inputs[0]
    producer = traced.values[value].producer
    if producer is None or value in traced.outputs:
        return None
    if not all(consumer in calls[0].span for consumer in traced.consumers[value]):
        return None
    layer_call = next(traced.around(traced.functions[producer].call), None)
    if layer_call is None or value not in layer_call.outputs or len(traced.calls_of[layer_call.path]) != 1:
        return None
    layer = model.get_submodule(layer_call.path)
    weight = traced.parameters.get(f"{layer_call.path}.weight")
    if not isinstance(layer, FOLDABLE) or weight not in traced.functions[producer].inputs:
        return None
    if isinstance(layer, nn.Linear) and len(traced.values[value].shape) != 2:
        return None
    return layer


def _is_pure(traced: Trace, call: ModuleCall) -> bool:
    """Whether the batch norm's own output depends on nothing but its input and constants."""
    return sum(traced.active[value] for value in call.inputs) == 1


@torch.no_grad()
def _absorb(layer: Any, norm: Any) -> None:
    """Folds w' = w g / sqrt(var + eps) and b' = (b - mean) g / sqrt(var + eps) + beta, in float64."""
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = 0.0 if norm.bias is None else norm.bias.double()
    bias = 0.0 if layer.bias is None else layer.bias.double()
    weight = layer.weight.double()
    if isinstance(layer, TRANSPOSED):  # [in, out / groups, ...]
        groups = weight.unflatten(0, (layer.groups, -1))
        per_group = scale.view(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
        weight = (groups * per_group).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
    requires_grad = layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=requires_grad)
    folded = (bias - norm.running_mean.double()) * scale + shift
    layer.bias = nn.Parameter(folded.to(layer.weight.dtype), requires_grad=requires_grad)


def _rest(norm: nn.Module) -> nn.Module:
    """What a batch norm does after normalising: timm's carries dropout and the activation."""
    parts = {name: part for name, part in norm.named_children() if not isinstance(part, nn.Identity)}
    if not parts:
        return nn.Identity()
    rest = nn.Sequential()
    for name in ("drop", "act"):  # the order in which timm's BatchNormAct2d calls them
        if name in parts:
            rest.add_module(name, parts[name])
    return rest


def _explicit(model: nn.Module, traced: Trace) -> nn.Module:
    """Replaces every `nn.MultiheadAttention`."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        if type(module) is nn.MultiheadAttention:
            calls = traced.calls_of.get(path, ())
            packed = all(len(set(call.inputs[:3])) == 1 for call in calls)
            explicit = ExplicitAttention(module, packed=packed)
            if not path:
                return explicit
            _replace(model, path, explicit)
    return model


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Puts a module in another's place, under each name that it has."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def _check_equal(before: Any, after: Any) -> None:
    pairs = [
        [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for result in (before, after)
    ]
    if [leaf.shape for leaf in pairs[0]] != [leaf.shape for leaf in pairs[1]]:
        raise PlanError(
            "the model's outputs have other shapes when it is run again; they must depend on its inputs alone"
        )
    for index, (old, new) in enumerate(zip(*pairs, strict=True)):
        differs = (old != new) & ~(old.isnan() & new.isnan())
        if not differs.any():
            continue
        change = float((old - new)[differs].abs().max() / old[old.isfinite()].abs().max().clamp_min(1e-12))
        if not change <= TOLERANCE:
            raise PlanError(
                f"folding batch norm changed output {index} by {change:.1e} relative (limit {TOLERANCE:.0e})"
            )
