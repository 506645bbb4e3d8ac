"""The sparse runtime gives what a convolution with each sample's own kernel gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dynsparse import SDConv1d, SDConv2d, SDConv3d, compile_sparse
from dynsparse.layers import SDConvNd
from dynsparse.runtime import native
from dynsparse.runtime.backends import native_run
from dynsparse.runtime.pattern import sparse_kernels

CLASSES = {1: SDConv1d, 2: SDConv2d, 3: SDConv3d}
BACKENDS = ("native", "mkl", "scipy", "dense", "auto")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def frozen(dimensions: int, *sizes: object, density: float = 0.3, **settings: object) -> SDConvNd:
    """A layer with random masks, biases and a router that tells samples apart."""
    made = CLASSES[dimensions](*sizes, **settings).eval()
    shape = made.weight.shape[1:] if made.mask_sharing == "shared" else made.weight.shape
    made.freeze(torch.rand(shape) < density)
    for parameter in (
        *([] if made.bias is None else [made.bias]),
        *([] if made.router is None else made.router.parameters()),
    ):
        nn.init.normal_(parameter)
    return made


@torch.no_grad()
def one_by_one(layer: SDConvNd, x: Tensor) -> Tensor:
    """Each sample's kernel, then its convolution."""
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[layer.dimensions - 1]
    pi, kernels, rows = layer.attention(x), layer.effective_kernels(), []
    for b in range(len(x)):
        kernel = sum(p * k for p, k in zip(pi[b], kernels, strict=True))
        bias = None if layer.bias is None else pi[b] @ layer.bias
        rows.append(conv(layer.pad(x[b : b + 1]), kernel, bias, *layer.geometry))
    return torch.cat(rows)


def close(y: Tensor, expected: Tensor) -> None:
    """Relative to the largest output: single outputs may cancel to nothing."""
    assert y.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5 * scale)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    """Everything but random numbers: those come from torch, within the test."""
    dimensions = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernels = [(1,) * dimensions, (3,) * dimensions, (5,) * dimensions, (1, 3, 2)[:dimensions]]
    return {
        "dimensions": dimensions,
        "channels": (groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))),
        "kernel_size": draw(st.sampled_from(kernels)),
        "stride": stride,
        "padding": draw(st.sampled_from([0, 1, 2, *(["same"] if stride == 1 else [])])),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
        "num_kernels": draw(st.integers(1, 4)),
        "mask_sharing": draw(st.sampled_from(["independent", "shared"])),
        "router": draw(st.sampled_from(["softmax", "sigmoid"])),
        "density": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "shape": (draw(st.integers(1, 5)), *(draw(st.integers(9, 13)) for _ in range(dimensions))),
    }


def drawn(case: dict[str, object]) -> tuple[SDConvNd, Tensor]:
    """The layer of a case and an input."""
    arguments = dict(case)
    batch, *size = arguments.pop("shape")
    layer = frozen(arguments.pop("dimensions"), *arguments.pop("channels"), **arguments)
    return layer, torch.randn(batch, layer.in_channels, *size)


@settings(max_examples=50)
@given(cases())
def test_every_backend_agrees_with_one_convolution_a_sample(case):
    layer, x = drawn(case)
    expected = one_by_one(layer, x)
    for backend in ("native", "mkl", "scipy", "dense"):
        close(compile_sparse(layer, backend)(x), expected)


@settings(max_examples=25)
@given(cases(), st.sampled_from(native.instruction_sets()))
def test_every_instruction_set_agrees(case, isa):
    layer, x = drawn(case)
    kernels, padded = sparse_kernels(layer), layer.pad(x)
    run = native_run(kernels, layer.geometry, padded.shape[2:], isa)
    close(run(padded, layer.attention(x)), one_by_one(layer, x))
