"""Layers and networks with their zeros left out beside their best dense dynamic form, and a training step beside dense ones.

Both sides of an inference are compiled: batch norms and activations are folded into the layers, and the dense side takes
for each layer the fastest of the exact forms (grouped convolution, batched product, one convolution with all kernels and a
weighted sum), found by timing them. All layers have K = 4 kernels and their router; one thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    from torch import nn

LAYERS: dict[str, tuple[int, int, int, int]] = {
    "pointwise-512": (512, 512, 14, 1),
    "pointwise-1024": (1024, 1024, 7, 1),
    "pointwise-256": (256, 256, 28, 1),
    "conv-64": (64, 64, 56, 3),
    "conv-256": (256, 256, 14, 3),
    "conv-512": (512, 512, 7, 3),
}
"""Input and output channels, pixels of a side, and kernel size; those of 3 x 3 are ResNet-18's."""
SPARSITY = 0.9
POINTWISE_TARGET, CONV_TARGET, BATCH_TARGET, CSR_TARGET = 5.0, 3.0, 3.75, 2.5


def layer(
    name: str, backend: str, *, sharing: str = "shared", batch: int = 1, sparsity: float = SPARSITY
) -> Callable[[], object]:
    """A compiled layer on random images; calls are repeated for some 20 ms."""
    import torch

    from dynsparse import SDConv2d, compile_sparse

    in_channels, out_channels, side, kernel = LAYERS[name]
    torch.manual_seed(0)
    made = SDConv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False, mask_sharing=sharing)
    made.finalize(sparsity)
    x = torch.randn(batch, in_channels, side, side)
    compiled = compile_sparse(torch.nn.Sequential(made).eval(), backend, example=x)
    return _repeated(compiled, x, max(1, 32 // batch))


def network(name: str, backend: str, *, sharing: str = "shared", batch: int = 1) -> Callable[[], object]:
    """A whole network at 90 % sparsity on images of 224 x 224."""
    import torch

    from dynsparse import compile_sparse, dynamic_layers
    from dynsparse.models import MODELS

    torch.manual_seed(0)
    made = MODELS[name]("sd", mask_sharing=sharing).eval()
    for _, each in dynamic_layers(made):
        if each.threshold is not None:
            each.finalize(SPARSITY)
    x = torch.randn(batch, 3, 224, 224)
    return _repeated(compile_sparse(made, backend, example=x), x, 1)


def training(kind: str) -> Callable[[], object]:
    """Forward and backward of one layer, 64 channels, 3 x 3, 28 x 28, B = 16: masked, dense dynamic, or timm's CondConv2d."""
    import torch

    from dynsparse import SDConv2d

    torch.manual_seed(0)
    x = torch.randn(16, 64, 28, 28)
    sizes: dict[str, Any] = {"padding": 1, "bias": False}
    if kind == "timm":
        from timm.layers import CondConv2d

        other, weights = CondConv2d(64, 64, 3, num_experts=4, **sizes), torch.softmax(torch.randn(16, 4), 1)
        call: Callable[[], Any] = lambda: other(x, weights)  # noqa: E731 -- a layer that takes its routing weights
        parameters = list(other.parameters())
    else:
        own = SDConv2d(64, 64, 3, mask="threshold" if kind == "masked" else "none", **sizes)
        call, parameters = functools.partial(own, x), list(own.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        call().sum().backward()

    return step


def _repeated(module: nn.Module, x: Any, times: int) -> Callable[[], object]:
    import torch

    def call() -> object:
        with torch.inference_mode():
            for _ in range(times - 1):
                module(x)
            return module(x)

    return call


def _of_layer(
    name: str, target: float | None, *, backend: str = "native", suffix: str = "", **options: Any
) -> Benchmark:
    channels, _, side, kernel = LAYERS[name]
    more = ", ".join(f"{key} {value}" for key, value in options.items())
    gain = f"at least {target:g} times as fast as" if target else "timed beside"
    return Benchmark(
        id=f"{name}{suffix}",
        statement=f"A layer of {channels} channels, {kernel} x {kernel}, {side} x {side} pixels, 90 % sparse"
        f"{' (' + more + ')' if more else ''}, by {backend}, is {gain} its best dense dynamic form.",
        ours=functools.partial(layer, name, backend, **options),
        peer=functools.partial(layer, name, "dense", **options),
        target=target,
    )


BENCHMARKS = (
    *(_of_layer(name, POINTWISE_TARGET if name.startswith("pointwise") else CONV_TARGET) for name in LAYERS),
    _of_layer("pointwise-512", CSR_TARGET, backend="torch", suffix="-csr"),
    _of_layer("pointwise-512", BATCH_TARGET, suffix="-batch-32", batch=32),
    _of_layer("pointwise-512", None, suffix="-independent", sharing="independent"),
    _of_layer("conv-256", None, suffix="-independent", sharing="independent"),
    Benchmark(
        id="mobilenet-v1",
        statement="sd_mobilenet_v1, 90 % sparse, one image, is at least 3 times as fast by auto as in its best dense form.",
        ours=functools.partial(network, "sd_mobilenet_v1", "auto"),
        peer=functools.partial(network, "sd_mobilenet_v1", "dense"),
        target=3.0,
    ),
    Benchmark(
        id="resnet18",
        statement="sd_resnet18, 90 % sparse, one image, is at least 2.5 times as fast by auto as in its best dense form.",
        ours=functools.partial(network, "sd_resnet18", "auto"),
        peer=functools.partial(network, "sd_resnet18", "dense"),
        target=2.5,
    ),
    Benchmark(
        id="training-dense",
        statement="A training step of a masked layer takes at most 1.15 times that of the dense dynamic one.",
        ours=functools.partial(training, "masked"),
        peer=functools.partial(training, "dense"),
        target=1 / 1.15,
    ),
    Benchmark(
        id="training-timm",
        statement="A training step of a masked layer, router included, is as fast as that of timm's CondConv2d.",
        ours=functools.partial(training, "masked"),
        peer=functools.partial(training, "timm"),
        target=1.0,
    ),
)
