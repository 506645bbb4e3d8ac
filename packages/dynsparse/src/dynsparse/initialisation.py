"""Start values of kernels: drawn, or taken from a static layer."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def he_normal(kernel: Float[Tensor, " ..."], out_channels: int, groups: int) -> None:
    """Draws from N(0, 2 / (prod(k) C_o / G)), He normal by the fan-out of one kernel.

    The groups count: a depthwise filter sees one channel, and without them would start too small by sqrt(C_o).

    Args:
        kernel: [..., C_i/G, *k], or more kernels of that size, changed in place.
        out_channels: C_o.
        groups: G.
    """
    positions = prod(kernel.shape[-(kernel.dim() - 3) :])
    nn.init.normal_(kernel, std=(2 * groups / (positions * out_channels)) ** 0.5)


@torch.no_grad()
def spread(weight: Float[Tensor, " *kernel"], num_kernels: int, noise: float | int) -> Float[Tensor, " k *kernel"]:
    """K copies of a static kernel that differ: equal ones would get equal gradients and stay equal.

    Args:
        weight: of a static layer.
        num_kernels: K; a single copy is exact.
        noise: standard deviation of what is added, in units of the weight's own.
    """
    copies = weight.expand(num_kernels, *weight.shape)
    if num_kernels == 1:
        return copies.clone()
    return copies + noise * weight.std(correction=0) * torch.randn_like(copies)
