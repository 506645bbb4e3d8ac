"""A unit's reconstruction beside the reference code's loop, beside its bare convolutions, and beside AIMET's AdaRound.

The unit is a residual block of two 3 x 3 convolutions, 2-bit weights and activations, batch 32, p = 0.5, regulariser on
in every iteration, one thread. The reference's loop is written anew from what is known of it: the same Adam, unfused
operations, uniform random numbers for the masks, floor and sigmoid of the weights anew in every iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH, SAMPLES = 32, 64
ITERS = 20
"""Iterations of one timed call; ours also measures the unit's error three times in each."""

SMALL, LARGE = (16, 14), (64, 28)  # channels, and pixels of a side


def ours(channels: int, side: int) -> Callable[[], object]:
    """`reconstruct_unit` of the block within a small net."""
    import torch

    import qdrop

    unit, teacher, cache, config = _unit(channels, side)
    generator = torch.Generator()
    return lambda: qdrop.reconstruct_unit(unit, teacher, cache, config, generator.manual_seed(0))


def reference(channels: int, side: int) -> Callable[[], object]:
    """The reference's loop on the same block, inputs and step sizes."""
    import torch

    unit, teacher, cache, config = _unit(channels, side)
    quantised, full, target = (each.leaves[0] for each in (cache.quantised_inputs, cache.fp_inputs, cache.fp_outputs))
    convolutions = [
        _Convolution(teacher.layers[path], weight.scale, weight.zero_point, weight.qmax)
        for path, weight in unit.weights.items()
    ]
    activations = [_Activation(each.scale.clone(), int(each.zero_point), each.qmax) for each in unit.quantizers]

    def block(x: Tensor) -> Tensor:
        (first, second), (inner, outer) = convolutions, activations
        return outer(torch.relu(second(inner(torch.relu(first(x)))) + x))

    def call() -> None:
        by_rounding = torch.optim.Adam([each.alpha for each in convolutions], lr=config.rate_of_alpha)
        by_scale = torch.optim.Adam([each.scale for each in activations], lr=config.rate_of_scale)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(by_scale, T_max=ITERS, eta_min=0.0)
        for t in range(1, ITERS + 1):
            index = torch.randint(0, len(quantised), (BATCH,))
            x, other, y = quantised[index], full[index], target[index]
            x = torch.where(torch.rand_like(x) < config.keep_p, x, other)
            by_rounding.zero_grad()
            by_scale.zero_grad()
            beta = 2 + 18 * (1 - t / ITERS)
            loss = (block(x) - y).abs().pow(2).sum(1).mean()
            for each in convolutions:
                loss = loss + config.reg_weight * (1 - ((each.h() - 0.5).abs() * 2).pow(beta)).sum()
            loss.backward(retain_graph=True)
            by_rounding.step()
            by_scale.step()
            cosine.step()

    return call


def bare_convolutions(channels: int, side: int) -> Callable[[], object]:
    """Forward and backward of the block's two convolutions, as many times, and nothing else."""
    import torch
    from torch.nn.functional import conv2d

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, channels, side, side, generator=generator)
    weights = [torch.randn(channels, channels, 3, 3, generator=generator).requires_grad_() for _ in range(2)]
    upstream = torch.randn(x.shape, generator=generator)

    def call() -> None:
        for _ in range(ITERS):
            y = conv2d(conv2d(x, weights[0], padding=1), weights[1], padding=1)
            torch.autograd.grad(y, weights, upstream)

    return call


class _Convolution:
    """A convolution whose rounding is learned, by the reference's chain of operations."""

    def __init__(self, layer: nn.Conv2d, scale: Tensor, zero_point: Tensor, qmax: int) -> None:
        import torch

        self.weight, self.bias, self.qmax = layer.weight.detach(), layer.bias, qmax
        self.scale, self.zero_point = scale.view(-1, 1, 1, 1), zero_point.view(-1, 1, 1, 1).float()
        fraction = self.weight / self.scale - torch.floor(self.weight / self.scale)
        self.alpha = (-torch.log(1.2 / (fraction + 0.1) - 1)).requires_grad_()

    def h(self) -> Tensor:
        import torch

        return torch.clamp(torch.sigmoid(self.alpha) * 1.2 - 0.1, 0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        code = torch.floor(self.weight / self.scale) + self.h()
        code = torch.clamp(code + self.zero_point, 0, self.qmax)
        return torch.nn.functional.conv2d(x, (code - self.zero_point) * self.scale, self.bias, padding=1)


class _Activation:
    """LSQ with random drop, by the reference's chain of operations."""

    def __init__(self, scale: Tensor, zero_point: int, qmax: int) -> None:
        self.scale, self.zero_point, self.qmax = scale.requires_grad_(), zero_point, qmax

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        self.scale.data.abs_().clamp_(min=torch.finfo(torch.float32).eps)
        gain = 1.0 / (x.numel() * self.qmax) ** 0.5
        scale = (self.scale - self.scale * gain).detach() + self.scale * gain
        steps = x / scale
        code = (steps.round() - steps).detach() + steps + self.zero_point
        rounded = (torch.clamp(code, 0, self.qmax) - self.zero_point) * scale
        return torch.where(torch.rand_like(x) < 0.5, rounded, x)


def _unit(channels: int, side: int) -> tuple[Any, ...]:
    """What `quantize` reconstructs the block of `_net` with: the unit of both networks, its cache, and the settings."""
    import torch

    from qdrop import QDropConfig, quantization

    torch.manual_seed(0)
    model, found = _net(channels), {}
    reconstruct = quantization.reconstruct_unit

    def look(unit: Any, teacher: Any, cache: Any, config: Any, *rest: Any) -> Any:
        result = reconstruct(unit, teacher, cache, config, *rest)
        if unit.name == "block":
            found["block"] = unit, teacher, cache
        return result

    settings = {"w_bits": 2, "a_bits": 2, "warmup": 0.0, "batch_size": BATCH}
    batches = torch.randn(SAMPLES, 3, side, side).split(BATCH)
    quantization.reconstruct_unit = look
    try:
        quantization.quantize(model, batches, QDropConfig(iters=0, **settings), progress=False)
    finally:
        quantization.reconstruct_unit = reconstruct
    return *found["block"], QDropConfig(iters=ITERS, **settings)


def _net(channels: int) -> nn.Module:
    """A convolution, the block, and a linear layer."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu2(self.conv2(self.relu1(self.conv1(x))) + x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu = nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()
            self.block, self.fc = Block(), nn.Linear(channels, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(self.relu(self.stem(x))).mean((2, 3)))

    return torch.nn.Module.eval(Net())


BENCHMARKS: tuple[Benchmark, ...] = ()
