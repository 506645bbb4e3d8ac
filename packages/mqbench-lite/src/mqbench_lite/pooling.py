"""Average pools of codes, as ONNX Runtime's quantised kernels compute them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, no_type_check

import numba
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- its usual name
from jaxtyping import Float
from torch import Tensor

from mqbench_lite.rescaling import requantize


def global_average(
    codes: Float[Tensor, "n c h w"], keep: bool, scales: tuple[float, float], low: int, high: int
) -> Float[Tensor, "n c ..."]:
    """Codes of the mean over an image: its exact sum times s_x / (s_y h w).

    Args:
        codes: centred codes.
        keep: whether the pooled axes stay, of length 1.
        scales: step sizes of the input and of the output.
        low: least code minus the zero point.
        high: greatest code minus the zero point.

    Reference: MLAS, `MlasQLinearGlobalAveragePool`.
    """
    size = codes.shape[2] * codes.shape[3]
    multiplier = np.float32(scales[0]) / (np.float32(scales[1]) * np.float32(size))
    sums = codes.sum((2, 3), keepdim=keep, dtype=torch.float64)
    return requantize(sums.float(), torch.tensor([multiplier], device=codes.device), 1, low, high)


def average_pool(
    codes: Float[Tensor, "n c *size"],
    attributes: Mapping[str, Any],
    scales: tuple[float, float],
    zero_point: int,
    low: int,
    high: int,
) -> Float[Tensor, "n c *pooled"]:
    """Codes round(mean / s_y + z_y) of windows' means, whose float32 values are summed row by row.

    Args:
        codes: centred codes.
        attributes: those of an `avg_pool` node.
        scales: step sizes of the input and of the output.
        zero_point: of the output's stored codes, which is added before rounding.
        low: least code minus the zero point.
        high: greatest code minus the zero point.

    Reference: ONNX Runtime, `QLinearPool2DTask`.
    """
    kernel, stride, padding = (tuple(attributes[name]) for name in ("kernel", "stride", "padding"))
    windows = [
        _windows(size, *each, attributes["ceil"])
        for size, each in zip(codes.shape[2:], zip(kernel, stride, padding, strict=True), strict=True)
    ]
    ends = [k + s * (len(w) - 1) for k, s, w in zip(kernel, stride, windows, strict=True)]
    sides = [(p, max(end - p - size, 0)) for p, end, size in zip(padding, ends, codes.shape[2:], strict=True)]
    values = F.pad(codes * float(np.float32(scales[0])), [side for pair in reversed(sides) for side in pair])
    total = torch.zeros(())
    for offsets in itertools.product(*(range(k) for k in kernel)):
        spots = [slice(o, o + s * (len(w) - 1) + 1, s) for o, s, w in zip(offsets, stride, windows, strict=True)]
        total = total + values[(slice(None), slice(None), *spots)]
    count = _counts(windows, kernel, attributes["count_padding"], codes.device)
    levels = (total / count / torch.tensor(scales[1], dtype=torch.float32, device=codes.device)).add_(float(zero_point))
    return levels.round_().sub_(float(zero_point)).clamp_(low, high)


def reduce_mean(values: Float[Tensor, "*shape"], attributes: Mapping[str, Any]) -> Float[Tensor, "*reduced"]:
    """Means of float32 values; over the last axes, in the order of ONNX Runtime's ReduceMean.

    Args:
        values: contiguous values.
        attributes: those of a `mean` node.

    Reference: Eigen's `redux` with packets of four, which start where addresses are multiples of 16.
    """
    axes, rank = sorted(axis % values.dim() for axis in attributes["axes"]), values.dim()
    if axes != list(range(rank - len(axes), rank)) or not values.is_cpu:
        return values.mean(axes, attributes["keep"])
    kept = values.shape[: rank - len(axes)]
    rows = values.contiguous().reshape(int(np.prod(kept)), -1)
    means = np.empty(len(rows), np.float32)
    _row_means(rows.numpy(), means)
    return (
        torch.tensor(means).reshape(*kept, *(1,) * len(axes))
        if attributes["keep"]
        else torch.tensor(means).reshape(kept)
    )


@numba.njit("void(float32[:, ::1], float32[::1])", cache=True, nogil=True)
@no_type_check
def _row_means(rows, means):
    size = rows.shape[1]
    for at in range(len(rows)):
        row = rows[at]
        start = min((4 - (at * size) % 4) % 4, size)
        packets = (size - start) // 4
        end = start + 4 * packets
        if packets == 0:
            total = row[0]
            for i in range(1, size):
                total += row[i]
            means[at] = total / np.float32(size)
            continue
        even, odd = row[start : start + 4].copy(), np.zeros(4, np.float32)
        pairs = packets // 2
        if packets > 1:
            odd[:] = row[start + 4 : start + 8]
            for pair in range(1, pairs):
                for lane in range(4):
                    even[lane] += row[start + 8 * pair + lane]
                    odd[lane] += row[start + 8 * pair + 4 + lane]
            for lane in range(4):
                even[lane] += odd[lane]
            if packets % 2:
                for lane in range(4):
                    even[lane] += row[end - 4 + lane]
        total = (even[0] + even[2]) + (even[1] + even[3])
        for i in range(start):
            total += row[i]
        for i in range(end, size):
            total += row[i]
        means[at] = total / np.float32(size)


def _windows(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> list[int]:
    """How many elements of the axis each window covers; with `ceil`, none starts beyond the left padding."""
    steps = (size + 2 * padding - kernel + (stride - 1 if ceil else 0)) // stride
    if ceil and steps * stride >= size + padding:
        steps -= 1
    starts = (stride * step - padding for step in range(steps + 1))
    return [min(start + kernel, size) - max(start, 0) for start in starts]


def _counts(
    windows: Sequence[list[int]], kernel: Sequence[int], count_padding: bool, device: torch.device
) -> Float[Tensor, " ..."]:
    if count_padding:
        return torch.tensor(float(np.prod(kernel)), device=device)
    counts = [torch.tensor(covered, dtype=torch.float32, device=device) for covered in windows]
    product = counts[0]
    for other in counts[1:]:
        product = product[..., None] * other
    return product
