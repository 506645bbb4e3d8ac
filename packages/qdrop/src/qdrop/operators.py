"""Two operators of torch that an exporter sees as one node each, and writes as ONNX's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdrop.fake_quant import fake_quantize


@torch.library.custom_op(
    "qdrop::quantize_dequantize",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor zero_point, Tensor low, Tensor high, int qmin, int qmax) -> Tensor",
)
def quantize_dequantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: Tensor,  # noqa: ARG001 -- ONNX clips to it
    high: Tensor,  # noqa: ARG001 -- ONNX clips to it
    qmin: int,
    qmax: int,
) -> Tensor:
    """As `fake_quantize` of an activation; `low` and `high` are the values of the codes `qmin` and `qmax`."""
    return fake_quantize(x, scale, zero_point.to(torch.int32), qmin, qmax)


@quantize_dequantize.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(
    "qdrop::dequantize",
    mutates_args=(),
    schema="(Tensor codes, Tensor scale, Tensor zero_point, int axis, int bits) -> Tensor",
)
def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int,
    bits: int,  # noqa: ARG001 -- decides the type in ONNX
) -> Tensor:
    """A weight, `(codes - zero_point) * scale` along `axis`."""
    wide = [-1 if each == axis else 1 for each in range(codes.dim())]
    return (codes.to(torch.int32) - zero_point.to(torch.int32).view(wide)).float() * scale.view(wide)


@dequantize.register_fake
def _(codes: Tensor, *_: Any) -> Tensor:
    return torch.empty(codes.shape, dtype=torch.float32)
