"""The kernels of a layer as values on one sparse pattern, the union of their masks.

A sample's kernel is then v_b = pi_b V on that pattern: (K + 1) nnz(U) numbers are touched, and no tensor of B |W| floats
exists. Rows are filters; a column is an input channel and a position, as `torch.nn.functional.unfold` orders them.

Reference: spec section 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dynsparse.layers import SDConvNd

PADDING = 16
"""Floats behind each kernel's values that vector registers may read."""


@dataclass(frozen=True, eq=False)
class SparseKernels:
    """K kernels on one pattern in compressed rows, with their biases and the limits of the outputs.

    Attributes:
        values: V [K, nnz + PADDING].
        columns: c_i prod(k) + position, int32 [nnz], ascending in each row; c_i counts over all groups.
        row_starts: where rows begin, int64 [C_o + 1].
        bias: [1 + K, C_o]: what every sample gets, then what attention mixes.
        shape: of a dense kernel, (C_o, C_i/G, *k).
        groups: G.
        low: least output; -inf without an activation.
        high: greatest output.
    """

    values: Float[Tensor, "k padded"]
    columns: Int[Tensor, " nnz"]
    row_starts: Int[Tensor, " rows_1"]
    bias: Float[Tensor, "k_1 c_o"]
    shape: tuple[int, ...]
    groups: int
    low: float = -inf
    high: float = inf

    @property
    def num_kernels(self) -> int:
        """K."""
        return len(self.values)

    @property
    def in_channels(self) -> int:
        """C_i."""
        return self.shape[1] * self.groups

    @property
    def union(self) -> float:
        """Density of the pattern."""
        return len(self.columns) / prod(self.shape)

    @property
    def pointwise(self) -> bool:
        """Whether the kernel has one position."""
        return prod(self.shape[2:]) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of values and columns."""
        return self.values.nbytes + self.columns.nbytes

    def mixed(self, pi: Float[Tensor, " k"]) -> Float[Tensor, " nnz"]:
        """One sample's values."""
        return (pi @ self.values)[: len(self.columns)]

    def mixed_bias(self, pi: Float[Tensor, "b k"]) -> Float[Tensor, "b c_o"]:
        """The samples' biases."""
        return torch.addmm(self.bias[:1], pi, self.bias[1:])

    def dense(self) -> Float[Tensor, " k c_o c_g *kernel"]:
        """The kernels with their zeros."""
        width = prod(self.shape[1:])
        rows = torch.repeat_interleave(torch.arange(self.shape[0]), self.row_starts.diff())
        first = rows // (self.shape[0] // self.groups) * width
        dense = self.values.new_zeros(self.num_kernels, self.shape[0], width)
        dense[:, rows, self.columns - first] = self.values[:, : len(self.columns)]
        return dense.reshape(self.num_kernels, *self.shape)


@torch.no_grad()
def sparse_kernels(
    layer: SDConvNd,
    scale: Float[Tensor, " c_o"] | None = None,
    shift: Float[Tensor, " c_o"] | None = None,
    low: float = -inf,
    high: float = inf,
) -> SparseKernels:
    """Packs a frozen layer, followed by y * scale + shift and limits.

    Args:
        layer: with frozen masks, on the CPU.
        scale: factors of the outputs, 1 by default.
        shift: what is added to them, 0 by default.
        low: least output.
        high: greatest output.
    """
    kernels = layer.effective_kernels().detach()
    count, filters = kernels.shape[:2]
    flat = kernels.reshape(count, filters, -1)
    union = layer.masks().reshape(count, filters, -1).any(0)
    rows, columns = union.nonzero(as_tuple=True)
    values = kernels.new_zeros(count, len(rows) + PADDING)
    values[:, : len(rows)] = flat[:, rows, columns] if scale is None else flat[:, rows, columns] * scale[rows]
    row_starts = torch.zeros(filters + 1, dtype=torch.int64)
    torch.cumsum(union.sum(1), 0, out=row_starts[1:])
    bias = kernels.new_zeros(1 + count, filters)
    if shift is not None:
        bias[0] = shift
    if layer.bias is not None:
        bias[1:] = layer.bias if scale is None else layer.bias * scale
    first = rows // (filters // layer.groups) * flat.shape[2]
    return SparseKernels(
        values, (columns + first).int(), row_starts, bias, tuple(kernels.shape[1:]), layer.groups, low, high
    )
