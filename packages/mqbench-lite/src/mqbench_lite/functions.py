"""Calls of torch's functions as operations of a graph, whoever recorded them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mqbench_lite.lowering import BATCH, Call, Held, Lowering, Made, spatial_axes, tuple_of
from mqbench_lite.reshaping import SHAPING


def lower(lowering: Lowering, call: Call) -> Any:
    """Adds the nodes of a call and returns what stands for its result."""
    if _is_known(call):
        return _computed(lowering, call)
    made = _LOWERINGS[call.name](lowering, call) if call.name in _LOWERINGS else None
    return lowering.opaque(call) if made is None else made


def _is_known(call: Call) -> bool:
    """Whether a call has tensors among its arguments, all of them known at capture, and is not random."""
    leaves = pytree.tree_leaves((call.args, dict(call.kwargs)))
    if any(isinstance(leaf, Made | nn.Module) for leaf in leaves) or isinstance(call.target, nn.Module):
        return False
    return torch.Tag.nondeterministic_seeded not in getattr(call.target, "tags", ())


@torch.no_grad()
def _computed(lowering: Lowering, call: Call) -> Any:
    """The result of a call at capture."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.tensor if isinstance(leaf, Held) else leaf, (call.args, dict(call.kwargs))
    )
    path = lowering.name_of(call)
    result = call.target(*args, **kwargs)
    return pytree.tree_map(lambda leaf: Held(path, leaf.detach()) if isinstance(leaf, Tensor) else leaf, result)


def _convolution(lowering: Lowering, call: Call) -> Made | None:
    """F.conv1d to F.conv3d."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if not isinstance(weight, Held) or not isinstance(bias, Held | None) or not isinstance(x, Made):
        return None
    axes = weight.tensor.dim() - 2
    stride, padding, dilation = (
        tuple_of(call.argument(at, name, default), axes)
        for at, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if padding in ("same", "valid"):
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.tensor.shape[2:], strict=True)
        ]
        if any(each % 2 for each in total):  # torch pads one more at the end
            pads = tuple(half for each in reversed(total) for half in (each // 2, each - each // 2))
            shape = (*x.shape[:2], *(size + each for size, each in zip(x.shape[2:], total, strict=True)))
            x, total = lowering.emit(call, "pad", [x], shape, pads=pads, value=0.0), [0] * axes
        padding = tuple(each // 2 for each in total)
    groups = call.argument(6, "groups", 1)
    return _layer(
        lowering, call, "conv", x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


def _transposed_convolution(lowering: Lowering, call: Call) -> Made | None:
    """F.conv_transpose1d to F.conv_transpose3d."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if not isinstance(weight, Held) or not isinstance(bias, Held | None) or not isinstance(x, Made):
        return None
    axes = weight.tensor.dim() - 2
    attributes = {
        name: tuple_of(call.argument(at, name, default), axes)
        for at, name, default in (
            (3, "stride", 1),
            (4, "padding", 0),
            (5, "output_padding", 0),
            (7, "dilation", 1),
        )
    }
    return _layer(lowering, call, "conv_transpose", x, weight, bias, **attributes, groups=call.argument(6, "groups", 1))


def _linear(lowering: Lowering, call: Call) -> Made | None:
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if not isinstance(weight, Held) or not isinstance(bias, Held | None) or not isinstance(x, Made):
        return None
    return _layer(lowering, call, "linear", x, weight, bias)


def _layer(
    lowering: Lowering, call: Call, op: str, x: Made, weight: Held, bias: Held | None, **attributes: Any
) -> Made:
    tensors = {"weight": weight.tensor, "bias": None if bias is None else bias.tensor}
    name = lowering.layer_name(_home(lowering, call, weight), tensors, attributes)
    return lowering.add(name, op, [x], attributes, call)


def _home(lowering: Lowering, call: Call, held: Held) -> str:
    """The module whose `weight` or `running_mean` a tensor is, or the tensor's own name."""
    for name in ("weight", "running_mean"):
        if call.owner and getattr(lowering.model.get_submodule(call.owner), name, None) is held.tensor:
            return call.owner
    owner, _, name = held.path.rpartition(".")
    return owner if owner and name in ("weight", "running_mean") else held.path


def _batch_norm(lowering: Lowering, call: Call) -> Made | None:
    x = call.argument(0, "input")
    if call.name == "batch_norm" and getattr(call.target, "namespace", "") != "aten":  # torch.nn.functional.batch_norm
        at = {"mean": (1, "running_mean"), "var": (2, "running_var"), "weight": (3, "weight"), "bias": (4, "bias")}
        training, eps = call.argument(5, "training", False), call.argument(7, "eps", 1e-5)
    else:
        at = {"weight": (1, "weight"), "bias": (2, "bias"), "mean": (3, "running_mean"), "var": (4, "running_var")}
        frozen = call.name.startswith("_native")
        training = False if frozen else call.argument(5, "training", False)
        eps = call.argument(6 if frozen else 7, "eps", 1e-5)
    held = {key: call.argument(*where) for key, where in at.items()}
    if training or not isinstance(x, Made) or any(not isinstance(each, Held | None) for each in held.values()):
        return None
    tensors = {key: None if each is None else each.tensor for key, each in held.items()}
    if tensors["mean"] is None or tensors["var"] is None:
        return None
    name = lowering.layer_name(_home(lowering, call, held["mean"]), tensors, {"eps": eps})
    return _first(call, lowering.add(name, "batch_norm", [x], {"eps": eps}, call, x.shape))


def _layer_norm(lowering: Lowering, call: Call) -> Made | None:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    weight, bias, eps = call.argument(2, "weight"), call.argument(3, "bias"), call.argument(4, "eps", 1e-5)
    if not isinstance(x, Made) or not isinstance(weight, Held | None) or not isinstance(bias, Held | None):
        return None
    tensors = {"weight": None if weight is None else weight.tensor, "bias": None if bias is None else bias.tensor}
    attributes = {"shape": tuple(shape), "eps": eps}
    path = lowering.name_of(call) if weight is None else _home(lowering, call, weight)
    name = lowering.layer_name(path, tensors, attributes)
    return _first(call, lowering.add(name, "layer_norm", [x], attributes, call, x.shape))


def _first(call: Call, made: Made) -> Any:
    """The result in the structure that the function returns: some return statistics with it."""
    return (made, None, None) if call.name.startswith(("_native", "native")) else made


def _unary(op: str) -> Callable[[Lowering, Call], Made | None]:
    return lambda lowering, call: lowering.emit(call, op, [call.argument(0, "input")])


def _gelu(lowering: Lowering, call: Call) -> Made:
    return lowering.emit(call, "gelu", [call.argument(0, "input")], approximate=call.kwargs.get("approximate", "none"))


def _clamp(lowering: Lowering, call: Call) -> Made | None:
    names = ("min_val", "max_val") if call.name == "hardtanh" else ("min", "max")
    default = (-1.0, 1.0) if call.name == "hardtanh" else (None, None)
    if call.name == "clamp_min":
        low, high = call.argument(1, "min"), None
    elif call.name == "clamp_max":
        low, high = None, call.argument(1, "max")
    else:
        low, high = call.argument(1, names[0], default[0]), call.argument(2, names[1], default[1])
    if isinstance(low, Made | Held) or isinstance(high, Made | Held):
        return None
    return _clip(lowering, call, low, high)


def _clip(lowering: Lowering, call: Call, low: float | int | None, high: float | int | None) -> Made:
    x = call.argument(0, "input")
    if low == 0 and high is None:
        return lowering.emit(call, "relu", [x])
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return lowering.emit(call, "clip", [x], low=low, high=high)


def _softmax(lowering: Lowering, call: Call) -> Made | None:
    axis = call.argument(1, "dim")
    if axis is None or call.kwargs.get("dtype") is not None:
        return None
    return lowering.emit(call, "softmax", [call.argument(0, "input")], axis=axis)


def _binary(op: str) -> Callable[[Lowering, Call], Made | None]:
    def lower(lowering: Lowering, call: Call) -> Made | None:
        a, b = call.argument(0, "input"), call.argument(1, "other")
        if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("rounding_mode") is not None:
            return None
        if call.shape is None:  # numbers, such as sizes
            return None
        if call.name == "rsub":
            a, b = b, a
        return lowering.emit(call, op, [_operand(lowering, call, a), _operand(lowering, call, b)])

    return lower


def _operand(lowering: Lowering, call: Call, value: Any) -> Made | Held:
    """A tensor; a number becomes a constant."""
    if isinstance(value, Made | Held):
        return value
    return Held(f"{lowering.name_of(call)}.number", torch.tensor(value, dtype=torch.float32))


def _matmul(lowering: Lowering, call: Call) -> Made:
    return lowering.emit(call, "matmul", [call.args[0], call.argument(1, "other", call.kwargs.get("mat2"))])


def _attention(lowering: Lowering, call: Call) -> Made | None:
    """softmax(q k^T scale + mask) v, in operations that can be quantised."""
    query, key, value = (call.argument(at, name) for at, name in enumerate(("query", "key", "value")))
    mask, scale = call.argument(3, "attn_mask"), call.kwargs.get("scale")
    if not all(isinstance(each, Made) for each in (query, key, value)) or call.kwargs.get("enable_gqa", False):
        return None
    if call.argument(5, "is_causal", False):
        length, total = query.shape[-2], key.shape[-2]
        mask = Held(call.own_name + ".causal", torch.full((length, total), -math.inf).triu(1))
    if isinstance(mask, Held) and mask.tensor.dtype is torch.bool:
        mask = Held(mask.path, torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, -math.inf))
    elif isinstance(mask, Made):
        return None  # its type is not known here
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    axes = tuple(range(len(key.shape)))
    turned = lowering.emit(
        call,
        "permute",
        [key],
        (*key.shape[:-2], key.shape[-1], key.shape[-2]),
        axes=(*axes[:-2], axes[-1], axes[-2]),
    )
    shape = (*query.shape[:-1], key.shape[-2])
    scaled = lowering.emit(call, "mul", [query, _operand(lowering, call, scale)], query.shape)
    scores = lowering.emit(call, "matmul", [scaled, turned], shape)
    if mask is not None:
        scores = lowering.emit(call, "add", [scores, mask], shape)
    weights = lowering.emit(call, "softmax", [scores], shape, axis=-1)
    return lowering.emit(call, "matmul", [weights, value])


def _max_pool(lowering: Lowering, call: Call) -> Any:
    axes = spatial_axes(call)
    kernel = tuple_of(call.argument(1, "kernel_size"), axes)
    made = lowering.emit(
        call,
        "max_pool",
        [call.argument(0, "input")],
        kernel=kernel,
        stride=tuple_of(call.argument(2, "stride") or kernel, axes),
        padding=tuple_of(call.argument(3, "padding", 0), axes),
        dilation=tuple_of(call.argument(4, "dilation", 1), axes),
        ceil=bool(call.argument(5, "ceil_mode", False)),
    )
    return (made, None) if call.name.endswith("_with_indices") else made


def _avg_pool(lowering: Lowering, call: Call) -> Made | None:
    axes = spatial_axes(call)
    kernel = tuple_of(call.argument(1, "kernel_size"), axes)
    if call.argument(6, "divisor_override") is not None:
        return None
    return lowering.emit(
        call,
        "avg_pool",
        [call.argument(0, "input")],
        kernel=kernel,
        stride=tuple_of(call.argument(2, "stride") or kernel, axes),
        padding=tuple_of(call.argument(3, "padding", 0), axes),
        ceil=bool(call.argument(4, "ceil_mode", False)),
        count_padding=bool(call.argument(5, "count_include_pad", True)),
    )


def _adaptive_pool(lowering: Lowering, call: Call) -> Any:
    """An average over the whole plane, or a pool whose windows are all alike; None if they are not."""
    x, axes = call.argument(0, "input"), spatial_axes(call)
    wanted = tuple_of(call.argument(1, "output_size"), axes)
    sizes = x.shape[-axes:]
    wanted = tuple(size if each is None else each for size, each in zip(sizes, wanted, strict=True))
    if any(size == BATCH or size % each for size, each in zip(sizes, wanted, strict=True)):
        return None
    if wanted == sizes:
        return x  # type: ignore[no-any-return]
    kernel = tuple(size // each for size, each in zip(sizes, wanted, strict=True))
    zero = (0,) * axes
    if "max" in call.name:
        shape = (*x.shape[:-axes], *wanted)
        made = lowering.emit(
            call, "max_pool", [x], shape, kernel=kernel, stride=kernel, padding=zero, dilation=(1,) * axes, ceil=False
        )
        return made if call.shape is not None else (made, None)  # torch's own operator gives indices, too
    if set(wanted) == {1}:
        first = len(x.shape) - axes
        return lowering.emit(call, "mean", [x], axes=tuple(range(first, first + axes)), keep=True)
    return lowering.emit(
        call, "avg_pool", [x], kernel=kernel, stride=kernel, padding=zero, ceil=False, count_padding=True
    )


def _mean(lowering: Lowering, call: Call) -> Made | None:
    x, axes = call.argument(0, "input"), call.argument(1, "dim")
    if axes is None or call.kwargs.get("dtype") is not None:
        return None
    rank = len(x.shape)
    axes = tuple(sorted(axis % rank for axis in ([axes] if isinstance(axes, int) else axes)))
    return lowering.emit(call, "mean", [x], axes=axes, keep=bool(call.argument(2, "keepdim", False)))


def _nothing(_: Lowering, call: Call) -> Any:
    """Functions that leave the values alone, as dropout does in evaluation."""
    made = call.argument(0, "input")
    return (made, None) if call.name == "native_dropout" else made


def _conversion(_: Lowering, call: Call) -> Any:
    """A change of type or device counts as none between floating types."""
    kinds = [each for each in (*call.args[1:], *call.kwargs.values()) if isinstance(each, torch.dtype)]
    return call.args[0] if all(kind.is_floating_point for kind in kinds) else None


_WITHOUT_EFFECT = (
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "native_dropout"),
    *("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "float", "stochastic_depth"),
)

_LOWERINGS: dict[str, Callable[[Lowering, Call], Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **{name: _unary(name) for name in ("relu", "sigmoid", "tanh", "silu", "hardsigmoid", "hardswish")},
    "gelu": _gelu,
    **dict.fromkeys(("clamp", "clip", "hardtanh", "clamp_min", "clamp_max"), _clamp),
    "relu6": lambda lowering, call: _clip(lowering, call, 0.0, 6.0),
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    **{name: _binary(name) for name in ("add", "sub", "mul", "div")},
    **{name: _binary("sub") for name in ("rsub", "subtract")},
    "multiply": _binary("mul"),
    "truediv": _binary("div"),
    "divide": _binary("div"),
    "true_divide": _binary("div"),
    **{f"i{name}": _binary(name) for name in ("add", "sub", "mul")},
    "itruediv": _binary("div"),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys((f"max_pool{n}d{end}" for n in (1, 2, 3) for end in ("", "_with_indices")), _max_pool),
    **dict.fromkeys((f"avg_pool{n}d" for n in (1, 2, 3)), _avg_pool),
    **dict.fromkeys((f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)), _adaptive_pool),
    "mean": _mean,
    **dict.fromkeys(_WITHOUT_EFFECT, _nothing),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _conversion),
    **SHAPING,
}
