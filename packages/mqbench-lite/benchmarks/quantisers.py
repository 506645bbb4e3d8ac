"""Fake quantisation beside torch's native operation, and the range search beside the one that tries every candidate.

Forward and backward of float32 tensors on one thread, codes of 8 bit; torch's operation multiplies by the inverse of the
step size where ours divides. The learned step size is beside torch's learnable operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from core_utils.bench import Benchmark

ACTIVATIONS, SMALL = (32, 64, 28, 28), (32, 16, 14, 14)
WEIGHT = (256, 256, 3, 3)


def _inputs(shape: tuple[int, ...]) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).requires_grad_()
    return x, torch.randn(shape, generator=generator), torch.tensor(0.03), torch.tensor(0, dtype=torch.int32)


def ours_per_tensor(shape: tuple[int, ...]) -> Callable[[], object]:
    """`fake_quantize` with one step size."""
    import torch

    from mqbench_lite.fake_quant import fake_quantize

    x, upstream, scale, zero_point = _inputs(shape)
    return lambda: torch.autograd.grad(fake_quantize(x, scale, zero_point, -128, 127), x, upstream)


def torch_per_tensor(shape: tuple[int, ...]) -> Callable[[], object]:
    """`torch.fake_quantize_per_tensor_affine`."""
    import torch

    x, upstream, scale, zero_point = _inputs(shape)
    native = torch.fake_quantize_per_tensor_affine
    return lambda: torch.autograd.grad(native(x, scale, zero_point, -128, 127), x, upstream)


def ours_per_channel(shape: tuple[int, ...]) -> Callable[[], object]:
    """`fake_quantize` with a step size for each channel."""
    import torch

    from mqbench_lite.fake_quant import fake_quantize

    x, upstream, scale, zero_point = _inputs(shape)
    scale, zero_point = scale.expand(shape[0]).contiguous(), zero_point.expand(shape[0]).contiguous()
    return lambda: torch.autograd.grad(fake_quantize(x, scale, zero_point, -128, 127), x, upstream)


def torch_per_channel(shape: tuple[int, ...]) -> Callable[[], object]:
    """`torch.fake_quantize_per_channel_affine`."""
    import torch

    x, upstream, scale, zero_point = _inputs(shape)
    scale, zero_point = scale.expand(shape[0]).contiguous(), zero_point.expand(shape[0]).contiguous()
    native = torch.fake_quantize_per_channel_affine
    return lambda: torch.autograd.grad(native(x, scale, zero_point, 0, -128, 127), x, upstream)


def ours_learned(shape: tuple[int, ...]) -> Callable[[], object]:
    """`learned_fake_quantize` with one step size and zero point, both learned."""
    import torch

    from mqbench_lite.fake_quant import learned_fake_quantize

    x, upstream, scale, zero_point = _inputs(shape)
    scale, offset = scale.requires_grad_(), zero_point.float().requires_grad_()
    learned = functools.partial(learned_fake_quantize, qmin=-128, qmax=127, gain=1.0)
    return lambda: torch.autograd.grad(learned(x, scale, offset), (x, scale, offset), upstream)


def torch_learned(shape: tuple[int, ...]) -> Callable[[], object]:
    """`torch._fake_quantize_learnable_per_tensor_affine`, which torch's own LSQ uses."""
    import torch

    x, upstream, scale, zero_point = _inputs(shape)
    scale, offset = scale.reshape(1).requires_grad_(), zero_point.float().reshape(1).requires_grad_()
    native = torch._fake_quantize_learnable_per_tensor_affine
    return lambda: torch.autograd.grad(native(x, scale, offset, -128, 127, 1.0), (x, scale, offset), upstream)


def ours_search(shape: tuple[int, ...], bits: int, per_channel: bool) -> Callable[[], object]:
    """The observer `mse`, fed and asked for its grid."""
    import torch

    from mqbench_lite.observers import make_observer
    from mqbench_lite.specs import QuantSpec

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(bits=bits)
    qmin, qmax = spec.grid()

    def call() -> object:
        observer = make_observer("mse", spec, 0 if per_channel else None)
        observer.update(x)
        return observer.grid(qmin, qmax)

    return call


def naive_search(shape: tuple[int, ...], bits: int, per_channel: bool) -> Callable[[], object]:
    """The same candidates, the tensor quantised with each by torch's native operation, as the toolkit does it."""
    import torch

    from mqbench_lite.range_search import candidates
    from mqbench_lite.specs import QuantSpec

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(bits=bits)
    qmin, qmax = spec.grid()
    rows = x.flatten(1) if per_channel else x.reshape(1, -1)

    def call() -> object:
        low, high = torch.aminmax(rows, dim=1)
        scales, zeros = candidates(low, high, spec, qmin, qmax)
        best = torch.full((len(rows),), torch.inf)
        found = scales[:, 0].clone()
        for scale, zero_point in zip(scales.T, zeros.T, strict=True):
            if per_channel:
                grid = scale.contiguous(), zero_point.contiguous(), 0
                rounded = torch.fake_quantize_per_channel_affine(rows, *grid, qmin, qmax)
            else:
                rounded = torch.fake_quantize_per_tensor_affine(rows, scale[0], zero_point[0], qmin, qmax)
            error = (rounded - rows).square().mean(1)
            better = error < best
            best, found = torch.where(better, error, best), torch.where(better, scale, found)
        return found

    return call


def _pair(name: str, statement: str, ours: Any, peer: Any, target: float | None, *arguments: Any) -> Benchmark:
    given = [functools.partial(side, *arguments) for side in (ours, peer)]
    return Benchmark(name, statement, *given, target=target)


NATIVE = 1 / 1.3
"""At most 1.3 times the time of torch's operation."""

BENCHMARKS = (
    _pair(
        "fake-quant", "at most 1.3x torch's, [32, 64, 28, 28]", ours_per_tensor, torch_per_tensor, NATIVE, ACTIVATIONS
    ),
    _pair(
        "fake-quant-small", "at most 1.3x torch's, [32, 16, 14, 14]", ours_per_tensor, torch_per_tensor, NATIVE, SMALL
    ),
    _pair(
        "fake-quant-channels",
        "at most 1.3x torch's, [256, 256, 3, 3]",
        ours_per_channel,
        torch_per_channel,
        NATIVE,
        WEIGHT,
    ),
    _pair("learned-step", "at most 1.3x torch's, [32, 64, 28, 28]", ours_learned, torch_learned, NATIVE, ACTIVATIONS),
    _pair(
        "range-search",
        "10x the naive search, 8 bit, [32, 64, 28, 28]",
        ours_search,
        naive_search,
        10.0,
        ACTIVATIONS,
        8,
        False,
    ),
    _pair(
        "range-search-4",
        "10x the naive search, 4 bit, [32, 64, 28, 28]",
        ours_search,
        naive_search,
        10.0,
        ACTIVATIONS,
        4,
        False,
    ),
    _pair(
        "range-search-channels",
        "10x the naive search, 4 bit, [256, 256, 3, 3]",
        ours_search,
        naive_search,
        10.0,
        WEIGHT,
        4,
        True,
    ),
    _pair(
        "range-search-weight",
        "10x the naive search, 4 bit, [64, 64, 3, 3]",
        ours_search,
        naive_search,
        10.0,
        (64, 64, 3, 3),
        4,
        True,
    ),
)
