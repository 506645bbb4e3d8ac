"""Geometry of the offset-CSR kernel for one input shape; native/kernel.c says what the numbers mean.

One and two spatial axes are three, of which the first are 1. A convolution of one position without stride and padding
has a single row of outputs.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from dynsparse.geometry import Geometry
from dynsparse.runtime.pattern import SparseKernels
from dynsparse.runtime.routing import FusedRouter

PANEL_BYTES = 48 * 1024
"""What a panel of the input may take of the second-level cache; measured, a tenth faster than 96 KiB."""

ALIGNMENT = 16
"""Floats of a cache line."""

ALIASING = 1024
"""Floats after which addresses share a set of the first-level cache."""


class InstructionSet(NamedTuple):
    """A set of vector instructions of this processor, as the kernel reports it."""

    number: int
    name: str
    width: int
    largest: int


class Plan(NamedTuple):
    """What a call of the kernel needs beyond the tensors.

    Attributes:
        fields: of `Plan` in native/kernel.c.
        offsets: of the nonzeros in their group's packed input, int32 [nnz].
        out: extents of the output's spatial axes.
        room: floats of scratch memory.
    """

    fields: bytes
    offsets: Int[Tensor, " nnz"]
    out: tuple[int, ...]
    room: int


def out_extents(size: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """Extents of a convolution's output."""
    axes = zip(size, kernel, *geometry[:3], strict=True)
    return tuple((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in axes)


def make_plan(
    kernels: SparseKernels,
    geometry: Geometry,
    size: Sequence[int],
    isa: InstructionSet,
    router: FusedRouter | None = None,
) -> Plan | None:
    """Plans for an input whose spatial axes have this size, after padding outside the convolution.

    Args:
        kernels: packed.
        geometry: of the convolution.
        size: of the input's spatial axes.
        isa: instructions to use.
        router: to compute attention with; None where attention is given.

    Returns:
        None where offsets would not fit into 32 bits.
    """
    out = out_extents(size, kernels.shape[2:], geometry)
    panels = kernels.pointwise and max(geometry.stride) == 1 and not any(geometry.padding)
    if panels:
        axes = _Axes((1, 1, prod(size)), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), (1, 1, prod(out)))
    else:
        stride, padding, dilation = map(_three, geometry[:3], (1, 0, 1))
        axes = _Axes(_three(size), _three(kernels.shape[2:]), stride, padding, dilation, _three(out))
    phases = sorted({axes.phase(position) for position in axes.positions()})
    span = tuple(
        o + (k - 1) * d // s for o, k, d, s in zip(axes.out, axes.kernel, axes.dilation, axes.stride, strict=True)
    )
    extent = ((axes.out[0] - 1) * span[1] + axes.out[1] - 1) * span[2] + axes.out[2]
    channels = kernels.shape[1]
    tile = _tile(extent, channels, isa, panels=panels)
    panel = tile * isa.width if panels else 0
    channel = panel or _spread(len(phases) * prod(span))
    packed = channels * channel
    if packed + extent + isa.largest * isa.width >= 2**31:
        return None
    fields = struct.pack(
        f"ddd{30 + 3 * len(phases)}q",
        kernels.low,
        kernels.high,
        router.temperature if router else 0.0,
        router.logits if router else 0,
        router.hidden if router else 0,
        isa.number,
        kernels.num_kernels,
        kernels.in_channels,
        kernels.groups,
        kernels.shape[0],
        kernels.values.stride(0),
        extent,
        tile,
        panel,
        channel,
        prod(size),
        prod(out),
        *axes.size,
        *axes.padding,
        *axes.stride,
        *span,
        *axes.out,
        len(phases),
        *itertools.chain(*phases),
    )
    offsets = _offsets(kernels, axes, phases, span, channel)
    values = kernels.values.stride(0) if kernels.num_kernels > 1 else 0
    attending = kernels.in_channels + router.logits + kernels.num_kernels if router else 0
    parts = (kernels.shape[0], values, attending, packed + isa.largest * isa.width)
    room = sum(map(_round_up, parts))
    return Plan(fields, offsets, out, room)


class _Axes(NamedTuple):
    """Sizes along three axes."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]

    def positions(self) -> itertools.product[tuple[int, ...]]:
        """Of the kernel, row-major."""
        return itertools.product(*map(range, self.kernel))

    def phase(self, position: Sequence[int]) -> tuple[int, ...]:
        """Which phase of the padded input a position reads."""
        return tuple(p * d % s for p, d, s in zip(position, self.dilation, self.stride, strict=True))

    def shift(self, position: Sequence[int]) -> tuple[int, ...]:
        """How far into its phase."""
        return tuple(p * d // s for p, d, s in zip(position, self.dilation, self.stride, strict=True))


def _offsets(
    kernels: SparseKernels, axes: _Axes, phases: Sequence[tuple[int, ...]], span: Sequence[int], channel: int
) -> Tensor:
    """Of every nonzero in its group's packed input."""
    within = []
    for position in axes.positions():
        d, h, w = axes.shift(position)
        within.append(phases.index(axes.phase(position)) * prod(span) + (d * span[1] + h) * span[2] + w)
    table = torch.arange(kernels.shape[1])[:, None] * channel + torch.tensor(within)
    return table.flatten().int()[kernels.columns % table.numel()]


def _tile(extent: int, channels: int, isa: InstructionSet, *, panels: bool) -> int:
    """Vector registers of a tile: as many as there are, or as keep a panel in cache; then even, and whole cache lines."""
    vectors = -(-extent // isa.width)
    limit = isa.largest
    if panels:
        limit = min(limit, max(isa.largest // 3, PANEL_BYTES // (4 * isa.width * channels)))
    tiles = -(-vectors // limit)
    tile = -(-vectors // tiles)
    line = max(1, ALIGNMENT // isa.width) if panels else 1
    return min(limit, -(-tile // line) * line)


def _spread(floats: int) -> int:
    """Whole cache lines, but not so that all channels meet in one set of the cache."""
    floats = _round_up(floats)
    return floats + ALIGNMENT if floats % ALIASING == 0 else floats


def _round_up(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT


def _three(values: Sequence[int], filler: int = 1) -> tuple[int, ...]:
    return (filler,) * (3 - len(values)) + tuple(values)
