"""Layers and inputs over section 10's space, and the loop over samples that all forms must agree with."""

import torch
from hypothesis import strategies as st
from torch.nn import functional

from dynsparse.layers import SDConv2d

KERNELS = (1, 3, 5, (1, 3))


@st.composite
def layers(draw, **fixed):
    """What `made` makes a layer and an input of B samples of."""
    groups = draw(st.sampled_from([1, 2, 4]))
    kernel = draw(st.sampled_from(KERNELS))
    settings = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "num_kernels": draw(st.integers(1, 4)),
        "mask_sharing": draw(st.sampled_from(["independent", "shared"])),
        "threshold_init": 0.7,
        **fixed,
    }
    size = draw(st.integers(1, 5)), 4, draw(st.sampled_from([9, 11])), draw(st.sampled_from([9, 12]))
    return kernel, settings, size, draw(st.integers(0, 1000))


def made(drawing):
    """A layer with some weights masked, in float32, and its input."""
    kernel, settings, size, seed = drawing
    torch.manual_seed(seed)
    layer = SDConv2d(4, 8, kernel, **settings).eval()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer, torch.randn(size)


@torch.no_grad()
def loop(layer, x):
    """y_b = conv(x_b, sum_k pi_bk M_k W_k) + sum_k pi_bk b_k, sample by sample, as the equation has it."""
    pi = layer.attention(x)
    kernels = layer.weight * layer.masks()
    rows = []
    for sample, weights in zip(x, pi, strict=True):
        weight = sum(p * kernel for p, kernel in zip(weights, kernels, strict=True))
        bias = None if layer.bias is None else sum(p * b for p, b in zip(weights, layer.bias, strict=True))
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        rows.append(functional.conv2d(sample[None], weight, bias, *geometry))
    return torch.cat(rows)
