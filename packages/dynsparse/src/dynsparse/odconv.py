"""Omni-dimensional dynamic convolution: positions, input channels and filters are scaled for each sample, too.

Reference: Li et al., ODConv, ICLR 2022, arXiv:2209.07947, eq. (3).
"""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from dynsparse.aggregation import FORMS, channelwise, choose, mix_outputs, mixed, per_sample
from dynsparse.geometry import Geometry
from dynsparse.routers import Factors


def scaled_channels(x: Float[Tensor, "b c_i *space"], factors: Factors) -> Float[Tensor, "b c_i *space"]:
    """The input with its channels scaled; padding comes after it."""
    return x * channelwise(factors.channel, x)


def odconv(
    x: Float[Tensor, "b c_i *space"],
    weight: Float[Tensor, "k c_o c_g *kernel"],
    bias: Float[Tensor, "k c_o"] | None,
    factors: Factors,
    geometry: Geometry,
    form: str = "auto",
) -> Float[Tensor, "b c_o *out"]:
    """y_b = filter_b * conv(x_b, spatial_b * sum_k pi_bk W_k) + sum_k pi_bk b_k.

    Args:
        x: scaled by `scaled_channels`, and padded.
        weight: static kernels.
        bias: of each kernel, or None; filters' factors do not scale it.
        factors: what the router gives.
        geometry: of the convolution.
        form: as in `aggregation.choose`; every form is exact here, too.
    """
    pi = factors.kernel
    form = choose(x, weight, geometry, form)
    if factors.spatial is None:
        y = FORMS[form](x, weight, None, pi, geometry)
    elif form == "mix_outputs":
        y = mix_outputs(x, *_by_position(weight, pi, factors.spatial), geometry)
    else:
        y = per_sample(x, mixed(weight, pi) * factors.spatial[:, None, None], None, geometry)
    if factors.filter is not None:
        y = y * channelwise(factors.filter, y)
    return y if bias is None else y + channelwise(mixed(bias, pi), y)


def _by_position(weight: Tensor, pi: Tensor, spatial: Tensor) -> tuple[Tensor, None, Tensor]:
    """Kernels of one position each, no bias, and their weights: a position's factor acts as a kernel's does."""
    size = weight.shape[3:]
    one = torch.eye(prod(size), dtype=weight.dtype, device=weight.device).reshape(1, prod(size), 1, 1, *size)
    return (weight[:, None] * one).flatten(0, 1), None, (pi[:, :, None] * spatial.flatten(1)[:, None]).flatten(1)
