"""Functions that join, cut and turn tensors, as operations of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mqbench_lite.lowering import BATCH, Call, Held, Lowering, Made, spatial_axes, tuple_of


def _concat(lowering: Lowering, call: Call) -> Made | None:
    parts, axis = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    if not isinstance(parts, list | tuple) or not all(isinstance(each, Made | Held) for each in parts):
        return None
    return parts[0] if len(parts) == 1 else lowering.emit(call, "concat", parts, axis=axis)


def _stack(lowering: Lowering, call: Call) -> Made:
    parts, axis = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    axis = axis % len(call.shape or ())
    wide = [
        lowering.emit(call, "unsqueeze", [each], (*each.shape[:axis], 1, *each.shape[axis:]), axes=(axis,))
        for each in map(lowering.as_made, parts)
    ]
    return lowering.emit(call, "concat", wide, axis=axis)


def _flatten(lowering: Lowering, call: Call) -> Made | None:
    x = call.argument(0, "input")
    rank = len(x.shape)
    start, stop = call.argument(1, "start_dim", 0) % rank, call.argument(2, "end_dim", -1) % rank
    return lowering.emit(call, "flatten", [x], start=start, stop=stop)


def _reshape(lowering: Lowering, call: Call) -> Made | None:
    """To the shape that the result had: at most one size depends on the batch."""
    if call.shape is None or call.shape.count(BATCH) > 1:
        return None
    return lowering.emit(call, "reshape", [call.argument(0, "input")], shape=call.shape)


def _permute(lowering: Lowering, call: Call) -> Made:
    x = call.argument(0, "input")
    rank = len(x.shape)
    if call.name == "permute":
        given = call.argument(1, "dims")
        axes = [axis % rank for axis in (given if isinstance(given, list | tuple) else call.args[1:])]
    else:
        axes = list(range(rank))
        one, other = (-2, -1) if call.name in ("t", "mT") else (call.argument(1, "dim0"), call.argument(2, "dim1"))
        axes[one], axes[other] = axes[other], axes[one]
    return lowering.emit(call, "permute", [x], axes=tuple(axes))


def _squeeze(lowering: Lowering, call: Call) -> Made | None:
    x, axes = call.argument(0, "input"), call.argument(1, "dim")
    if axes is None:
        axes = [at for at, size in enumerate(x.shape) if size == 1]
    rank = len(x.shape)
    axes = tuple(axis % rank for axis in ([axes] if isinstance(axes, int) else axes) if x.shape[axis] == 1)
    return lowering.emit(call, "squeeze", [x], axes=axes) if axes else x


def _unsqueeze(lowering: Lowering, call: Call) -> Made:
    axis = call.argument(1, "dim") % (len(call.argument(0, "input").shape) + 1)
    return lowering.emit(call, "unsqueeze", [call.argument(0, "input")], axes=(axis,))


def _slice(lowering: Lowering, call: Call) -> Made | None:
    x, axis = call.argument(0, "input"), call.argument(1, "dim", 0)
    start, stop, step = call.argument(2, "start"), call.argument(3, "end"), call.argument(4, "step", 1)
    return _cut(lowering, call, x, axis, start or 0, stop, step)


def _select(lowering: Lowering, call: Call) -> Made | None:
    x, axis, index = call.argument(0, "input"), call.argument(1, "dim"), call.argument(2, "index")
    axis = axis % len(x.shape)
    if isinstance(index, Made) or x.shape[axis] == BATCH:
        return None
    index %= x.shape[axis]
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    part = _cut(lowering, call, x, axis, index, index + 1, 1, shape)
    return None if part is None else lowering.emit(call, "squeeze", [part], axes=(axis,))


def _narrow(lowering: Lowering, call: Call) -> Made | None:
    x, axis, start, length = (call.argument(at, name) for at, name in enumerate(("input", "dim", "start", "length")))
    if isinstance(start, Made | Held) or isinstance(length, Made):
        return None
    return _cut(lowering, call, x, axis, start, start + length, 1)


def _pieces(lowering: Lowering, call: Call) -> Any:
    """chunk, split and unbind as slices."""
    x = call.argument(0, "input")
    axis = call.argument(1 if call.name == "unbind" else 2, "dim", 0) % len(x.shape)
    size = x.shape[axis]
    if size == BATCH:
        return None
    if call.name == "unbind":
        lengths = [1] * size
    elif call.name == "chunk":
        lengths = _lengths(size, -(-size // call.argument(1, "chunks")))
    else:
        wanted = call.argument(
            1, "split_size_or_sections", call.kwargs.get("split_size", call.kwargs.get("split_sizes"))
        )
        lengths = _lengths(size, wanted) if isinstance(wanted, int) else list(wanted)
    parts, start = [], 0
    for length in lengths:
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        part = _cut(lowering, call, x, axis, start, start + length, 1, shape)
        if call.name == "unbind":
            part = lowering.emit(call, "squeeze", [part], (*x.shape[:axis], *x.shape[axis + 1 :]), axes=(axis,))
        parts.append(part)
        start += length
    return tuple(parts)


def _lengths(size: int, length: int) -> list[int]:
    return [min(length, size - start) for start in range(0, size, length)]


def _cut(
    lowering: Lowering,
    call: Call,
    x: Made,
    axis: int,
    start: Any,
    stop: Any,
    step: int,
    shape: tuple[int, ...] | None = None,
) -> Made | None:
    """A slice, unless its ends depend on the batch."""
    if any(isinstance(each, Made) for each in (start, stop, step)):
        return None
    axis %= len(x.shape)
    if start == 0 and step == 1 and (stop is None or stop >= (x.shape[axis] if x.shape[axis] != BATCH else 2**62)):
        return x
    return lowering.emit(call, "slice", [x], shape, axis=axis, start=start, stop=stop, step=step)


def _pad(lowering: Lowering, call: Call) -> Made | None:
    x, pads = call.argument(0, "input"), call.argument(1, "pad")
    plain = call.name == "constant_pad_nd"
    mode = "constant" if plain else call.argument(2, "mode", "constant")
    value = call.argument(2 if plain else 3, "value", 0.0)
    if mode != "constant" or any(isinstance(each, Made) for each in pads):
        return None
    return lowering.emit(call, "pad", [x], pads=tuple(pads), value=float(value or 0.0))


def _resize(lowering: Lowering, call: Call) -> Made | None:
    """upsample_nearest2d and its like, and torch.nn.functional.interpolate."""
    size, align = call.argument(1, "size", call.kwargs.get("output_size")), None
    if call.name == "interpolate":
        factors, mode = call.argument(2, "scale_factor"), call.argument(3, "mode", "nearest")
        align = call.argument(4, "align_corners")
        plain = not call.argument(5, "recompute_scale_factor") and not call.argument(6, "antialias", False)
    else:
        mode = call.name.removeprefix("upsample_").rstrip("123d")
        mode = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic", "linear": "linear"}.get(mode, "")
        at = 2 if mode == "nearest" else 3
        align = None if mode == "nearest" else bool(call.argument(2, "align_corners", False))
        factors, plain = call.argument(at, "scale_factors"), "vec" in str(call.target)
    if not mode or not plain or isinstance(size, Made):
        return None
    axes = spatial_axes(call)
    if size is not None:
        size = tuple_of(size, axes)
        if any(isinstance(each, Made) for each in size):
            return None
    factors = None if factors is None else tuple(map(float, tuple_of(factors, axes)))
    return lowering.emit(
        call, "resize", [call.argument(0, "input")], size=size, factors=factors, mode=mode, align_corners=align
    )


def _item(_: Lowering, call: Call) -> Any:
    """One of several results."""
    whole, index = call.args
    return whole[index] if isinstance(whole, tuple | list | dict) else None


SHAPING: dict[str, Callable[[Lowering, Call], Any]] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    "stack": _stack,
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "mT", "swapaxes"), _permute),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "select": _select,
    "narrow": _narrow,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind"), _pieces),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys((f"upsample_nearest{n}d" for n in (1, 2, 3)), _resize),
    **dict.fromkeys(("interpolate", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"), _resize),
    "getitem": _item,
}
"""How calls become nodes, by the functions' names; None where a call has to run as it stands."""
